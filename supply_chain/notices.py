"""Write THIRD_PARTY_NOTICES.md: who made what the image ships, and under which licence.

python -m supply_chain.notices > NOTICES.md                       # of what is installed here
python -m supply_chain.notices --report report.json > NOTICES.md  # of what pip would install
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from supply_chain.distributions import PythonPackage, read_installed, read_report
from supply_chain.licences import not_permissive, why

_SITE = "/opt/rankzero/lib/python3.*/site-packages"

_INTRODUCTION = f"""# Third-party notices

RankZero is Apache-2.0. Its container image ships the work of others, listed here. The wheel ships
nothing of theirs. Written by `make notices` from each package's own metadata; the image has a copy
of its own in `/usr/share/doc/rankzero/`, of what is really installed in it.

Licence texts are in the image: a Python package's in
`{_SITE}/NAME-VERSION.dist-info/`, there or under
`licenses/`; a Debian package's in `/usr/share/doc/NAME/copyright`.
`LicenseRef-BSD`: the metadata says "BSD" and not which; the text does.
"""

_NO_FILE, _NOT_LISTED, _UNSEEN = "none", "not listed", "Not looked at yet."
_NO_TEXT = f"""
"{_NO_FILE}": the package has no licence text. Apache-2.0's is that of this project's `LICENSE`; for
the others it is at their home page. "{_NOT_LISTED}": the metadata names no file; whether there is
one is told by the image's own copy of this page.
"""

# By hand: the base image decides the exact packages, and the bill of materials lists those.
_DEBIAN = Path(__file__).with_name("debian.md")


def render(packages: Sequence[PythonPackage]) -> str:
    """Return the page."""
    lines = [_INTRODUCTION, "## Not merely permissive\n", *_exceptions(packages)]
    lines += ["\n## Python packages\n", "| package | version | licence | licence text | home |"]
    lines += [
        "|---|---|---|---|---|",
        *map(_row, packages),
        _NO_TEXT.rstrip(),
        "",
        _DEBIAN.read_text(encoding="utf-8").rstrip(),
    ]
    return "\n".join(lines) + "\n"


def _exceptions(packages: Iterable[PythonPackage]) -> Iterator[str]:
    by_reason: dict[tuple[str, str], list[str]] = {}
    for package in packages:
        for licence in not_permissive(package.licence):
            by_reason.setdefault((licence, why(package.name, licence) or _UNSEEN), []).append(
                package.name
            )
    for (licence, reason), names in sorted(by_reason.items()):
        yield f"- **{licence}**: {', '.join(names)}. {reason}"


def _row(package: PythonPackage) -> str:
    first, *more = sorted(package.licence_files or (), key=len) or [_NO_FILE]
    if package.licence_files is None:
        first = _NOT_LISTED
    text = f"{first} and {len(more)} more" if more else first
    cells = (package.name, package.version, package.licence, text, package.home)
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, help="what pip would install, not what is here")
    report = parser.parse_args(arguments).report
    sys.stdout.write(render(read_report(report) if report else read_installed()))


if __name__ == "__main__":
    main()
