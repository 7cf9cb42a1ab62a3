"""The one training loop: every method, network and recipe, from the first step to an entry in the ledger."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsefx.archive import save
from sparsefx.errors import ArgumentError
from sparsefx.experiments.data import Data, Split, epoch_generator, load_data
from sparsefx.experiments.ledger.files import write_whole
from sparsefx.experiments.ledger.record import EpochRow, Run
from sparsefx.experiments.run.analyse import ANALYSES
from sparsefx.experiments.run.checkpoint import load_checkpoint, save_checkpoint, saved, set_generators
from sparsefx.experiments.run.evaluate import Score, evaluate
from sparsefx.experiments.run.finish import finished_run
from sparsefx.experiments.run.interrupt import Interrupt
from sparsefx.experiments.run.logs.log import Log, Progress
from sparsefx.experiments.run.recipes.recipe import Recipe, learning_rate, shortened
from sparsefx.experiments.run.settings import Settings
from sparsefx.experiments.run.setup import Setup
from sparsefx.experiments.run.start import start_training
from sparsefx.export import export as export_model
from sparsefx.masking.masks import masked_weights

_HOPELESS = 10  # one loss that is not finite may be float16's; so many in a row are the network's

_shortened = lru_cache(maxsize=1)(shortened)  # it is asked for at every step


class Experiment:
    """One run, which can stop at any step and go on.

    Args:
        settings: what to run.
        data: the data; read from ``settings.root`` by default.

    Attributes:
        settings: what is run.
        data: the data set.
        training: the method at work.
        step: optimizer steps done in this round.
        diverged: whether the loss has ceased to be finite, and training has stopped for it.
        rows: an :class:`EpochRow` for each epoch so far.

    Raises:
        ArgumentError: the data is not there, or the method cannot be run so.
    """

    def __init__(self, settings: Settings, data: Data | None = None) -> None:
        self.settings = settings
        recipe = settings.recipe
        self.data = data or load_data(
            recipe.data,
            settings.root,
            validation=recipe.validation,
            normalisation=recipe.normalisation,
            device=settings.device,
        )
        self.epoch_steps = recipe.steps_per_epoch(len(self.data.train))
        if not self.epoch_steps:
            raise ArgumentError(
                f"drop_last=True and batch_size={recipe.batch_size!r} leave no batch of "
                f"{len(self.data.train)} training samples; choose a smaller one"
            )
        self.training = start_training(settings, self.data, self.epoch_steps)
        self.model = self.training.model
        if settings.compile:
            self.model.compile()
        self.scaler = torch.amp.GradScaler(settings.device, enabled=settings.precision == "float16")
        self.step = 0
        self.seconds = 0.0
        self.diverged = False
        self._not_finite = torch.zeros((), device=settings.device)  # losses in a row
        self.rows: list[EpochRow] = []
        self._rate = recipe.lr  # of the last step
        self._loss_sum, self._loss_steps = torch.zeros((), device=settings.device), 0

    @property
    def setup(self) -> Setup:
        """What is trained."""
        return Setup(self.training.model, self.data, self.settings)

    @property
    def configuration(self) -> dict[str, Any]:
        """What the ledger files it under."""
        return self.settings.configuration(self.data.name)

    @property
    def epoch(self) -> int:
        """Epochs done, those of earlier rounds included."""
        return self.rows[-1].epoch if self.rows else 0

    @property
    def progress(self) -> str:
        """How far it is, in words."""
        return f"{self.epoch} epochs and {(self.training.first_step + self.step) % self.epoch_steps} steps"

    def run(
        self,
        folder: Path,
        *,
        log: Log,
        interrupt: Interrupt,
        checkpoint_seconds: float = 600,
        analyses: Iterable[str] = (),
    ) -> Run | None:
        """Train to the end, until the loss has ceased to be finite, or until interrupted.

        Args:
            folder: where checkpoints are kept; the last one is there until :meth:`forget`.
            log: is told of every epoch.
            interrupt: asked after every step; once it says so, a checkpoint is written.
            checkpoint_seconds: between two checkpoints.
            analyses: what to measure on the trained network, names in :data:`ANALYSES`.

        Returns:
            The finished run; None if it was interrupted. One that has :attr:`diverged` ends with that epoch,
            without the method's final decision and analyses.

        Raises:
            OSError: it was interrupted and the checkpoint could not be written.

        Warns:
            UserWarning: another checkpoint could not be written.
        """
        began = last = time.monotonic()
        before = self.seconds
        for _ in self._steps(log):
            now = time.monotonic()
            self.seconds = before + now - began
            if interrupt.is_set:
                self.save(folder)
                return None
            # What follows the last step may fail, and the training must not be lost by it.
            is_over = self.training.is_last and self.step == self.training.steps
            if is_over or now - last >= checkpoint_seconds:
                self._save_if_possible(folder)
                last = now
        return self._finish(analyses, interrupt)

    def save(self, folder: Path) -> Path:
        """Write a checkpoint, whole or not at all."""
        state = {
            "configuration": self.configuration,
            "model": self.training.model.state_dict(),
            "training": self.training.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "rows": [vars(row) for row in self.rows],
            "loss": (self._loss_sum, self._loss_steps),
        }
        return save_checkpoint(folder / "checkpoint.pt", state, self.settings.device)

    def _save_if_possible(self, folder: Path) -> None:
        try:
            self.save(folder)
        except OSError as error:
            warnings.warn(f"no checkpoint was written, training goes on: {error}", stacklevel=3)

    def resume(self, folder: Path) -> bool:
        """Go on from the folder's checkpoint; False if there is none.

        Raises:
            CheckpointError: it is damaged, or of another run.
        """
        path = folder / "checkpoint.pt"
        if not path.exists():
            return False
        state = load_checkpoint(path, self.configuration, self.settings.device)
        self.training.model.load_state_dict(state["model"])
        self.training.load_state_dict(state["training"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.rows = [EpochRow(**{**row, "densities": tuple(row["densities"])}) for row in state["rows"]]
        self._loss_sum, self._loss_steps = state["loss"]
        set_generators(state["generators"], self.settings.device)
        return True

    def keep_model(self, folder: Path, *, export: bool = False) -> nn.Module | None:
        """Write the trained network's state dict, masks included, to ``model.pt``.

        Args:
            folder: where to.
            export: also write the exported network to ``compact.safetensors``, for :func:`sparsefx.load`.

        Returns:
            The exported network, if there is one.
        """
        model = self.training.model
        write_whole(folder / "model.pt", saved(model.state_dict()))
        if not export:
            return None
        inputs, _ = next(iter(self.data.test.batches(2)))
        compact = export_model(model.eval(), (inputs,))
        save(compact, folder / "compact.safetensors")
        return compact

    def forget(self, folder: Path) -> None:
        """Delete the checkpoint of a run whose result is safe."""
        (folder / "checkpoint.pt").unlink(missing_ok=True)

    def _steps(self, log: Log) -> Iterator[None]:
        """Train; yields after every step, when all may be saved."""
        for _ in self.training.rounds():
            while self.step < self.training.steps:
                yield from self._epoch(log)
                if self.diverged:
                    return
            self.step = 0

    def _epoch(self, log: Log) -> Iterator[None]:
        """What is left of an epoch."""
        recipe, done = self.settings.recipe, self.training.first_step + self.step
        generator = epoch_generator(self.settings.seed, self.epoch)
        batches = self.data.train.batches(
            recipe.batch_size,
            generator,
            augment=recipe.augment,
            start=done % self.epoch_steps,
            drop_last=recipe.drop_last,
        )
        self.model.train()
        for inputs, targets in batches:
            self._learn(inputs, targets)
            ends = (self.training.first_step + self.step) % self.epoch_steps == 0
            is_last = self.step == self.training.steps
            self.diverged = self._step_is_looked_at and float(self._not_finite) >= _HOPELESS
            if ends or is_last or self.diverged:
                self._end_epoch(log)
            log.step(Progress(self.training, self.step, self.epoch))
            yield
            if is_last or self.diverged:
                return

    @property
    def _step_is_looked_at(self) -> bool:
        """Whether to ask for the loss, for which the device would have to be waited for."""
        return self.settings.device == "cpu" or self.step % 100 == 0

    def _learn(self, inputs: Tensor, targets: Tensor) -> None:
        optimizer = self.training.optimizer
        self._rate = self.learning_rate
        factor = self._rate / self.settings.recipe.lr
        for group in optimizer.param_groups:
            group["lr"] = factor * group.setdefault("initial_lr", group["lr"])
        optimizer.zero_grad()
        with self.settings.autocast():
            output = self.model(self.settings.formatted(inputs))
            loss = F.cross_entropy(output, targets, label_smoothing=self.settings.recipe.label_smoothing)
        self._loss_sum += loss.detach().float()
        self._loss_steps += 1
        self._not_finite = torch.where(loss.detach().isfinite(), 0, self._not_finite + 1)
        self.scaler.scale(loss + self.training.penalty()).backward()
        self.scaler.step(optimizer)
        self.scaler.update()
        self.step += 1

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        done = self.training.first_step + self.step
        return self.training.learning_rate * learning_rate(self._round_recipe, done, self.epoch_steps)

    @property
    def _round_recipe(self) -> Recipe:
        """The recipe over this round's epochs; a rewound round goes on by that of the first."""
        training, recipe = self.training, self.settings.recipe
        if not training.round or training.method.rounds is None or training.method.rounds.rewind is not None:
            return recipe
        return _shortened(recipe, max(1, round(training.steps / self.epoch_steps)))

    def _end_epoch(self, log: Log) -> None:
        history = self.training.optimizer.history
        cycled = bool(history) and history[-1].step > self.training.optimizer.steps_done - self.epoch_steps
        test = self._score(self.data.test)
        self.diverged |= bool(self._not_finite) and not math.isfinite(test.loss)
        row = EpochRow(
            epoch=self.epoch + 1,
            train_loss=float(self._loss_sum) / max(1, self._loss_steps),
            validation_error=None
            if self.data.validation is None
            else self._score(self.data.validation).error,
            test_error=test.error,
            learning_rate=self._rate,
            prune_rate=history[-1].prune_rate if cycled else None,
            densities=tuple(masked.density for masked in masked_weights(self.training.model)),
        )
        self.rows.append(row)
        self._loss_sum.zero_()
        self._loss_steps = 0
        log.epoch(row)
        self.model.train()

    def _finish(self, analyses: Iterable[str], interrupt: Interrupt) -> Run | None:
        explored = self.training.optimizer.explored
        if self.diverged:
            analyses = ()
        else:
            self.training.finish()
        validation = None if self.data.validation is None else self._score(self.data.validation)
        measured = {}
        for name in analyses:
            if interrupt.is_set:
                return None
            print(f"measuring {name}", file=sys.stderr)
            measured[name] = ANALYSES[name].measure(self.setup)
        return finished_run(
            self.setup,
            self.rows,
            seconds=self.seconds,
            test=self._score(self.data.test),
            validation=validation,
            explored=explored,
            analyses=measured,
        )

    def _score(self, split: Split) -> Score:
        return evaluate(self.model, split, self.settings)
