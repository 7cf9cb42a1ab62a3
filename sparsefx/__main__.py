"""``python -m sparsefx``."""

import sys

from sparsefx.cli import main

sys.exit(main())
