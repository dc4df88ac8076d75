"""Select from image.lock what one image installs.

    python -m supply_chain.image_lock --extras track --without torch > wanted.txt

pip-compile writes who brought each package into a comment (`# via`). So one lock serves images with
and without an extra, and no index has to be asked who needs whom.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomllib

LOCK = "image.lock"
# Another build of torch (CPU, an older CUDA) brings other libraries, or none.
_CUDA_LIBRARIES = ("cuda-", "nvidia-", "triton")
_NOT_CUDA = {"nvidia-ml-py"}


@dataclass(frozen=True)
class Pin:
    """One package of the lock."""

    name: str
    version: str
    hashes: tuple[str, ...]
    brought_by: frozenset[str]
    """Names of the packages that need it; the project's own name for a direct dependency."""
    requirement: str
    """What pip reads, without the comment."""


def parse_lock(text: str) -> list[Pin]:
    """Read what `pip-compile --generate-hashes` wrote."""
    return [_parse_pin(lines) for lines in _blocks(text)]


def select(
    pins: Sequence[Pin],
    roots: Collection[str],
    *,
    without: Collection[str] = (),
    only: Collection[str] = (),
) -> list[Pin]:
    """Return what the roots bring, in the lock's order.

    `without` leaves a package out and keeps what it brings; torch goes with its CUDA libraries.
    Raises: ValueError for a name that the lock does not have.
    """
    known = {pin.name for pin in pins}
    if unknown := sorted({*roots, *without, *only} - known):
        raise ValueError(f"not in {LOCK} (`make lock` writes it): {', '.join(unknown)}")
    reached = _reach(pins, roots)
    dropped = {name for name in known if is_of_torch(name)} if "torch" in without else set()
    chosen = reached - dropped - set(without)
    return [pin for pin in pins if pin.name in chosen and (not only or pin.name in only)]


def is_of_torch(name: str) -> bool:
    """Whether a package is torch, or belongs to one build of it alone."""
    return name == "torch" or (name.startswith(_CUDA_LIBRARIES) and name not in _NOT_CUDA)


def direct_dependencies(project: dict[str, Any], extras: Iterable[str] = ()) -> set[str]:
    """Return the names in pyproject.toml's `project` table. Raises: ValueError, no such extra."""
    optional = project["optional-dependencies"]
    requirements = list(project["dependencies"])
    for extra in extras:
        if extra not in optional:
            raise ValueError(f"no extra `{extra}`; there are {', '.join(sorted(optional))}")
        requirements += optional[extra]
    return {normal_name(re.split(r"[^\w.-]", text, maxsplit=1)[0]) for text in requirements}


def normal_name(name: str) -> str:
    """Return a name as indexes and lock files spell it. Source: PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _blocks(text: str) -> Iterator[list[str]]:
    block: list[str] = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if not line[0].isspace() and block:
            yield block
            block = []
        block.append(line)
    if block:
        yield block


def _parse_pin(lines: Sequence[str]) -> Pin:
    code = [line for line in lines if not line.lstrip().startswith("#")]
    comments = [line.strip().removeprefix("#").strip() for line in lines if line not in code]
    names = [comment.removeprefix("via").strip() for comment in comments]
    found = re.match(r"([\w.-]+)==([^\s;\\]+)", code[0])
    if not found:
        raise ValueError(f"{LOCK}: not a pinned package: {code[0]}")
    return Pin(
        name=normal_name(found[1]),
        version=found[2],
        hashes=tuple(re.findall(r"--hash=(\S+)", "\n".join(code))),
        brought_by=frozenset(
            normal_name(name.split()[0]) for name in names if name and not name.startswith("-")
        ),
        requirement="\n".join(code).rstrip(" \\"),
    )


def _reach(pins: Iterable[Pin], roots: Iterable[str]) -> set[str]:
    reached, grown = set(roots), True
    while grown:
        more = {pin.name for pin in pins if pin.brought_by & reached} - reached
        reached, grown = reached | more, bool(more)
    return reached


def main(arguments: Sequence[str] | None = None) -> None:
    """Print requirements that `pip install --require-hashes --no-deps` takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extras", default="", help="of pyproject.toml, with commas")
    parser.add_argument("--without", action="append", default=[], metavar="NAME")
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    given = parser.parse_args(arguments)
    extras = [extra for extra in given.extras.split(",") if extra]
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = parse_lock(Path(LOCK).read_text(encoding="utf-8"))
    try:
        chosen = select(
            pins, direct_dependencies(project, extras), without=given.without, only=given.only
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
    sys.stdout.writelines(f"{pin.requirement}\n" for pin in chosen)


if __name__ == "__main__":
    main()
