"""The run directory as the launcher leaves it: the config as given, and resolved.json."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import ConfigError, EnvironmentProblem

RESOLVED = "resolved.json"


def refuse_existing_run(path: Path) -> None:
    """Raise ConfigError when a directory already holds a run."""
    if (path / RESOLVED).exists():
        raise ConfigError(
            f"output_dir {path} already holds a run",
            rule="a run is never overwritten",
            fix=f"choose another one (--set output_dir={path}-2), or move this one away",
        )


@dataclass(frozen=True)
class RunDirectory:
    """What this process put on disk, so that it can take back exactly that."""

    path: Path
    files: tuple[Path, ...]
    folders: tuple[Path, ...]
    """Folders that did not exist before, innermost first."""

    @classmethod
    def create(cls, path: Path, given: Path, resolved: str) -> RunDirectory:
        """Create the directory, with a byte copy of the given config and the resolved one.

        Raises: ConfigError when it holds a run; EnvironmentProblem when it cannot be written.
        """
        refuse_existing_run(path)
        copy = path / f"config{given.suffix}"
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        directory = cls(path, (copy, path / RESOLVED), tuple(missing))
        try:
            path.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(given.read_bytes())
            # Last: a directory is a run once it has this file.
            (path / RESOLVED).write_text(resolved, encoding="utf-8")
        except OSError as error:
            directory.give_back()
            raise EnvironmentProblem(
                f"output_dir {path} cannot be written: {error.strerror}",
                rule="the run directory needs a writable place with free space",
                fix="choose another output_dir, or free this one",
            ) from None
        return directory

    def give_back(self) -> None:
        """Remove what was created here; anything another process left stays, and its folder."""
        with contextlib.suppress(OSError):
            for file in reversed(self.files):
                file.unlink(missing_ok=True)
            for folder in self.folders:
                folder.rmdir()
