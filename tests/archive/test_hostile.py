"""Damaged and hostile files: each is refused with a clear error, runs nothing and takes no memory."""

from __future__ import annotations

import builtins
import copy
import hashlib
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import sparsefx
from sparsefx import ArchiveError, SparseFxError

CODE = "__import__('builtins').canary()"
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.spawn",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.",
    "ctypes.",
)
watching = [False]
events: list[str] = []


def watch(event: str, arguments: tuple[Any, ...], watching=watching, events=events) -> None:
    # Hooks outlive the globals of a module, so this one holds what it needs.
    if watching[0] and (event.startswith(FORBIDDEN) or (event == "open" and arguments[1] == "w")):
        events.append(event)


sys.addaudithook(watch)


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No code of a file runs, no process starts, nothing is unpickled, memory does not grow."""
    ran: list[object] = []
    monkeypatch.setattr(builtins, "canary", lambda *args: ran.append(args), raising=False)
    events.clear()
    before = peak_memory()
    yield
    assert not ran
    assert not events
    assert peak_memory() - before < 300 * 2**20


def peak_memory() -> int:
    """The most memory that this process had so far, in bytes; 0 where that is not known."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Tiny(nn.Module):
    """A call of every kind: module, function, method, attribute, parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
        self.w = nn.Parameter(torch.randn(6, 6))
        self.norm = nn.GroupNorm(2, 6)
        self.b.weight.data[:, :2] = 0

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.norm(F.linear(F.relu(self.a(x)), self.w))
        return self.b(h.view(x.shape[0], -1) + self.w.mean(0, keepdim=True)[..., None].squeeze(-1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, bytes]:
    torch.manual_seed(0)
    model = Tiny()
    path = tmp_path_factory.mktemp("saved") / "file"
    sparsefx.save(sparsefx.export(model, (torch.randn(2, 4),)), path)
    with pytest.raises(ArchiveError):  # everything that is imported late is so now
        sparsefx.load(path, nn.Linear(2, 2))
    sparsefx.load(path, model)
    return model, path.read_bytes()


def refused(content: bytes, model: nn.Module, path: Path, message: str | None = None) -> None:
    """Loading gives the library's error and nothing else."""
    path.write_bytes(content)
    watching[0] = True
    try:
        with pytest.raises(ArchiveError, match=message) as caught:
            sparsefx.load(path, model)
    finally:
        watching[0] = False
    text = str(caught.value)
    assert text.startswith(f"{path} cannot be loaded: ")
    assert len(text) < 600 + len(str(path))


def parts(content: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return json.loads(header["__metadata__"]["sparsefx"]), safetensors.torch.load(content)


def signed(plan: Any, tensors: dict[str, Tensor]) -> bytes:
    """A file of a plan with the right checksum."""
    text = plan if isinstance(plan, str) else json.dumps(plan, separators=(",", ":"))
    text = (
        text.replace(text[text.index('"sha256":"') + 10 :][:64], "0" * 64, 1)
        if '"sha256":"' in text
        else text
    )
    content = safetensors.torch.save(tensors, metadata={"sparsefx": text})
    return content.replace(b"0" * 64, hashlib.sha256(content).hexdigest().encode(), 1)


def test_the_helper_signs_as_save_does(saved: tuple[nn.Module, bytes], tmp_path: Path) -> None:
    model, content = saved
    (tmp_path / "file").write_bytes(signed(*parts(content)))
    sparsefx.load(tmp_path / "file", model)


def test_a_thousand_damaged_files(saved: tuple[nn.Module, bytes], tmp_path: Path) -> None:
    model, content = saved
    rng = random.Random(0)
    length = int.from_bytes(content[:8], "little")
    path = tmp_path / "file"
    regions = [range(8), range(8, 8 + length), range(8 + length, len(content))]
    for _ in range(200):
        refused(content[: rng.randrange(len(content))], model, path)
    for region in regions:
        for _ in range(200):
            damaged = bytearray(content)
            damaged[rng.choice(region)] ^= 1 << rng.randrange(8)
            refused(bytes(damaged), model, path)
    for _ in range(100):
        position = rng.randrange(len(content))
        refused(content[:position] + rng.randbytes(rng.randrange(1, 40)) + content[position:], model, path)
    for _ in range(100):
        start = rng.randrange(len(content))
        refused(content[:start] + content[start + rng.randrange(1, 40) :], model, path)
    for size in (0, 1, 7, 8, 100, 5000):
        refused(rng.randbytes(size), model, path)
        refused(b"\x80\x02c__builtin__\ncanary\n(tR." + rng.randbytes(size), model, path)
    for size in (2**64 - 1, 2**63, 2**40, len(content), len(content) - 7, 100_000_001):
        refused(size.to_bytes(8, "little") + content[8:], model, path)


def test_files_of_others(saved: tuple[nn.Module, bytes], tmp_path: Path) -> None:
    model, content = saved
    plan, tensors = parts(content)
    foreign = [safetensors.torch.save(tensors), safetensors.torch.save(tensors, metadata={"format": "pt"})]
    torch.save(model.state_dict(), tmp_path / "state")
    for data in (*foreign, (tmp_path / "state").read_bytes()):
        refused(data, model, tmp_path / "file", "no file of sparsefx.save")
    newer = json.dumps({**plan, "format": 2}, separators=(",", ":"))
    refused(
        signed(newer, tensors),
        model,
        tmp_path / "file",
        "of format 2, this sparsefx reads format 1; install a newer",
    )


VALUES: list[Any] = [
    None, True, -1, 2**70, 1.5, "", CODE, f'x"]\n{CODE}\n#', "os.system", "__class__", [], {}, [[]],
    {"node": "x"}, {"tuple": [CODE]}, {"dtype": "load"}, {"device": CODE}, {"float": CODE}, {"unknown": 0},
]  # fmt: skip


def everywhere(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside plain data."""
    if path:
        yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from everywhere(value, (*path, key))


def replaced(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    edited = copy.deepcopy(data)
    holder = edited
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return edited


@pytest.mark.parametrize("values", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_any_value_anywhere_in_the_plan(values: int, saved: tuple[nn.Module, bytes], tmp_path: Path) -> None:
    """Some edits make another valid file; the others give our error; none runs anything."""
    model, content = saved
    plan, tensors = parts(content)
    counts = {"refused": 0, "loaded": 0}
    rng = random.Random(0)
    for place in everywhere(plan["modules"]):
        for value in rng.sample(VALUES, values):
            edited = {**plan, "modules": replaced(plan["modules"], place, value)}
            (tmp_path / "file").write_bytes(signed(edited, tensors))
            watching[0] = True
            try:
                loaded = sparsefx.load(tmp_path / "file", model)
            except SparseFxError:
                counts["refused"] += 1
            else:
                counts["loaded"] += 1
                assert isinstance(loaded, fx.GraphModule)
                run_if_it_can(loaded)
            finally:
                watching[0] = False
    assert counts["refused"] > 170 * values
    assert counts["loaded"] < counts["refused"] / 5


def run_if_it_can(model: nn.Module) -> None:
    try:
        model(torch.randn(2, 4))
    except Exception:  # a valid graph may well compute nonsense
        return


def node(plan: Any, name: str) -> Any:
    return next(row for row in plan["modules"][0]["graph"] if row["name"] == name)


def module(plan: Any, path: str) -> Any:
    return next(entry for entry in plan["modules"] if entry["path"] == path)


def call(target: str, *args: Any, op: str = "call_function") -> Callable[[Any], None]:
    """Put another call in the place of the relu."""

    def edit(plan: Any) -> None:
        node(plan, "relu").update(op=op, target=target, args=list(args or ({"node": "a"},)))

    return edit


def keyword(name: str) -> Callable[[Any], None]:
    return lambda plan: node(plan, "relu").update(kwargs=[[name, True]])


def insert(at: int, **row: Any) -> Callable[[Any], None]:
    def edit(plan: Any) -> None:
        plan["modules"][0]["graph"].insert(
            at, {"op": "placeholder", "target": "z", "args": [], "kwargs": [], **row}
        )

    return edit


def change(path: str, **entries: Any) -> Callable[[Any], None]:
    return lambda plan: module(plan, path).update(entries)


def attribute(path: str, name: str, value: Any) -> Callable[[Any], None]:
    return lambda plan: module(plan, path)["attributes"].update({name: value})


def add_module(**entry: Any) -> Callable[[Any], None]:
    return lambda plan: plan["modules"].append(entry)


def drop(path: str) -> Callable[[Any], None]:
    return lambda plan: plan["modules"].remove(module(plan, path))


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def words(text: str) -> list[str]:
    return text.split()


FUNCTIONS = words("""
    os.system builtins.eval builtins.exec builtins.__import__ builtins.open builtins.setattr builtins.compile
    builtins.print torch.load torch.save torch.from_file torch.hub.load torch.ops.load_library torch.compile
    torch.utils.data.DataLoader torch.jit.load torch.classes.load_library operator.attrgetter
    operator.methodcaller operator.call subprocess.run pickle.loads importlib.import_module sparsefx.load
    aten.from_file.default aten.add_.Tensor aten.save aten.resize_.default aten.__class__.x prim.print.default
    torch._dynamo.optimize torch.ops.aten.relu.default torch.nn.functional.__builtins__ canary
    sparsefx.passes.capture.capture test_archive_hostile.watch builtins.canary
""")
METHODS = words("""
    __reduce_ex__ __class__ __setstate__ __init__ __getattribute__ apply_ map_ register_hook numpy
    share_memory_ storage set_ resize_ data_ptr module_load backward format eval train load_state_dict a.b a;b
""")
NAMES = [
    "x y",
    'x"',
    "x\n" + CODE,
    "class",
    "",
    "1x",
    "\uff45val",
    "x;y",
    "x=1",
    "x.y",
    "x#",
    "self()",
    "__import__('os')",
]
EDITS: dict[str, Callable[[Any], None]] = {
    **{f"function {name}": call(name) for name in FUNCTIONS},
    **{f"method {name}": call(name, {"node": "a"}, op="call_method") for name in METHODS},
    **{f"getattr {name}": call("builtins.getattr", {"node": "a"}, name) for name in (
        "__class__", "_backward_hooks", "data", "grad_fn", "__dict__", "forward", CODE)},
    "getattr of a string": call("builtins.getattr", "x", "shape"),
    "getattr by a node": call("builtins.getattr", {"node": "a"}, {"node": "a"}),
    "method of a string": call("format", "{0.__class__}", op="call_method"),
    "method without self": lambda plan: node(plan, "relu").update(op="call_method", target="relu", args=[]),
    **{f"node {name!r}": insert(1, name=name) for name in [*NAMES, "x", "print", "relu"]},
    **{f"placeholder {name!r}": insert(1, name="z", target=name) for name in [*NAMES, "***z", "*", "x"]},
    **{f"path {name!r}": call(name, op="call_module") for name in [*NAMES, "", ".", "a.", "c", "a.weight"]},
    **{f"tensor {name!r}": call(name, op="get_attr")
       for name in [*NAMES, "", "a", "a.forward", "_modules", "w.data"]},
    **{f"keyword {name!r}": keyword(name) for name in NAMES},
    "operation": call("relu", op="exec"),
    "self reference": call("torch.nn.functional.relu", {"node": "relu"}),
    "later node": call("torch.nn.functional.relu", {"node": "output"}),
    "no such node": call("torch.nn.functional.relu", {"node": "nothing"}),
    "missing node": lambda plan: plan["modules"][0]["graph"].remove(node(plan, "a")),
    "no output": lambda plan: plan["modules"][0]["graph"].pop(),
    "two outputs": lambda plan: plan["modules"][0]["graph"].append(
        {**plan["modules"][0]["graph"][-1], "name": "output_1"}),
    "no nodes": change("", graph=[]),
    "no graph": lambda plan: module(plan, "").pop("graph"),
    "graph of a layer": change("a", graph=[]),
    "huge integer": call("torch.add", {"node": "a"}, 10**30),
    "a huge list": call("torch.add", {"node": "a"}, [0] * 300_000),
    "deep nesting": call("torch.add", {"node": "a"}, nested(60)),
    "a dict with a dict as key": call("torch.add", {"node": "a"}, {"dict": [[[], 0]]}),
    "operator with too few operands": call("operator.add", {"node": "a"}),
    "another argument": insert(1, name="z"),
    "argument without default after one with": insert(3, name="z"),
    "extra key in a node": lambda plan: node(plan, "relu").update(meta={}),
    "extra key in a module": change("a", state={}),
    "extra key in the plan": lambda plan: plan.update(code=CODE),
    "no modules": lambda plan: plan.update(modules=[]),
    "modules are text": lambda plan: plan.update(modules=CODE),
    **{f"class {name}": change("a", **{"class": name}) for name in (
        "os.system", "torch.nn.modules.linear.Bilinear", "torch.nn.modules.module.Module",
        "__main__.Linear", CODE)},
    "many modules": lambda plan: plan["modules"].extend(
        {"path": f"c{i}", "class": "torch.nn.modules.module.Module"} for i in range(12_000)),
    "a graph that is not the user's": add_module(
        path="c", graph=[], **{"class": "torch.fx.graph_module.GraphModule"}),
    "a class for a new module": add_module(path="c", **{"class": "torch.nn.modules.rnn.LSTM"}),
    "a new module inside a layer": add_module(path="a.c", **{"class": "torch.nn.modules.module.Module"}),
    "a module in no parent": add_module(path="c.d", **{"class": "torch.nn.modules.module.Module"}),
    "a module named forward": add_module(path="forward", **{"class": "torch.nn.modules.module.Module"}),
    "a module twice": add_module(path="a", **{"class": "torch.nn.modules.module.Module"}),
    "a cycle": add_module(path="c", same_as="", **{"class": "torch.fx.graph_module.GraphModule"}),
    "a cycle of layers": add_module(path="a.c", same_as="a", **{"class": "torch.nn.modules.linear.Linear"}),
    "the same as nothing": add_module(path="c", same_as="z", **{"class": "torch.nn.modules.linear.Linear"}),
    "a made layer without attributes": add_module(path="c", **{"class": "torch.nn.modules.conv.Conv2d"}),
    "a deep path": add_module(path=".".join("a" * 5000), **{"class": "torch.nn.modules.module.Module"}),
    "no root": drop(""),
    "no layer": drop("b"),
    "hooks": change("a", hooks=[1, 0]),
    "hooks of the model": change("", hooks=[0, 1]),
    "attribute injection": attribute("a", "in_features", CODE),
    "negative size": attribute("a", "in_features", -4),
    "huge size": attribute("a", "out_features", 2**62),
    "wrong size": attribute("a", "out_features", 5),
    "size of another type": attribute("a", "out_features", True),
    "another number": attribute("norm", "eps", 0.5),
    "groups": attribute("norm", "num_channels", 60),
    "no tensor": lambda plan: module(plan, "a")["parameters"].update(bias=None),
    "fewer tensors": lambda plan: module(plan, "a")["parameters"].pop("bias"),
    "more tensors": lambda plan: module(plan, "a")["parameters"].update(c=None),
    "tensor named forward": lambda plan: module(plan, "")["parameters"].update(
        forward=module(plan, "a")["parameters"]["weight"]),
    "a buffer for a parameter": lambda plan: module(plan, "a").update(
        buffers=module(plan, "a").pop("parameters")),
    "unknown tensor": lambda plan: module(plan, "a")["parameters"]["bias"].update(stored="z"),
    "another tensor": lambda plan: module(plan, "a")["parameters"]["bias"].update(stored="a.weight"),
    "an order": lambda plan: module(plan, "a")["parameters"]["bias"].update(order=[1, 0]),
    "a long order": lambda plan: module(plan, "a")["parameters"]["bias"].update(order=[0, 0]),
    **{f"strides {strides}": lambda plan, strides=strides: module(plan, "a")["parameters"]["weight"].update(
        strides=strides) for strides in ([0, 1], [1, 4], [4], [4, 1, 1], [-4, 1], [2**62, 1], ["4", 1])},
    "a complex tensor": lambda plan: module(plan, "a")["parameters"]["bias"].update(complex=True),
    "report": lambda plan: plan["report"].update(layers=[{"name": CODE}]),
    "report total": lambda plan: plan["report"].update(parameters_before=CODE),
    "report code": lambda plan: plan["report"].update(code=CODE),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_a_wrong_plan(edit: str, saved: tuple[nn.Module, bytes], tmp_path: Path) -> None:
    model, content = saved
    plan, tensors = parts(content)
    EDITS[edit](plan)
    refused(signed(plan, tensors), model, tmp_path / "file", r"\w{3,}")


TEXTS = {
    "deep": lambda text: text.replace('"modules":', '"modules":' + "[" * 200_000),
    "many": lambda text: text.replace('"modules":[', '"modules":[' + "[]," * 600_000),
    "NaN": lambda text: text.replace('"modules":[', '"modules":[NaN,'),
    "digits": lambda text: text.replace('"modules":[', '"modules":[' + "1" * 6000 + ","),
    "twice": lambda text: text.replace('"modules":', '"torch":"","modules":'),
    "cut": lambda text: text[:-1],
    "not JSON": lambda text: text + CODE,
}


@pytest.mark.parametrize("which", TEXTS)
def test_a_plan_that_is_no_json(which: str, saved: tuple[nn.Module, bytes], tmp_path: Path) -> None:
    model, content = saved
    plan, tensors = parts(content)
    text = TEXTS[which](json.dumps(plan, separators=(",", ":")))
    refused(signed(text, tensors), model, tmp_path / "file", "its plan (cannot be read|has more than)")


def test_wrong_tensors(saved: tuple[nn.Module, bytes], tmp_path: Path) -> None:
    model, content = saved
    plan, tensors = parts(content)
    wrong = [
        {**tensors, "extra": torch.zeros(3)},
        {name: tensor for name, tensor in tensors.items() if name != "a.weight"},
        {**tensors, "a.weight": torch.zeros(4, 4, 4)},
        {**tensors, "a.weight": torch.zeros(2000, 4)},
        {**tensors, "a.weight": torch.zeros_like(tensors["a.weight"], dtype=torch.int64)},
        {**tensors, "w": torch.zeros(0, 0)[:, :, None]},
    ]
    for edited in wrong:
        refused(signed(plan, edited), model, tmp_path / "file")


def test_a_header_that_lies_about_tensors(saved: tuple[nn.Module, bytes], tmp_path: Path) -> None:
    model, content = saved
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    for entry in (
        {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
        {"dtype": "F32", "shape": [-1, 4], "data_offsets": [0, 96]},
        {"dtype": "F32", "shape": [2**63, 0], "data_offsets": [0, 0]},
        {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]},
        {"dtype": CODE, "shape": [4, 6], "data_offsets": [0, 96]},
        {"dtype": "F32", "shape": [6, 4], "data_offsets": [96, 0]},
        CODE,
    ):
        text = json.dumps({**header, "a.weight": entry}, separators=(",", ":")).encode()
        found = json.loads(header["__metadata__"]["sparsefx"])["sha256"].encode()
        head = (len(text).to_bytes(8, "little") + text).replace(found, b"0" * 64, 1) + content[8 + length :]
        checksum = hashlib.sha256(head).hexdigest().encode()
        refused(
            head.replace(b"0" * 64, checksum, 1),
            model,
            tmp_path / "file",
            "tensors cannot be read|'a.weight'",
        )
