"""Make the pictures of the pages anew, by running the code that the pages show for them.

    python docs/figures.py

Of the results, ``benchmarks/widths.py`` and ``sparsefx report tables`` draw the others.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PAGES = ["plots.md"]


def main() -> None:
    """Run each page's Python and keep what it shows of the files that this leaves."""
    for page in PAGES:
        text = (DOCS / page).read_text(encoding="utf-8")
        shown = [DOCS / path for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)]
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            namespace: dict[str, object] = {"__name__": "page"}
            for block in re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
                exec(compile(block, page, "exec"), namespace)
            for picture in shown:
                shutil.copy(picture.name, picture)
                print(picture.relative_to(DOCS))
            os.chdir(DOCS)


if __name__ == "__main__":
    main()
