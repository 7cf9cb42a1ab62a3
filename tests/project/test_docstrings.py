"""Public docstrings say the shapes of tensors, and the errors that are raised."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    file
    for top in ("sparsefx", "passes")
    for file in (ROOT / top).rglob("*.py")
    if "passes" not in file.relative_to(ROOT).parts[1:]
)
SAYS_SHAPES = re.compile(
    r"shape|scalar|vector|matri(x|ces)|elementwise|broadcast|numel|"
    r"\([\w*/. ]+(,[\w*/. ]*)+\)|\[[\w*/. ]+(, ?[\w*/. ]*)*\]|\bdimensions?\b|one number"
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_functions(tree: ast.Module) -> Iterator[Function]:
    """Functions and methods of public classes, but those of protocols that say it once for all."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from (part for part in node.body if isinstance(part, Function) and part.name[0] != "_")
        elif isinstance(node, Function) and not node.name.startswith("_"):
            yield node


def takes_or_returns_tensors(function: Function) -> bool:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    annotations = [argument.annotation for argument in every] + [function.returns]
    return any("Tensor" in ast.unparse(annotation) for annotation in annotations if annotation)


def raised(function: Function) -> set[str]:
    """The names of the errors that a function raises itself, apart from those it passes on."""
    names = set()
    inner = {
        part
        for node in ast.walk(function)
        if isinstance(node, Function) and node is not function
        for part in ast.walk(node)
    }
    for node in ast.walk(function):
        if isinstance(node, ast.Raise) and node not in inner and isinstance(node.exc, ast.Call):
            names.add(ast.unparse(node.exc.func).rpartition(".")[2])
    return {
        name
        for name in names
        if name[0].isupper() and not name.startswith(("_", "NotImplemented", "StopIteration"))
    }


def missing(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text("utf-8"))
    class_docs = {
        id(part): ast.get_docstring(node) or ""
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for part in node.body
    }
    for function in public_functions(tree):
        own = ast.get_docstring(function)
        if own is None:
            continue  # a rule of a protocol, or a method of torch's, which says it once for all
        text = own + class_docs.get(id(function), "")
        if takes_or_returns_tensors(function) and not SAYS_SHAPES.search(text):
            yield f"{function.name} (line {function.lineno}) does not say the shapes of its tensors"
        for name in sorted(raised(function)):
            if name not in text:
                yield f"{function.name} (line {function.lineno}) does not say that it raises {name}"


def test_docstrings_say_shapes_and_errors() -> None:
    found = {file.relative_to(ROOT).as_posix(): list(missing(file)) for file in FILES}
    assert {file: lines for file, lines in found.items() if lines} == {}


def test_the_check_finds_what_is_missing(tmp_path: Path) -> None:
    source = (
        "def f(x: Tensor) -> int:\n"
        '    """The sum."""\n'
        "    raise ValueError('no')\n"
        "def g(x: Tensor) -> int:\n"
        '    """The sum of a (batch, channels) tensor; raises ValueError."""\n'
        "    raise ValueError('no')\n"
    )
    (tmp_path / "file.py").write_text(source)
    assert [line.partition(" ")[0] for line in missing(tmp_path / "file.py")] == ["f", "f"]
