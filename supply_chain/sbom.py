"""Write the image's bill of materials: what is installed, as CycloneDX JSON, to standard output.

    python -m supply_chain.sbom > sbom.cdx.json

No time and no serial number: the same image has the same bill.
Source: CycloneDX 1.6, https://cyclonedx.org/docs/1.6/json/; package URLs, ECMA-427.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any
from urllib.parse import quote

from supply_chain.distributions import PythonPackage, read_installed
from supply_chain.licences import UNKNOWN

Component = dict[str, Any]
_FIELDS = "${Package}\\t${Version}\\t${Architecture}\\t${db:Status-Status}\\n"


@dataclass(frozen=True)
class DebianPackage:
    """One package of the base image or of apt."""

    name: str
    version: str
    architecture: str


def to_bill(
    python: Iterable[PythonPackage],
    debian: Iterable[DebianPackage],
    release: Mapping[str, str],
    version: str,
) -> dict[str, Any]:
    """Return the bill; `release` is /etc/os-release, `version` this project's. PURE."""
    components = [_python_component(package) for package in python]
    components += [_debian_component(package, release) for package in debian]
    image = {"type": "container", "bom-ref": "image", "name": "rankzero", "version": version}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": image},
        "components": components,
    }


def parse_dpkg(printed: str) -> list[DebianPackage]:
    """Read dpkg-query's lines; packages that were removed and left settings are not there. PURE."""
    rows = [line.split("\t") for line in printed.splitlines()]
    return [DebianPackage(*row[:3]) for row in rows if row[3] == "installed"]


def _python_component(package: PythonPackage) -> Component:
    component = _library(package.name, package.version, f"pypi/{package.name}", "")
    if package.licence != UNKNOWN:
        component["licenses"] = [{"expression": package.licence}]
    if package.home:
        component["externalReferences"] = [{"type": "website", "url": package.home}]
    return component


def _debian_component(package: DebianPackage, release: Mapping[str, str]) -> Component:
    system = release.get("ID", "debian")
    distro = f"{system}-{release['VERSION_ID']}" if "VERSION_ID" in release else system
    where = f"?arch={package.architecture}&distro={quote(distro)}"
    return _library(
        package.name, package.version, f"deb/{system}/{quote(package.name, safe='')}", where
    )


def _library(name: str, version: str, place: str, qualifiers: str) -> Component:
    url = f"pkg:{place}@{quote(version, safe='.-_~:')}{qualifiers}"
    return {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}


def _read_debian() -> list[DebianPackage]:
    command = ["dpkg-query", "--show", f"--showformat={_FIELDS}"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return parse_dpkg(printed)


def main() -> None:
    """Print the bill of the machine this runs on."""
    bill = to_bill(
        read_installed(),
        _read_debian(),
        platform.freedesktop_os_release(),
        metadata.version("rankzero"),
    )
    json.dump(bill, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
