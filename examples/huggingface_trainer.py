"""Train a small sparse GPT-2 with the Hugging Face Trainer, export it, and compare.

    pip install '.[transformers]'
    python examples/huggingface_trainer.py
    python examples/huggingface_trainer.py --small        # seconds: to see that it runs

It learns the characters of a text that every Python has: the source of ``argparse``. Nothing is downloaded.
Of sparsefx there are four lines: ``conv1d_to_linear`` (for GPT-2 alone), ``sparsify``, the callback and
``export``. After a kill, ``--resume`` goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import sparsefx
from sparsefx.integrations import cycle_metrics
from sparsefx.integrations.transformers import SparseCallback, conv1d_to_linear

LENGTH = 64  # characters that the model sees at once


def rows(text: str) -> list[dict[str, Tensor]]:
    """The text in pieces, each character by its number; those outside ASCII are left out."""
    characters = torch.tensor([ord(c) for c in text if ord(c) < 128])
    pieces = characters[: len(characters) // LENGTH * LENGTH].view(-1, LENGTH)
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


def main() -> None:
    """Train, export, compare."""
    options = arguments()
    torch.manual_seed(options.seed)
    size = (
        {"n_embd": 32, "n_layer": 1, "n_head": 2}
        if options.small
        else {"n_embd": 128, "n_layer": 4, "n_head": 4}
    )
    config = GPT2Config(
        vocab_size=128, n_positions=LENGTH, bos_token_id=0, eos_token_id=0, use_cache=False, **size
    )
    model = conv1d_to_linear(GPT2LMHeadModel(config))
    model = sparsefx.sparsify(model, density=options.density, trace=False)  # keeps the model's class

    pieces = rows(inspect.getsource(argparse))[: 80 if options.small else None]
    held_out = len(pieces) // 10
    trainer = Trainer(
        model,
        TrainingArguments(
            str(options.runs),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=16,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            weight_decay=0.01,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            report_to="none",
            use_cpu=options.small,
            bf16=options.bf16,
            dataloader_pin_memory=False,
            seed=options.seed,
        ),
        train_dataset=pieces[held_out:],
        eval_dataset=pieces[:held_out],
    )
    trainer.add_callback(SparseCallback(trainer, layers=False))
    trainer.train(resume_from_checkpoint=options.resume)

    loss = trainer.evaluate()["eval_loss"]

    model = trainer.model.cpu().eval()
    tokens = torch.stack([row["input_ids"] for row in pieces[:held_out]])
    compact = sparsefx.export(model, (tokens[:2],))
    with torch.no_grad():
        difference = (compact(tokens).logits - model(tokens).logits).abs().max().item()
    density = cycle_metrics(trainer.optimizer)["sparse/density"]
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, compact))
    print(f"loss on held-out text {loss:.3f}")
    print(f"density {density:.4f}, parameters {before:,} -> {after:,}")
    print(f"largest difference of a logit {difference:.1e}")


def arguments() -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--small", action="store_true", help="a tiny model, a little text, two epochs")
    add("--epochs", type=int, help="default: 20, or 2 with --small")
    add("--density", type=float, default=0.2, help="default: %(default)s")
    add("--bf16", action="store_true", help="train in bfloat16")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--runs", type=Path, default=Path("runs/huggingface"), help="for checkpoints")
    add("--resume", action="store_true", help="go on from the last checkpoint in --runs")
    options = parser.parse_args()
    options.epochs = options.epochs or (2 if options.small else 20)
    return options


if __name__ == "__main__":
    main()
