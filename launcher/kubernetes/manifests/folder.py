"""A folder of manifests on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trainer.errors import ConfigError, EnvironmentProblem


def write_manifests(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write the files into a folder that holds no other manifests, and return their paths.

    Raises: ConfigError when it does: `kubectl apply -f FOLDER` would take them for the run's.
    EnvironmentProblem when it cannot be written.
    """
    others = sorted(
        path.name
        for pattern in ("*.yaml", "*.yml", "*.json")
        for path in folder.glob(pattern)
        if path.name not in texts
    )
    if others:
        raise ConfigError(
            f"{folder} holds {', '.join(others)}, which this run does not have",
            rule="the manifests of one run have a folder of their own",
            fix="remove these files, or give another --output",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise EnvironmentProblem(
            f"{folder} cannot be written: {error.strerror}",
            rule="one file for each object",
            fix="give another --output",
        ) from None
    return [folder / name for name in texts]
