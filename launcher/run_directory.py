"""The run directory as the launcher leaves it: the config as given, and resolved.json."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import EnvironmentProblem
from trainer.run_directory import RunDirectory


@dataclass(frozen=True)
class CreatedRun:
    """What this process put on disk, so that it can take back exactly that."""

    directory: RunDirectory
    files: tuple[Path, ...]
    folders: tuple[Path, ...]
    """Folders that did not exist before, innermost first."""

    @classmethod
    def create(cls, path: Path, given: Path, resolved: str) -> CreatedRun:
        """Create the directory, with a byte copy of the given config and the resolved one.

        Raises: ConfigError when it holds a run; EnvironmentProblem when it cannot be written.
        """
        run = RunDirectory(path)
        run.refuse_run(run.resolved_config)
        # Not config.json: that name marks a folder as a model.
        copy = path / f"given_config{given.suffix}"
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        created = cls(run, (copy, run.resolved_config), tuple(missing))
        try:
            path.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(given.read_bytes())
            # Last: a directory is a run once it has this file.
            run.resolved_config.write_text(resolved, encoding="utf-8")
        except OSError as error:
            created.give_back()
            raise EnvironmentProblem(
                f"output_dir {path} cannot be written: {error.strerror}",
                rule="the run directory needs a writable place with free space",
                fix="choose another output_dir, or free this one",
            ) from None
        return created

    def give_back(self) -> None:
        """Remove what was created here; anything another process left stays, and its folder."""
        with contextlib.suppress(OSError):
            for file in reversed(self.files):
                file.unlink(missing_ok=True)
            for folder in self.folders:
                folder.rmdir()
