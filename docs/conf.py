"""The documentation site: ``python run.py docs`` builds it into ``build/docs``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import sparsefx
from sparsefx.experiments.ledger.ledger import Ledger
from sparsefx.experiments.tables.page import addresses, replace_section, results_page, write_tables

ROOT = Path(__file__).resolve().parents[1]
LEDGER, TABLES = ROOT / "results", ROOT / "build" / "tables"

project = "sparsefx"
author = "sparsefx contributors"
project_copyright = author
version = release = sparsefx.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "sparsefx"
html_copy_source = False

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = False  # types are in the signature
napoleon_use_ivar = True

nitpicky = True  # a name in a docstring that leads nowhere is a warning
nitpick_ignore_regex = [
    (r"py:.*", r"(abc|collections|fractions|functools|matplotlib|os|pathlib|torch|typing)\..*"),
    (r"py:.*", r"(accelerate|lightning|pytorch_lightning|transformers)\..*"),
    (
        r"py:class",
        r"Figure|Optimizer|Tensor|nn\.Module|(dict|tuple)\[(str|~.*)|sparsefx\..*\.(Block|Tabular|WrappedOptimizer)",
    ),
]


def setup(app: Sphinx) -> None:
    """Let docstrings call things by the name that their readers import, and make the tables of the ledger."""
    app.connect("missing-reference", resolve_short_name)
    app.connect("source-read", insert_tables)


def insert_tables(app: Sphinx, document: str, source: list[str]) -> None:
    """Put the tables and figures of the ledger in the place of the pointer to them that ``results.md`` has.

    So a new run changes the ledger alone. The page is read anew whenever a file of the ledger changes.
    """
    if document != "results":
        return
    for path in (LEDGER, *LEDGER.glob("*.jsonl")):
        app.env.note_dependency(str(path))
    files = addresses(write_tables(LEDGER, TABLES), Path(app.srcdir))
    source[0] = replace_section(source[0], results_page(Ledger(LEDGER), files))


def resolve_short_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Find ``ArgumentError``, or a type by the module that defines it, where it is documented.

    Of several places (``prune.magnitude``, ``scores.magnitude``) the nearest to the reader's is meant.
    """
    if node.get("refdomain") != "py":
        return None
    target = str(node["reftarget"]).removeprefix("sparsefx.")
    domain: Any = env.get_domain("py")
    for ending in (target, target.rpartition(".")[2]):
        found = [name for name in domain.objects if name.endswith(f".{ending}")]
        if found and ("." not in target or ending[0].isupper() or ending == target):
            name = max(found, key=_nearness(f"{node.get('py:module')}.{node['reftarget']}"))
            entry = domain.objects[name]
            return _reference(app, node, entry, name, content)
    return None


def _nearness(place: str) -> Callable[[str], int]:
    parts = set(place.split("."))
    return lambda name: len(parts & set(name.split("."))) - name.count(".")


def _reference(
    app: Sphinx, node: pending_xref, entry: Any, title: str, content: nodes.TextElement
) -> nodes.reference:
    uri = app.builder.get_relative_uri(node["refdoc"], entry.docname)
    return nodes.reference("", "", content, internal=True, refuri=f"{uri}#{entry.node_id}", reftitle=title)
