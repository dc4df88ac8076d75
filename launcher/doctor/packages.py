"""Installed versions beside what is required and what this release was tested with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

_PROJECT = "rankzero"
_LAUNCHER = Path(__file__).resolve().parents[1]
_LOCK = "requirements.lock"


@dataclass(frozen=True)
class PackageState:
    """One direct dependency."""

    name: str
    installed: str | None
    required: str
    """Version specifier, such as `>=2.11`."""
    pinned: str | None
    """The version of requirements.lock, which the tests run with."""

    @property
    def is_accepted(self) -> bool:
        """Whether the installed version meets the requirement."""
        specifier = SpecifierSet(self.required)
        return self.installed is not None and specifier.contains(self.installed, prereleases=True)

    @property
    def is_as_tested(self) -> bool:
        """Whether major and minor version are the pinned ones (local parts, +cu126, aside)."""
        if self.installed is None or self.pinned is None:
            return False
        return Version(self.installed).release[:2] == Version(self.pinned).release[:2]


def read_packages() -> list[PackageState]:
    """Look at every direct dependency; imports none of them. Empty when nothing is installed."""
    try:
        requirements = metadata.requires(_PROJECT) or []
    except metadata.PackageNotFoundError:
        return []
    return to_states(requirements, parse_pins(_lock_text()), installed_version)


def to_states(
    requirements: Iterable[str],
    pins: Mapping[str, str],
    version_of: Callable[[str], str | None],
) -> list[PackageState]:
    """Join requirements that apply here, without extras, with pins and versions."""
    states = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = requirement.name.lower().replace("_", "-")
        states.append(
            PackageState(name, version_of(name), str(requirement.specifier), pins.get(name))
        )
    return sorted(states, key=lambda state: state.name)


def parse_pins(lock: str) -> dict[str, str]:
    """Read `name==version` lines of a lock file. PURE."""
    pins = {}
    for line in lock.splitlines():
        name, found, rest = line.partition("#")[0].partition(";")[0].partition("==")
        if found:
            pins[name.strip().lower()] = rest.strip()
    return pins


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _lock_text() -> str:
    # In a wheel the lock lies in the package, in a checkout at the top.
    for path in (_LAUNCHER / _LOCK, _LAUNCHER.parent / _LOCK):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    return ""
