"""The README begins with an example, and its commands are those of CI; its code runs in test_docs."""

import re
from pathlib import Path

from sparsefx.cli import command_line

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


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
