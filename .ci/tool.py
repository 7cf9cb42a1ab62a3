"""Run a tool of the checkout's environment: ``python .ci/tool.py ruff check``. Pre-commit's hooks call it."""

import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = Path(__file__).resolve().parents[1] / ".venv"
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

if not PYTHON.exists():
    sys.exit("the tools are not installed: `python run.py test` installs them into .venv")
sys.exit(subprocess.run([PYTHON, "-m", *sys.argv[1:]], check=False).returncode)
