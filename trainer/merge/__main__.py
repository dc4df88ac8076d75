"""`python -m trainer.merge`"""

from __future__ import annotations

import sys

from trainer.entry import run_entry
from trainer.merge import main

if __name__ == "__main__":
    sys.exit(run_entry(main))
