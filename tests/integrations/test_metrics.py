"""The metrics of a cycle, and where they go without a framework."""

import sys

import pytest
import torch
from helpers import masked_mlp
from processes import run_source
from torch import nn

import sparsefx
from sparsefx.errors import ArgumentError, MissingPackageError
from sparsefx.integrations import CsvWriter, CycleLog, TensorBoardWriter, cycle_metrics

TOTALS = ["cycle", "prune_rate", "density", "pruned", "grown", "empty_inputs", "empty_outputs"]
PER_LAYER = ["density", "pruned", "grown", "empty_inputs", "empty_outputs"]


def training(every=1):
    model = masked_mlp(6, 8, 3)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return sparsefx.SparseMomentum(sgd, model, cycles=5, every=every)


def step(optimizer):
    optimizer.zero_grad()
    optimizer.model(torch.ones(2, 6)).square().sum().backward()
    optimizer.step()


def test_names_are_the_same_before_and_after_a_cycle():
    optimizer = training()
    before = cycle_metrics(optimizer)
    step(optimizer)
    after = cycle_metrics(optimizer)
    names = [f"sparse/{name}" for name in TOTALS] + [
        f"{what}/{layer}" for what in PER_LAYER for layer in "02"
    ]
    assert sorted(before) == sorted(after) == sorted(names)
    assert list(cycle_metrics(optimizer, layers=False)) == list(after)[: len(TOTALS)]
    assert (before["sparse/cycle"], before["sparse/pruned"], before["sparse/prune_rate"]) == (0, 0, 0.0)
    assert {type(value) for value in after.values()} <= {int, float}


def test_numbers_are_those_of_the_record_and_the_model():
    optimizer = training()
    step(optimizer)
    metrics, record, report = (
        cycle_metrics(optimizer),
        optimizer.history[-1],
        sparsefx.report(optimizer.model),
    )
    assert metrics["sparse/cycle"] == record.cycle == 1
    assert metrics["sparse/prune_rate"] == record.prune_rate
    assert metrics["sparse/density"] == pytest.approx(report.density)
    for told, layer in zip(record.layers, report.layers, strict=True):
        assert metrics[f"density/{layer.name}"] == told.density == layer.density
        assert (metrics[f"pruned/{told.name}"], metrics[f"grown/{told.name}"]) == (told.pruned, told.grown)
    assert (
        metrics["sparse/grown"]
        == metrics["sparse/pruned"]
        == sum(layer.pruned for layer in record.layers)
        > 0
    )


def test_empty_channels_are_those_without_active_weights():
    net = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose1d(3, 5, 2), nn.Linear(4, 7))
    model = sparsefx.sparsify(net, density=1.0, trace=False)
    grouped, transposed, linear = sparsefx.masked_weights(model)
    for masked, rows, columns in ((grouped, [0, 1], []), (transposed, [2], [0, 4]), (linear, [3], [1])):
        mask = masked.mask.clone()
        mask[rows], mask[:, columns] = False, False
        masked.set_mask(mask)
    linear.weight.data.zero_()  # active all the same
    optimizer = sparsefx.SparseMomentum(torch.optim.SGD(model.parameters(), lr=0.1), model, cycles=1)
    metrics = cycle_metrics(optimizer)
    empty = [[metrics[f"empty_{side}/{index}"] for side in ("inputs", "outputs")] for index in range(3)]
    assert empty == [[0, 2], [1, 2], [1, 1]]
    assert (metrics["sparse/empty_inputs"], metrics["sparse/empty_outputs"]) == (2, 5)


def test_dense_layers_frozen_layers_and_wrapped_models():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model = sparsefx.sparsify(net, density=0.5, dense="2", trace=False)
    model[1].weight.requires_grad_(False)
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    optimizer = sparsefx.SparseMomentum(sgd, nn.DataParallel(model), cycles=2, every=1)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    metrics = cycle_metrics(optimizer)
    assert [name for name in metrics if name.startswith("density/")] == ["density/0", "density/1"]
    assert metrics["pruned/0"] > 0 == metrics["pruned/1"]


def test_a_log_hears_of_each_cycle_once():
    optimizer, heard = training(every=2), []
    step(optimizer)
    step(optimizer)
    log = CycleLog(
        optimizer, lambda metrics, done: heard.append((done, metrics["sparse/cycle"])), layers=False
    )
    log.update()
    for _ in range(4):
        step(optimizer)
        log.update()
        log.update()
    assert heard == [(4, 2), (6, 3)]


def test_a_log_made_before_a_checkpoint_is_loaded_does_not_repeat_its_cycles():
    first, resumed, heard = training(), training(), []
    step(first)
    log = CycleLog(resumed, lambda metrics, done: heard.append((done, metrics["sparse/cycle"])), layers=False)
    resumed.model.load_state_dict(first.model.state_dict())
    resumed.load_state_dict(first.state_dict())
    log.update()
    step(resumed)
    log.update()
    assert heard == [(2, 2)]


def test_optimizer_without_a_sparse_one_inside():
    with pytest.raises(ArgumentError, match="optimizer is a SGD without a SparseOptimizer inside"):
        cycle_metrics(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1))


def test_csv_goes_on_and_refuses_other_columns(tmp_path):
    path = tmp_path / "cycles.csv"
    CsvWriter(path)({"a/b": 0.5}, 1)
    CsvWriter(path)({"a/b": 0.25}, 2)
    assert path.read_text().splitlines() == ["step,a/b", "1,0.5", "2,0.25"]
    with pytest.raises(ArgumentError, match="other columns: c"):
        CsvWriter(path)({"a/b": 0.25, "c": 1}, 3)
    with pytest.raises(ArgumentError, match="in another order"):
        CsvWriter(path, ["a/b", "step"])
    assert len(path.read_text().splitlines()) == 3


def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    optimizer, write = training(), TensorBoardWriter(tmp_path)
    log = CycleLog(optimizer, write)
    for _ in range(2):
        step(optimizer)
        log.update()
    write.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == set(cycle_metrics(optimizer))
    assert [(event.step, event.value) for event in events.Scalars("sparse/cycle")] == [(1, 1), (2, 2)]


def test_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingPackageError, match="pip install tensorboard"):
        TensorBoardWriter(tmp_path)


def test_frameworks_are_optional_and_loaded_by_name_only(tmp_path):
    """In a process of its own, where nothing has loaded them yet."""
    names = ["accelerate", "lightning", "transformers"]
    code = (
        "import sys, sparsefx, sparsefx.integrations\n"
        "loaded = {'accelerate', 'lightning', 'transformers', 'tensorboard'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "import importlib\n"
        f"for name in {names!r}:\n"
        "    sys.modules[name] = None\n"
        "    try:\n        importlib.import_module(f'sparsefx.integrations.{name}')\n"
        "    except sparsefx.MissingPackageError as error:\n        print(error)\n"
    )
    found = run_source(code, tmp_path)
    assert found.returncode == 0, found.stderr
    assert all(f"pip install {name}" in found.stdout for name in names)
