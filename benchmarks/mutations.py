"""What the quick tests catch: faults made by hand, and the tests of the quick run that notice them.

    python benchmarks/mutations.py [WORD ...]

Each fault is one changed line. It is made in a temporary copy of the checkout, and the named quick tests run
there until one fails. With words, only the faults whose file or description has one of them. Prints a table
in Markdown; the exit status is 1 if a fault is missed, and 2 if a test fails without one.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("sparsefx", "passes", "tests")

# Processes that have imported what is slow to import, so that a fault takes seconds. Not on Windows.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch._dynamo", "torchvision"])


@dataclass(frozen=True)
class Fault:
    """One line made wrong.

    Attributes:
        file: of the checkout.
        old: what stands there, once.
        new: what stands there instead.
        what: what is wrong then.
        tests: the quick tests that should notice, as pytest takes them.
    """

    file: str
    old: str
    new: str
    what: str
    tests: tuple[str, ...]

    def makes(self, text: str) -> str:
        """The file's text with the fault in it.

        Raises:
            ValueError: the line is not there, or more than once.
        """
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} has {self.old!r} {text.count(self.old)} times, not once")
        return text.replace(self.old, self.new)


_REWRITES = "tests/passes/rewrites/test_passes.py"
_OPS = "tests/passes/analysis/test_ops.py"
_TRAPS = "tests/export/test_traps.py"
_CONVOLUTION = "tests/kernels/runtime/test_convolution.py"
_GRADIENTS = "tests/kernels/training/test_gradients.py"
_PACKING = "tests/masking/test_packing.py"
_WINDOW = "tests/optim/test_gradient_window.py"

FAULTS = (
    Fault(
        "passes/rewrites/fold_batchnorm.py",
        "norm.running_var.double() + norm.eps",
        "norm.running_var.double()",
        "a folded BatchNorm forgets eps",
        (f"{_REWRITES}::test_fold_batchnorm_into_convolutions_and_linears",),
    ),
    Fault(
        "passes/rewrites/fold_batchnorm.py",
        "if len(values[pair[0]][0].shape) == _batched_rank(pair[1])",
        "",
        "a BatchNorm over positions is folded into channels",
        (f"{_REWRITES}::test_fold_batchnorm_leaves_what_it_cannot_fold",),
    ),
    Fault(
        "passes/rewrites/fold_constant_channels.py",
        "if is_evenly_padded(layer):",
        "if True:",
        "a constant is folded across zero padding",
        (f"{_REWRITES}::test_fold_constants_into_a_carrier_where_zeros_are_padded",),
    ),
    Fault(
        "passes/rewrites/fold_constant_channels.py",
        "varies = varies | its_varies | (value != its_value)",
        "varies = varies | its_varies",
        "constants of two calls are taken to be equal",
        (f"{_TRAPS}::test_constants_that_differ_from_call_to_call_stay",),
    ),
    Fault(
        "passes/rewrites/align_head_dims.py",
        "            layer.bias.copy_(layer.bias[index])\n",
        "",
        "heads are reordered without their biases",
        (f"{_REWRITES}::test_line_up_brings_useful_dimensions_to_the_front",),
    ),
    Fault(
        "passes/rewrites/shrink.py",
        "follow(replacement, old, lambda labels: kept.cut(value, labels))",
        "follow(replacement, old, lambda labels: labels)",
        "a cut parameter names the rows of the whole one as its origin",
        ("tests/export/test_fine_tuning.py::test_steps_on_the_compact_model_are_those_on_the_original",),
    ),
    Fault(
        "passes/analysis/ops/contraction.py",
        "return torch.zeros_like(channels).scatter(1, places, True) & groups[:, None] | channels",
        "return channels",
        "groups of a convolution keep unequal numbers of channels",
        ("tests/export/test_fine_tuning.py::test_groups_that_lose_other_channels_each", _OPS),
    ),
    Fault(
        "passes/analysis/ops/contraction.py",
        "uneven = varying if conv.spreads_evenly else varying | (value_in != 0)",
        "uneven = varying",
        "a constant stays one across zero padding",
        ("tests/export/test_export.py::test_a_constant_behind_zero_padding_is_none",),
    ),
    Fault(
        "passes/analysis/ops/contraction.py",
        "        kept.couple((left, -1), (right, -2))\n",
        "",
        "the two factors of a matrix product are cut apart",
        (f"{_OPS}::test_what_is_kept_is_computed_from_what_is_kept",),
    ),
    Fault(
        "passes/analysis/ops/reduction.py",
        "return divisor_override is None and (not any(padding) or not count_include_pad)",
        "return True",
        "an average over padding leaves a constant as it is",
        (f"{_OPS}::test_constants_are_constant_and_have_the_value",),
    ),
    Fault(
        "passes/analysis/ops/batch_norm.py",
        "torch.rsqrt(var + call.args[-1])",
        "torch.rsqrt(var)",
        "the constant behind a BatchNorm is computed without eps",
        (f"{_OPS}::test_constants_are_constant_and_have_the_value[batch_norm]",),
    ),
    Fault(
        "passes/regions/partition.py",
        "if part != own and part not in blocked:",
        "if part != own:",
        "two parts become one although a path leads out and back",
        ("tests/passes/regions/test_partition.py",),
    ),
    Fault(
        "sparsefx/cycle/rules/prune.py",
        "return layer.select_largest(-magnitudes(layer.weight), layer.mask, count)",
        "return layer.select_largest(magnitudes(layer.weight), layer.mask, count)",
        "the largest weights are pruned",
        ("tests/cycle/rules/test_prune.py",),
    ),
    Fault(
        "sparsefx/cycle/positions/select.py",
        "chosen[ties[: count - int(chosen.count_nonzero())]] = True",
        "chosen[ties.flip(0)[: count - int(chosen.count_nonzero())]] = True",
        "of equal scores the last is chosen",
        ("tests/cycle/positions/test_select.py",),
    ),
    Fault(
        "sparsefx/cycle/updates/prune_and_regrow.py",
        "math.ceil(wanted - _SLACK)",
        "math.ceil(wanted)",
        "a rounding error prunes one weight more",
        ("tests/cycle/test_cycle.py",),
    ),
    Fault(
        "sparsefx/cycle/updates/prune_and_regrow.py",
        "capped = min(rate, sparsity) if growing and sparsity < self.dense_threshold else rate",
        "capped = rate",
        "a nearly dense layer that grows is pruned at the full rate",
        ("tests/cycle/test_cycle.py",),
    ),
    Fault(
        "sparsefx/cycle/rules/decay.py",
        "return floor + 0.5 * (prune_rate - floor)",
        "return floor + 0.5 * prune_rate",
        "the cosine starts above the prune rate",
        ("tests/cycle/rules/test_decay.py",),
    ),
    Fault(
        "sparsefx/cycle/positions/allocate.py",
        "key=lambda i: (counts[i] - parts[i], i)",
        "key=lambda i: (counts[i] - parts[i], -i)",
        "of equal remainders the last is rounded up",
        ("tests/cycle/positions/test_allocate.py",),
    ),
    Fault(
        "sparsefx/kernels/ir/packed.py",
        "channel = channel + channel_out // (out // groups) * inputs",
        "channel = channel",
        "every group reads the channels of the first",
        (f"{_CONVOLUTION}::test_equals_torch",),
    ),
    Fault(
        "sparsefx/kernels/codegen/pooling.py",
        'code.or_(code.fcmp_ordered(">", value, largest), code.fcmp_unordered("uno", value, value))',
        'code.fcmp_ordered(">", value, largest)',
        "the largest of a window drops NaN",
        (f"{_CONVOLUTION}::test_a_window_with_nan_gives_nan",),
    ),
    Fault(
        "sparsefx/kernels/planner/moves.py",
        "(where[0] < 0) | (where[0] >= self.images)",
        "where[0] < 0",
        "lanes without an image read beyond the batch",
        (f"{_CONVOLUTION}::test_touches_only_its_own_memory",),
    ),
    Fault(
        "sparsefx/archive/file.py",
        "if _checksum(stream, found, header_end) != found[2].decode():",
        "if False:",
        "a damaged file is loaded",
        ("tests/archive/test_hostile.py::test_a_thousand_damaged_files",),
    ),
    Fault(
        "sparsefx/archive/file.py",
        "if len(found) != len(pairs):",
        "if False:",
        "a key that appears twice is taken",
        ("tests/archive/test_hostile.py::test_a_plan_that_is_no_json",),
    ),
    Fault(
        "sparsefx/archive/plan.py",
        "values.permute([order.index(dim) for dim in range(values.dim())])",
        "values.permute(list(order))",
        "dimensions of a loaded tensor are in the wrong order",
        ("tests/archive/test_archive.py::test_types_and_memory_orders",),
    ),
    Fault(
        "sparsefx/masking/mask_values.py",
        "weight.view(integer).mul_(mask.view(torch.int8))",
        "weight.mul_(mask)",
        "NaN and infinity outlive the mask",
        ("tests/masking/test_masks.py",),
    ),
    Fault(
        "sparsefx/masking/load_masks.py",
        "masked = local(weight.detach()).masked_fill(inactive, 0)",
        "masked = local(weight.detach())",
        "a loaded weight is not masked",
        ("tests/masking/test_sparsify.py", "tests/masking/test_layers.py"),
    ),
    Fault(
        "sparsefx/optim/sparse_optimizer.py",
        '        self._zero_inactive()\n        if self._rules.inactive_buffers == "mask":\n',
        '        if self._rules.inactive_buffers == "mask":\n',
        "inactive weights move with the optimizer's step",
        ("tests/methods/test_sparse_momentum.py",),
    ),
    Fault(
        "sparsefx/kernels/training/backward.py",
        "if len(item.summands) == 2 and item.activation != NO_ACTIVATION:",
        "if False:",
        "behind a residual sum the gradient passes where an activation cut",
        (f"{_GRADIENTS}::test_integers_give_the_same_bits",),
    ),
    Fault(
        "sparsefx/kernels/training/backward.py",
        "masked = route.form.normalised and not source.is_full(block)",
        "masked = False",
        "lanes without an image get a gradient behind a norm",
        (_GRADIENTS,),
    ),
    Fault(
        "sparsefx/kernels/training/region.py",
        "if self.versions != self.region.versions():",
        "if False:",
        "a backward pass goes by another mask than its forward pass",
        (f"{_GRADIENTS}::test_another_mask_between_forward_and_backward_is_refused",),
    ),
    Fault(
        "sparsefx/kernels/codegen/training/statistics.py",
        "unbiased = code.fmul(variance, code.fdiv(count, code.fsub(count, F64(1.0))))",
        "unbiased = variance",
        "running variances take in the biased one",
        (f"{_GRADIENTS}::test_running_statistics_over_several_batches",),
    ),
    Fault(
        "sparsefx/kernels/codegen/training/derivative.py",
        "following.append(code.fadd(sums[0], gradient))",
        "following.append(sums[0])",
        "the gradient of a norm's bias is lost",
        (
            f"{_GRADIENTS}::test_batches_of_any_size",
            f"{_GRADIENTS}::test_a_norm_in_evaluation_takes_one_value",
        ),
    ),
    Fault(
        "sparsefx/masking/packing.py",
        "if self.version == 0 or not torch.equal(positions, self.positions):",
        "if self.version == 0:",
        "packed weights keep the positions of an old mask",
        (f"{_PACKING}::test_positions_follow_the_mask",),
    ),
    Fault(
        "sparsefx/masking/packing.py",
        "        parameter.data = torch.empty(0, dtype=torch.float16, device=changed.device)\n",
        "",
        "a graph that is alive adds up gradients of the shape before",
        (f"{_PACKING}::test_a_graph_that_is_still_alive_does_not_disturb",),
    ),
    Fault(
        "sparsefx/optim/gradient_window.py",
        "step > self._next - self._steps",
        "step >= self._next - self._steps",
        "the window before a cycle opens a step early",
        (f"{_WINDOW}::test_counted_cycles_open_a_window_before_each",),
    ),
    Fault(
        "sparsefx/optim/gradient_window.py",
        "max(kept, default=_MOMENTUM)",
        "min(kept, default=_MOMENTUM)",
        "of two groups the one that forgets sooner says how long the window is",
        (_WINDOW,),
    ),
    Fault(
        "passes/capture/undisturbed.py",
        "        stack.callback(restore_rng, state)\n",
        "",
        "export leaves other random numbers behind",
        (f"{_TRAPS}::test_export_leaves_the_random_numbers_of_others_as_they_were",),
    ),
    Fault(
        "passes/capture/undisturbed.py",
        "stack.enter_context(torch.autocast(kind, enabled=False))",
        "pass",
        "export under autocast computes in half precision",
        (f"{_TRAPS}::test_export_inside_contexts_of_the_users",),
    ),
)


def main() -> int:
    """Make each fault in turn; returns 1 if the tests miss one."""
    words = sys.argv[1:]
    chosen = [fault for fault in FAULTS if not words or any(w in fault.file + fault.what for w in words)]
    tests = tuple(dict.fromkeys(test for fault in chosen for test in fault.tests))
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder)
        copy_to(checkout)
        if failed := first_failure(tests, checkout):
            print(f"{failed} fails without a fault", file=sys.stderr)
            return 2
        print("| file | fault | noticed by | seconds |\n|---|---|---|---|", flush=True)
        return int(sum(not is_caught(fault, checkout) for fault in chosen) > 0)


def copy_to(checkout: Path) -> None:
    """Copy what the named tests need; the link from the package to the passes stays one."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", checkout)


def is_caught(fault: Fault, checkout: Path) -> bool:
    """Make a fault, run its tests, take it back, and print its row."""
    path = checkout / fault.file
    whole, begun = path.read_text("utf-8"), time.monotonic()
    path.write_text(fault.makes(whole), "utf-8")
    failed = first_failure(fault.tests, checkout)
    path.write_text(whole, "utf-8")
    seconds = time.monotonic() - begun
    print(f"| `{fault.file}` | {fault.what} | {failed or '**missed**'} | {seconds:.0f} |", flush=True)
    return failed is not None


def first_failure(tests: tuple[str, ...], checkout: Path) -> str | None:
    """The first of the tests that fails in the copy, by its name; None if all pass."""
    reader, writer = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_run, args=(tests, checkout, writer))
    process.start()
    writer.close()
    failed: str | None = None
    try:
        failed = reader.recv()
        process.join()
    except EOFError:  # a fault in machine code may kill the process
        process.join()
        if (process.exitcode or 0) >= 0:
            raise RuntimeError(f"pytest did not run {tests}") from None
        failed = f"killed by signal {-(process.exitcode or 0)}"
    return failed and f"`{failed}`"


class _FirstFailure:
    """A plugin of pytest that remembers the first test, or the first file, that fails."""

    name: str | None = None

    @pytest.hookimpl(tryfirst=True)  # before the settings of the tests are made
    def pytest_configure(self) -> None:
        """Stop a property at the first example that fails; a smaller one would take minutes to find."""
        from hypothesis import Phase, settings  # pytest wants to import it first

        settings.register_profile("faults", phases=(Phase.explicit, Phase.generate))
        settings.load_profile("faults")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._see(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._see(report)

    def _see(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed and self.name is None:
            self.name = report.nodeid.rpartition("::")[2]


def _run(tests: tuple[str, ...], checkout: Path, found: Connection) -> None:
    """In a process of its own, which has imported nothing of sparsefx: run tests of the copy."""
    os.chdir(checkout)
    sys.path.insert(0, str(checkout))
    os.environ["PYTHONPATH"] = str(checkout)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    first = _FirstFailure()
    status = pytest.main(["-x", "-p", "no:cacheprovider", "-p", "no:xdist", *tests], plugins=[first])
    found.send(first.name if status in (0, 1, 2) else f"pytest, with status {int(status)}")


if __name__ == "__main__":
    sys.exit(main())
