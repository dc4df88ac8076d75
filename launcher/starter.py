"""The config `rankzero init` writes, kept as package data."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from trainer.errors import ConfigError, EnvironmentProblem


def load_starter() -> str:
    """Return the starter config's text."""
    return files("launcher").joinpath("starter.yaml").read_text(encoding="utf-8")


def write_starter(path: Path) -> None:
    """Write the starter config to a new file.

    Raises: ConfigError when the place is taken or its folder does not exist.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(load_starter())
    except FileExistsError:
        raise ConfigError(
            f"{path} exists already",
            rule="an existing file is never overwritten",
            fix="name another file: rankzero init PATH",
        ) from None
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{path.parent} is no folder",
            rule="the config is written into an existing folder",
            fix=f"create it first: mkdir -p {path.parent}",
        ) from None
    except OSError as error:
        raise EnvironmentProblem(
            f"{path} cannot be written: {error.strerror}",
            rule="the folder must be writable and have space",
            fix="choose another place: rankzero init PATH",
        ) from None
