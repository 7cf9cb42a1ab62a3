#!/usr/bin/env bash
# torch.set_flush_denormal(True) holds for the calling thread and for threads that begin later. Threads
# that worked before keep denormals: one product of equal numbers is then 0 in one half of the
# tensor and 2e-40 in the other. Called before the first operation on several threads it holds for all.
#
# Seen:
#
#     torch 2.14.1+cu130 Python 3.11.7
#     work first: 2,000,000 of 4,000,000 equal products are denormal, the others 0
#     torch 2.14.1+cu130 Python 3.11.7
#     flush first: 0 of 4,000,000 equal products are denormal, the others 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --no-compile --target "$folder" torch==2.14.1 || exit 2
for first in work flush; do
    PYTHONPATH="$folder" python3 - "$first" <<'PY'
import platform
import sys

import torch

first = sys.argv[1]
torch.set_num_threads(2)
if first == "work":
    torch.ones(4_000_000).mul(2)
assert torch.set_flush_denormal(True), "this processor cannot flush denormals"
product = torch.full((4_000_000,), 2e-38).mul(1e-2)
denormal = int(product.view(torch.int32).count_nonzero())
print("torch", torch.__version__, "Python", platform.python_version())
print(f"{first} first: {denormal:,} of {product.numel():,} equal products are denormal, the others 0")
assert denormal == {"work": 2_000_000, "flush": 0}[first], "the behaviour has changed"
PY
done
