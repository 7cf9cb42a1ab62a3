"""A sparse network in a training loop of one's own that Accelerate prepares.

    pip install '.[accelerate,examples]'
    python examples/accelerate_digits.py
    accelerate launch --mixed_precision bf16 examples/accelerate_digits.py

Scikit-learn's bundled digits, seconds on one core. Of sparsefx there are four lines: ``sparsify``, the
optimizer, the log, ``export``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sparsefx
from sparsefx.integrations import CsvWriter, CycleLog, cycle_metrics
from sparsefx.integrations.accelerate import sparse_optimizer


def main() -> None:
    """Train, export, compare."""
    options = arguments()
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32).div(8).sub(1), torch.tensor(digits.target)
    loader = DataLoader(TensorDataset(x[:1297], y[:1297]), batch_size=32, shuffle=True)

    accelerator = Accelerator(gradient_accumulation_steps=2)
    model: nn.Module = nn.Sequential(
        nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    model = sparsefx.sparsify(model, density=0.05)
    sgd = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3)
    optimizer = sparse_optimizer(accelerator, sgd, model, loader, epochs=options.epochs)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 200, gamma=0.3)
    prepared, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    write = accelerator.on_main_process(CsvWriter(options.csv))
    log = CycleLog(optimizer, write)  # for the trackers of Accelerate: cycle_log(accelerator, optimizer)
    for _ in range(options.epochs):
        for inputs, labels in loader:
            with accelerator.accumulate(prepared):
                accelerator.backward(F.cross_entropy(prepared(inputs), labels))
                accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                log.update()

    model = accelerator.unwrap_model(prepared).cpu().eval()
    compact = sparsefx.export(model, (x[:2],))
    torch.testing.assert_close(compact(x), model(x), rtol=1e-4, atol=1e-4)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, compact))
    density = cycle_metrics(optimizer)["sparse/density"]
    accuracy = (compact(x[1297:]).argmax(1) == y[1297:]).float().mean().item()
    accelerator.print(f"density {density:.4f}, parameters {before:,} -> {after:,}")
    accelerator.print(f"test accuracy of the exported network {accuracy:.2%}")


def arguments() -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--csv", type=Path, default=Path("cycles.csv"), help="metrics of every cycle")
    return parser.parse_args()


if __name__ == "__main__":
    main()
