"""The README tells the truth: its example runs, its commands are those of CI, its links lead somewhere."""

import re
from pathlib import Path

import pytest

from sparsefx.cli import command_line

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = [
    "docs/distributed.md",
    "docs/frameworks.md",
    "docs/methods.md",
    "docs/optimizers.md",
    "docs/plots.md",
]
PAGES = ["README.md", "CONTRIBUTING.md", *GUIDES]


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_examples_run_one_after_the_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    for source in code_blocks("python"):
        exec(compile(source, "README.md", "exec"), namespace)
        assert capsys.readouterr().out


def test_first_block_is_a_runnable_example() -> None:
    assert re.search(r"^```(\w+)", README, flags=re.MULTILINE).group(1) == "python"


def test_ci_runs_the_readme_test_command() -> None:
    commands = [line.split("#")[0].strip() for line in "".join(code_blocks("console")).splitlines()]
    assert commands[:2] == ["python run.py quickstart", "python run.py test"]
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == commands[1]


def test_commands_of_the_readme_are_understood() -> None:
    commands = [line.split() for line in "".join(code_blocks("console")).splitlines()]
    given = [words[1:] for words in commands if words[0] == "sparsefx"]
    assert len(given) == 2
    for arguments in given:
        assert callable(command_line().parse_args(arguments).command)


# Checkpoints for many processes are written by one.
@pytest.mark.filterwarnings("ignore:torch.distributed is .* single process")
# Lightning reads pytrees by a name that newer torch calls deprecated.
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning")
# Data of a few rows needs no processes of its own to load it.
@pytest.mark.filterwarnings("ignore:The '.*' does not have many workers:UserWarning")
# Memory is pinned by default, where there is a device or not.
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")
@pytest.mark.parametrize("page", GUIDES)
def test_code_of_the_guides_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    for source in blocks:
        exec(compile(source, page, "exec"), {"__name__": "guide"})


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_to_files(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []
