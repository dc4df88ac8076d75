"""`python -m launcher`: the `rankzero` command."""

from launcher.cli import main

if __name__ == "__main__":
    main()
