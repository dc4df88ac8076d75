"""What the image installs is pinned by hash, its licences are told, and its bill lists it."""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement

from launcher.doctor.packages import parse_pins
from supply_chain.distributions import PythonPackage, read_installed, read_report
from supply_chain.image_lock import (
    Pin,
    direct_dependencies,
    is_of_torch,
    normal_name,
    parse_lock,
    select,
)
from supply_chain.licences import UNKNOWN, licence_of, not_permissive, why
from supply_chain.notices import render
from supply_chain.sbom import DebianPackage, parse_dpkg, to_bill

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = parse_lock((ROOT / "image.lock").read_text(encoding="utf-8"))
NOTICES = (ROOT / "THIRD_PARTY_NOTICES.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
# Python's own names for the images the Dockerfile makes.
IMAGES = [
    {"sys_platform": "linux", "python_version": minor, "python_full_version": f"{minor}.1"}
    for minor in ("3.11", "3.12", "3.13")
]
LOCK = """\
a==1 \\
    --hash=sha256:aa \\
    --hash=sha256:ab
    # via
    #   -c requirements.lock
    #   rankzero (pyproject.toml)
B_b==2.0 ; sys_platform == 'linux' \\
    --hash=sha256:bb
    # via a
nvidia-x==3 \\
    --hash=sha256:cc
    # via torch
tool==4 \\
    --hash=sha256:dd
    # via torch
torch==5 \\
    --hash=sha256:ee
    # via a
unwanted==6 \\
    --hash=sha256:ff
    # via another
"""


def names(pins: list[Pin]) -> list[str]:
    return [pin.name for pin in pins]


def of_the_image() -> list[Pin]:
    """Return what an image with CUDA and trackers installs on Linux."""
    chosen = select(PINS, direct_dependencies(PROJECT, ["track"]))
    return [pin for pin in chosen if applies(pin, IMAGES[0])]


def applies(pin: Pin, image: dict[str, str]) -> bool:
    marker = Requirement(pin.requirement.splitlines()[0].rstrip(" \\")).marker
    return marker is None or marker.evaluate(image)


def rows() -> dict[str, list[str]]:
    """Return the page's Python packages: name -> version, licence, text, home."""
    table = NOTICES.partition("## Python packages")[2].partition("## Debian")[0]
    cells = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in cells[1:]}


# ---- the lock ----


def test_a_lock_is_read() -> None:
    first, second = parse_lock(LOCK)[:2]
    assert first.hashes == ("sha256:aa", "sha256:ab")
    assert first.brought_by == {"rankzero"}
    assert second.name == "b-b"
    assert second.requirement == "B_b==2.0 ; sys_platform == 'linux' \\\n    --hash=sha256:bb"


def test_what_is_needed_is_selected() -> None:
    pins = parse_lock(LOCK)
    assert names(select(pins, {"a"})) == ["a", "b-b", "nvidia-x", "tool", "torch"]
    assert names(select(pins, {"a"}, without={"torch"})) == ["a", "b-b", "tool"]
    assert names(select(pins, {"a"}, without={"b-b"}, only={"a", "b-b"})) == ["a"]


@pytest.mark.parametrize("argument", ["without", "only"])
def test_a_name_the_lock_does_not_have_is_refused(argument: str) -> None:
    with pytest.raises(ValueError, match="missing"):
        select(parse_lock(LOCK), {"a"}, **{argument: {"missing"}})
    with pytest.raises(ValueError, match="missing"):
        select(parse_lock(LOCK), {"missing"})


def test_a_package_without_a_version_is_no_lock() -> None:
    with pytest.raises(ValueError, match="not a pinned package: a>=1"):
        parse_lock("a>=1\n")


def test_every_file_of_the_image_has_a_hash_and_nothing_has_an_address() -> None:
    assert all(pin.hashes for pin in PINS)
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for pin in PINS for each in pin.hashes)
    assert "://" not in (ROOT / "image.lock").read_text(encoding="utf-8")


def test_the_image_has_the_versions_that_are_tested() -> None:
    tested = parse_pins((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    shared = {pin.name: pin.version for pin in PINS if pin.name in tested}
    assert shared == {name: tested[name] for name in shared}
    # The rest: torch's CUDA libraries, setuptools, and what only other systems install.
    only_here = {pin.name for pin in PINS if applies(pin, IMAGES[0])} - set(tested)
    assert {name for name in only_here if not is_of_torch(name)} == {"setuptools"}


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image["python_version"])
def test_the_lock_has_whatever_the_installed_packages_need(image: dict[str, str]) -> None:
    locked = {pin.name for pin in select(PINS, direct_dependencies(PROJECT)) if applies(pin, image)}
    looked_at = 0
    for name in sorted(locked):
        try:
            requirements = [Requirement(text) for text in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue  # CUDA libraries; pip itself checks them in the build
        looked_at += 1
        needed = {
            normal_name(each.name)
            for each in requirements
            if each.marker is None or each.marker.evaluate({**image, "extra": ""})
        }
        assert needed <= locked, name
    assert looked_at > 60


def test_the_dockerfile_takes_nothing_unhashed_but_what_it_says() -> None:
    joined = DOCKERFILE.replace("\\\n", " ")
    code = [line for line in joined.splitlines() if not line.startswith("#")]
    commands = re.findall(r"pip install [^&;]*", "\n".join(code))
    unhashed = [each for each in commands if "--require-hashes" not in each]
    reasons = ('"torch==${TORCH}"', "wheel==", '"${FLASH_ATTN}"', "--no-index")
    assert len(commands) > len(unhashed) > 0
    assert [each for each in unhashed if not any(reason in each for reason in reasons)] == []


# ---- licences ----


def test_the_notices_list_exactly_what_the_image_installs() -> None:
    listed = {name: row[0] for name, row in rows().items()}
    assert listed == {pin.name: pin.version for pin in of_the_image()}


def test_the_notices_say_what_installed_metadata_says() -> None:
    installed = {package.name: package for package in read_installed()}
    compared = 0
    for name, (version, licence, _, home) in rows().items():
        package = installed.get(name)
        if package and package.version == version:
            assert (licence, home) == (package.licence, package.home)
            compared += 1
    assert compared > 60


def test_a_licence_that_is_not_permissive_is_named_and_explained() -> None:
    section = NOTICES.partition("## Not merely permissive")[2].partition("## Python packages")[0]
    unusual = {name: left for name, row in rows().items() if (left := not_permissive(row[1]))}
    assert {"tqdm", "nvidia-cublas"} <= set(unusual)
    for name, licences in unusual.items():
        for licence in licences:
            reason = why(name, licence)
            assert reason, f"{name}: {licence}; explain it in supply_chain/licences.py"
            (line,) = [each for each in section.splitlines() if reason in each]
            assert f"**{licence}**" in line
            assert re.search(rf"\b{re.escape(name)}\b", line)


@pytest.mark.parametrize(
    ("expression", "left"),
    [
        ("MIT", set()),
        ("Apache-2.0 OR GPL-2.0-only", set()),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", {"MPL-2.0"}),
        ("(MIT OR GPL-3.0-only) AND LGPL-2.1-only", {"LGPL-2.1-only"}),
        ("Apache-2.0 AND Apache-2.0 WITH LLVM-exception", set()),
        ("GPL-2.0-only WITH Linux-syscall-note", {"GPL-2.0-only WITH Linux-syscall-note"}),
        (UNKNOWN, {UNKNOWN}),
    ],
)
def test_what_an_expression_leaves_beyond_a_notice(expression: str, left: set[str]) -> None:
    assert not_permissive(expression) == left


@pytest.mark.parametrize(
    ("stated", "licence"),
    [
        ({"license_expression": "ISC", "license": "MIT"}, "ISC"),
        ({"license": "Apache 2.0 License"}, "Apache-2.0"),
        ({"license": "MPL-2.0 AND MIT"}, "MPL-2.0 AND MIT"),
        (
            {
                "license": "A whole text\nof many lines",
                "classifier": ["License :: X :: MIT License"],
            },
            "MIT",
        ),
        ({"license": "BSD", "classifier": ["License :: X :: BSD License"]}, "LicenseRef-BSD"),
        ({"classifier": ["Topic :: MIT License"]}, UNKNOWN),
    ],
)
def test_one_spelling_for_what_metadata_states(stated: dict[str, object], licence: str) -> None:
    assert licence_of({"name": "a", **stated}) == licence


def make_site(folder: Path) -> Path:
    info = folder / "A_b-1.0+cpu.dist-info"
    (info / "licenses").mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: A_b\nVersion: 1.0+cpu\nLicense-Expression: MPL-2.0\n"
        "Project-URL: Docs, https://a.example/docs\nProject-URL: Homepage, https://a.example\n"
    )
    (info / "licenses" / "LICENSE").write_text("text")
    (info / "RECORD").write_text(f"{info.name}/METADATA,,\n{info.name}/licenses/LICENSE,,\n")
    return folder


EXPECTED = PythonPackage("a-b", "1.0+cpu", "MPL-2.0", "https://a.example", ("LICENSE",))


def test_installed_packages_and_a_pip_report_read_the_same(tmp_path: Path) -> None:
    assert read_installed([str(make_site(tmp_path))]) == [EXPECTED]
    core = {"name": "A_b", "version": "1.0+cpu", "license_expression": "MPL-2.0"}
    core |= {"home_page": "https://a.example"}
    listed = {"install": [{"metadata": {**core, "license_file": ["AUTHORS", "LICENSE"]}}]}
    (tmp_path / "report.json").write_text(json.dumps(listed))
    assert read_report(tmp_path / "report.json") == [EXPECTED]


def test_a_licence_nobody_has_looked_at_is_said_to_be_so() -> None:
    page = render([PythonPackage("x", "1", "AGPL-3.0-only", "", ())])
    assert "- **AGPL-3.0-only**: x. Not looked at yet." in page
    assert "| x | 1 | AGPL-3.0-only | none |" in page


# ---- bill of materials ----


def test_the_bill_lists_python_and_debian_packages_by_their_addresses() -> None:
    dpkg = "g++\t4:12.2\tamd64\tinstalled\nold\t1\tall\tconfig-files\n"
    debian = parse_dpkg(dpkg)
    assert debian == [DebianPackage("g++", "4:12.2", "amd64")]
    bill = to_bill([EXPECTED], debian, {"ID": "debian", "VERSION_ID": "12"}, "0.1.0")
    assert bill["metadata"]["component"]["version"] == "0.1.0"
    python, library = bill["components"]
    assert python["purl"] == "pkg:pypi/a-b@1.0%2Bcpu"
    assert python["licenses"] == [{"expression": "MPL-2.0"}]
    assert library["purl"] == "pkg:deb/debian/g%2B%2B@4:12.2?arch=amd64&distro=debian-12"


def test_nothing_is_invented_where_metadata_says_nothing() -> None:
    (component,) = to_bill([PythonPackage("a", "1", UNKNOWN, "", ())], [], {}, "1")["components"]
    assert set(component) == {"type", "bom-ref", "name", "version", "purl"}


def test_labels_name_the_files_the_build_writes() -> None:
    labels = dict(re.findall(r'^\s+rankzero\.(\w+)="([^"]+)"', DOCKERFILE, re.MULTILINE))
    assert set(labels) == {"notices", "sbom"}
    for name, path in labels.items():
        assert f"python -m supply_chain.{name} > {path}" in DOCKERFILE
