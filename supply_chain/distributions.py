"""Python distributions, from what is installed or from a pip report, as one kind of value."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from supply_chain.image_lock import normal_name
from supply_chain.licences import licence_of

_OURS = "rankzero"
_HOME_LABELS = ("homepage", "home", "source", "source code", "repository", "github", "code")
_LICENCE_FILE = re.compile(r"(licen[cs]e|copying|notice|eula)[^/]*$", re.IGNORECASE)


@dataclass(frozen=True)
class PythonPackage:
    """One third-party distribution."""

    name: str
    version: str
    licence: str
    """SPDX expression."""
    home: str
    licence_files: tuple[str, ...] | None
    """Below its `.dist-info` folder. None: the metadata lists none, and the files were not seen."""


def read_installed(path: Iterable[str] | None = None) -> list[PythonPackage]:
    """Return what is installed in this interpreter (or on `path`), without this project."""
    found = metadata.distributions() if path is None else metadata.distributions(path=list(path))
    packages = [_from_installed(distribution) for distribution in found]
    return _sorted(package for package in packages if package.name != _OURS)


def read_report(path: Path) -> list[PythonPackage]:
    """Return what `pip install --dry-run --report` would install. pip 25 or newer wrote it."""
    report = json.loads(path.read_text(encoding="utf-8"))
    return _sorted(
        _package(each["metadata"], _licences(each["metadata"].get("license_file") or []) or None)
        for each in report["install"]
    )


def _from_installed(distribution: metadata.Distribution) -> PythonPackage:
    inside = (path.as_posix().partition("/") for path in distribution.files or [])
    files = [rest for folder, _, rest in inside if folder.endswith(".dist-info")]
    return _package(distribution.metadata.json, _licences(files))


def _licences(files: Iterable[str]) -> tuple[str, ...]:
    return tuple(path.removeprefix("licenses/") for path in files if _LICENCE_FILE.search(path))


def _package(core: Mapping[str, Any], files: tuple[str, ...] | None) -> PythonPackage:
    name = normal_name(core["name"])
    return PythonPackage(name, core["version"], licence_of(core), _home(core), files)


def _home(core: Mapping[str, Any]) -> str:
    links = [link.partition(",") for link in core.get("project_url") or []]
    urls = {label.strip().lower(): url.strip() for label, _, url in links}
    if page := core.get("home_page"):
        return str(page)
    labelled = [urls[label] for label in _HOME_LABELS if label in urls]
    return next(iter([*labelled, *urls.values()]), "")


def _sorted(packages: Iterable[PythonPackage]) -> list[PythonPackage]:
    return sorted({package.name: package for package in packages}.values(), key=lambda p: p.name)
