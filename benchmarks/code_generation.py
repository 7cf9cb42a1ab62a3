"""Ways to generate the code of a sparse kernel: LLVM's language by llvmlite, C by a compiler, Numba.

    python benchmarks/code_generation.py --size 8 --channels 256 --density 0.05

The same algorithm on the same data (16 images in the lanes, tiles of 4 x 4 positions, all input channels at
once, one thread), written three ways: as the library does it; in C with vector types, compiled by the
system's compiler; as plain loops for Numba, which vectorises them itself. Times take turns; medians. A first
use compiles with nothing cached.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsefx.kernels.codegen.builder import Kernel
from sparsefx.kernels.codegen.convolution import Tile, convolution
from sparsefx.kernels.ir.packed import pack
from sparsefx.kernels.runtime import native

SOURCE = """
#include <stdint.h>
typedef float lanes __attribute__((vector_size(64)));
void run(const char *source, char *target, const int32_t *rows, const int16_t *codes, const float *values,
         const float *bias, const int32_t *offsets, int64_t out, int64_t size, int64_t channel_out) {
  for (int64_t y = 0; y < size; y += 4) for (int64_t x = 0; x < size; x += 4) {
    const char *from = source + (y * (size + 2) + x) * 64;
    char *to = target + (y * size + x) * 64;
    for (int64_t channel = 0; channel < out; channel++) {
      lanes sums[16];
      for (int i = 0; i < 16; i++) sums[i] = (lanes){} + bias[channel];
      for (int64_t k = rows[channel]; k < rows[channel + 1]; k++) {
        const char *at = from + (int64_t)offsets[codes[k]] * 64;
        for (int i = 0; i < 16; i++)
          sums[i] += values[k] * *(const lanes *)(at + ((i / 4) * (size + 2) + i % 4) * 64);
      }
      for (int i = 0; i < 16; i++)
        *(lanes *)(to + channel * channel_out + ((i / 4) * size + i % 4) * 64) = sums[i];
    }
  }
}
"""


def loops(source: Any, target: Any, rows: Any, codes: Any, values: Any, bias: Any) -> None:
    """The algorithm for Numba, from ``[in, size + 2, size + 2, 16]`` to ``[out, size, size, 16]``."""
    sums = np.empty((4, 4, 16), np.float32)
    for y in range(0, target.shape[1], 4):
        for x in range(0, target.shape[2], 4):
            for channel in range(target.shape[0]):
                sums[:] = bias[channel]
                for k in range(rows[channel], rows[channel + 1]):
                    value, place, tap = values[k], codes[k] // 9, codes[k] % 9
                    for i in range(4):
                        for j in range(4):
                            for lane in range(16):
                                sums[i, j, lane] += (
                                    value * source[place, y + i + tap // 3, x + j + tap % 3, lane]
                                )
                target[channel, y : y + 4, x : x + 4] = sums


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", type=int, default=8, help="of the image, a multiple of 4 (default: %(default)s)"
    )
    parser.add_argument("--channels", type=int, default=256, help="in and out (default: %(default)s)")
    parser.add_argument("--density", type=float, default=0.05, help="default: %(default)s")
    parser.add_argument("--turns", type=int, default=30, help="default: %(default)s")
    options = parser.parse_args()
    torch.manual_seed(0)
    weight = torch.randn(options.channels, options.channels, 3, 3)
    weight *= torch.rand(weight.shape) < options.density
    layer = pack(weight, torch.randn(len(weight)), 1, options.channels)
    tensors = layer.rows, layer.codes, layer.values, layer.bias
    packed = [*(tensor.numpy() for tensor in tensors), offsets_of(options.channels, options.size)]
    source = aligned(options.channels, options.size + 2, options.size + 2, 16)
    source[...] = np.random.default_rng(0).normal(size=source.shape)
    ways: dict[str, Callable[..., Callable[[], None]]] = {
        "llvmlite": by_llvmlite,
        "C": by_c,
        "Numba": by_numba,
    }
    calls, targets, seconds = {}, {}, {}
    for name, make in ways.items():
        targets[name] = aligned(options.channels, options.size, options.size, 16)
        began = time.perf_counter()
        try:
            calls[name] = make(source, targets[name], packed, options.size)
        except (ImportError, OSError, subprocess.CalledProcessError) as error:
            print(f"{name} is not to be had here: {error}")
            continue
        calls[name]()
        seconds[name] = time.perf_counter() - began
        np.testing.assert_allclose(targets[name], targets["llvmlite"], rtol=1e-4, atol=1e-4)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.turns):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - began))
    print("| way | first use, s | a run, ms | of llvmlite's |\n|---|---|---|---|")
    for name in calls:
        ratio = statistics.median(a / b for a, b in zip(times[name], times["llvmlite"], strict=True))
        print(f"| {name} | {seconds[name]:.2f} | {statistics.median(times[name]):.3f} | {ratio:.2f} |")


def aligned(*shape: int) -> Any:
    """Zeros at a multiple of 64 bytes."""
    size = int(np.prod(shape))
    whole = np.zeros(size + 16, np.float32)
    start = -whole.ctypes.data % 64 // 4
    return whole[start : start + size].reshape(shape)


def offsets_of(channels: int, size: int) -> Any:
    """Vectors from a window's first element to that of each code."""
    channel, row, column = np.indices((channels, 3, 3))
    return ((channel * (size + 2) + row) * (size + 2) + column).astype(np.int32)


def by_llvmlite(source: Any, target: Any, packed: list[Any], size: int) -> Callable[[], None]:
    """The library's kernel."""
    kernel: Kernel = convolution(Tile(4, 4))
    rows, codes, values, bias, offsets = packed
    bits = np.array([-np.inf, np.inf], np.float32).view(np.int32).tolist()
    known = {"source": source, "target": target, "rows": rows, "codes": codes, "values": values}
    known |= {"bias": bias, "offsets": offsets, "channels": len(bias), "blocks": 1}
    known |= {"segments": 1, "together": 1}
    known |= {"parts": 1, "depth": 1, "height": size, "width": size, "low": bits[0], "high": bits[1]}
    known |= {"source_row": (size + 2) * 64, "target_channel": size**2 * 64, "target_row": size * 64}
    numbers = [known.get(name, 0) for name in kernel.arguments]
    cells = np.array([n.ctypes.data if isinstance(n, np.ndarray) else n for n in numbers], np.int64)
    code = native._load(native._compile(kernel.text))
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(code)
    return lambda: function(cells.ctypes.data, 0, 1)


def by_c(source: Any, target: Any, packed: list[Any], size: int) -> Callable[[], None]:
    """The system's C compiler."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "kernel.c").write_text(SOURCE)
        flags = ["-O3", "-march=native", "-mprefer-vector-width=512", "-shared", "-fPIC"]
        subprocess.run(["cc", *flags, "kernel.c", "-o", "kernel.so"], cwd=folder, check=True)
        library = ctypes.CDLL(f"{folder}/kernel.so")
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (source, target, *packed)]
    numbers = [ctypes.c_int64(number) for number in (len(packed[3]), size, size**2 * 64)]
    return lambda: library.run(*pointers, *numbers)


def by_numba(source: Any, target: Any, packed: list[Any], size: int) -> Callable[[], None]:
    """Numba's compiler of Python."""
    sys.path.remove(str(Path(__file__).parent))  # where `coverage` is a script, which Numba would import
    import numba

    function = numba.njit(error_model="numpy")(loops)
    return lambda: function(source, target, *packed[:4])


if __name__ == "__main__":
    main()
