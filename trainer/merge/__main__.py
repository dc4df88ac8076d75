"""`python -m trainer.merge`"""

from __future__ import annotations

import sys

from trainer.entry import ending_at_once, run_entry


def main(argv: list[str]) -> None:
    """Run the command; what it imports takes seconds, and may be stopped as well."""
    with ending_at_once():
        from trainer.merge.command import main as command

    command(argv)


if __name__ == "__main__":
    sys.exit(run_entry(main))
