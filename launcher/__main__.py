"""`python -m launcher`: the `rankzero` command."""

from launcher.cli import rankzero

if __name__ == "__main__":
    rankzero(prog_name="rankzero")
