"""SparseCallback in a Hugging Face Trainer: what a user has there goes on working."""

import json

import pytest
import torch
from helpers import assert_same
from safetensors.torch import load_file
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)

import sparsefx
from sparsefx.errors import ArgumentError
from sparsefx.integrations import cycle_metrics
from sparsefx.integrations.transformers import SparseCallback, conv1d_to_linear

ROWS, BATCH = 40, 4


class Seen(Trainer):
    """Keeps what the masks were like in every batch."""

    def training_step(self, model, *args, **kwargs):
        masked = sparsefx.masked_weights(model)
        self.active = [*getattr(self, "active", []), sum(int(m.mask.sum()) for m in masked)]
        assert all(m.is_enforced() for m in masked)
        return super().training_step(model, *args, **kwargs)


def gpt2(dropout=0.1):
    torch.manual_seed(0)
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    sizes = {"vocab_size": 32, "n_positions": 16, "n_embd": 32, "n_layer": 1, "n_head": 2}
    config = GPT2Config(**sizes, **rates, use_cache=False, bos_token_id=0, eos_token_id=0)
    return conv1d_to_linear(GPT2LMHeadModel(config))


def rows(count=ROWS):
    tokens = torch.randint(0, 32, (count, 16), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in tokens]


def trainer(folder, *, method="sparse-momentum", changes=None, layers=True, kind=Seen, **options):
    arguments = {k: v for k, v in options.items() if k not in ("optimizers", "callbacks", "model")}
    made = kind(
        options.get("model") or sparsefx.sparsify(gpt2(), density=0.2, trace=False),
        TrainingArguments(
            str(folder),
            **{
                "num_train_epochs": 4,
                "per_device_train_batch_size": BATCH,
                "learning_rate": 1e-2,
                "use_cpu": True,
                "report_to": "none",
                "disable_tqdm": True,
                "save_strategy": "no",
                "dataloader_pin_memory": False,
                **arguments,
            },
        ),
        train_dataset=rows(),
        eval_dataset=rows(8),
        optimizers=options.get("optimizers", (None, None)),
        callbacks=options.get("callbacks"),
    )
    made.add_callback(SparseCallback(made, method, layers=layers, **(changes or {})))
    return made


def sparse(trainer):
    """The optimizer in Accelerate's wrapper."""
    return trainer.optimizer.optimizer


def steps_of(trainer):
    return [record.step for record in sparse(trainer).history]


@pytest.mark.parametrize(
    ("options", "steps", "every"),
    [
        pytest.param({}, 40, 4, marks=pytest.mark.slow),
        ({"gradient_accumulation_steps": 3}, 16, 2),
        pytest.param({"max_grad_norm": 0.1}, 40, 4, marks=pytest.mark.slow),
        ({"bf16": True}, 40, 4),
        ({"max_steps": 25}, 25, 3),
        ({"optim": "adafactor", "lr_scheduler_type": "cosine"}, 40, 4),
    ],
)
def test_the_planned_cycles_and_the_density_at_every_step(tmp_path, options, steps, every):
    run = trainer(tmp_path, **options)
    run.train()
    assert sparse(run).steps_done == run.state.global_step == steps
    assert steps_of(run) == [*range(every, steps, every)]
    assert len(set(run.active)) == 1
    assert type(run.model) is GPT2LMHeadModel
    assert run.lr_scheduler.get_last_lr()[0] == pytest.approx(0.0)


def test_a_long_training_has_a_cycle_after_each_epoch_but_the_last(tmp_path):
    run = trainer(tmp_path, num_train_epochs=10, gradient_accumulation_steps=4)
    run.train()
    assert steps_of(run) == [*range(3, 30, 3)]


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("sparse-momentum", {}),
        pytest.param("rigl", {"every": 3}, marks=pytest.mark.slow),
        pytest.param("set", {}, marks=pytest.mark.slow),
    ],
)
def test_resumed_training_ends_bit_for_bit_the_same(tmp_path, method, changes):
    options = {"save_strategy": "steps", "save_steps": 15, "method": method, "changes": changes}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    resumed = trainer(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-15"))
    assert sparse(whole).history == sparse(resumed).history
    assert sparse(whole).history
    for one, other in ((whole.model, resumed.model), (whole.optimizer, resumed.optimizer)):
        assert_same(one.state_dict(), other.state_dict())
    logged = [
        [e["sparse/cycle"] for e in run.state.log_history if "sparse/cycle" in e] for run in (whole, resumed)
    ]
    assert logged[0] == logged[1]


def test_a_saved_model_has_its_masks(tmp_path):
    run = trainer(tmp_path)
    run.train()
    run.save_model(str(tmp_path / "saved"))
    fresh = sparsefx.sparsify(gpt2(), density=0.2, trace=False)
    fresh.load_state_dict(
        load_file(tmp_path / "saved" / "model.safetensors"), strict=False
    )  # lacks tied weights
    assert_same(fresh.state_dict(), run.model.state_dict())


def test_every_cycle_is_logged(tmp_path):
    run = trainer(tmp_path)
    run.train()
    logged = [entry for entry in run.state.log_history if "sparse/cycle" in entry]
    assert [(e["step"], e["sparse/cycle"]) for e in logged] == [
        (r.step, r.cycle) for r in sparse(run).history
    ]
    last = cycle_metrics(run.optimizer)
    assert {name: logged[-1][name] for name in last} == last
    json.dumps(run.state.log_history)


def test_totals_alone(tmp_path):
    run = trainer(tmp_path, layers=False, max_steps=4)
    run.train()
    names = {name for entry in run.state.log_history for name in entry}
    assert "sparse/density" in names
    assert not any(name.startswith("density/") for name in names)


def test_tensorboard_of_the_trainer(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    run = trainer(tmp_path, report_to="tensorboard", max_steps=10)
    run.train()
    (file,) = (tmp_path / "logs").rglob("events.*")
    scalars = EventAccumulator(str(file)).Reload()
    assert [event.step for event in scalars.Scalars("train/sparse/density")] == steps_of(run)


def test_early_stopping_and_the_best_model(tmp_path):
    run = trainer(
        tmp_path,
        callbacks=[EarlyStoppingCallback(1, 10.0)],
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
    )
    run.train()
    assert sparse(run).steps_done == 20
    masked = sparsefx.masked_weights(run.model)
    assert all(m.is_enforced() for m in masked)
    assert sum(int(m.mask.sum()) for m in masked) == run.active[0]


def test_export_gives_the_same_logits(tmp_path):
    run = trainer(tmp_path)
    run.train()
    tokens = torch.randint(0, 32, (3, 9))
    model = run.model.eval()
    compact = sparsefx.export(model, (tokens[:2, :8],))
    torch.testing.assert_close(compact(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-5)


def test_optimizers_of_the_users_are_wrapped(tmp_path):
    model = sparsefx.sparsify(gpt2(), density=0.2, trace=False)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(sgd, 10, gamma=0.5)
    run = trainer(tmp_path, model=model, optimizers=(sgd, schedule))
    run.train()
    assert sparse(run).wrapped is sgd
    assert steps_of(run) == [*range(4, 40, 4)]
    assert sgd.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**4)


def test_an_optimizer_that_is_sparse_already_is_left_alone(tmp_path):
    model = sparsefx.sparsify(gpt2(), density=0.2, trace=False)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2)
    own = sparsefx.SparseMomentum(adam, model, cycles=4, every=10)
    run = trainer(tmp_path, model=model, optimizers=(own, None), changes={"every": 99})
    run.train()
    assert sparse(run) is own
    assert steps_of(run) == [10, 20, 30, 40]
    assert [entry["step"] for entry in run.state.log_history if "sparse/cycle" in entry] == [10, 20, 30, 40]


def test_a_second_training_has_cycles_of_its_own(tmp_path):
    run = trainer(tmp_path)
    for _ in range(2):
        run.train()
        assert steps_of(run) == [*range(4, 40, 4)]
    assert len(set(run.active)) == 1


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(rows())


def test_a_stream_of_unknown_length(tmp_path):
    run = trainer(tmp_path, max_steps=20)
    run.train_dataset = Stream()
    run.train()
    assert steps_of(run) == [*range(2, 20, 2)]


def test_what_cannot_work_is_told(tmp_path):
    with pytest.raises(ArgumentError, match=r"trainer must be a transformers.Trainer, not str"):
        SparseCallback("sparse-momentum")
    with pytest.raises(ArgumentError, match="method='snip' scores the dense network first"):
        trainer(tmp_path, method="snip")
    with pytest.raises(ArgumentError, match=r"every=99: .* no cycle in 40 optimizer steps"):
        trainer(tmp_path, changes={"every": 99}).train()
    with pytest.raises(ArgumentError, match="no masked weights; pass it through"):
        trainer(tmp_path, model=gpt2(), kind=Trainer).train()
    run = trainer(tmp_path)
    run.remove_callback(SparseCallback)
    with pytest.raises(ArgumentError, match="leave it among the trainer's callbacks"):
        run.train()


def test_conv1d_is_the_linear_layer_it_is():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=32, n_layer=2, n_head=2, use_cache=False)
    model = GPT2LMHeadModel(config).eval()
    tokens = torch.randint(0, 32, (2, 9))
    before, count = model(tokens).logits, sum(p.numel() for p in model.parameters())
    assert conv1d_to_linear(model) is model
    torch.testing.assert_close(model(tokens).logits, before)
    assert sum(p.numel() for p in model.parameters()) == count
    assert sum(isinstance(module, nn.Linear) for module in model.modules()) == 4 * 2 + 1
    assert not any(module.training for module in model.modules())
