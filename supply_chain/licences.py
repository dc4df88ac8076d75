"""Licences: one spelling for each, which are permissive, and what the others ask for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

UNKNOWN = "unknown"

# Lower case, as found in `License` and behind the last `::` of a classifier -> SPDX identifier.
_SPELLINGS = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license version 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache software license 2.0": "Apache-2.0",
    "apache-2": "Apache-2.0",
    "apache2": "Apache-2.0",
    "bsd 3-clause": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd-3-clause license": "BSD-3-Clause",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "new bsd": "BSD-3-Clause",
    "nvidia proprietary software": "LicenseRef-NVIDIA-Proprietary",
    "licenseref-nvidia-proprietary": "LicenseRef-NVIDIA-Proprietary",
    "licenseref-nvidia-software-license": "LicenseRef-NVIDIA-Proprietary",
    "other/proprietary license": "LicenseRef-Proprietary",
    "python software foundation license": "PSF-2.0",
}
# "BSD" alone does not tell which; said as it is, in SPDX's way for a name of one's own.
_BSD = {"bsd": "LicenseRef-BSD", "bsd license": "LicenseRef-BSD"}

PERMISSIVE = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CNRI-Python",
    "ISC",
    "LicenseRef-BSD",
    "MIT",
    "MIT-0",
    "MIT-CMU",
    "PSF-2.0",
    "Unlicense",
    "Zlib",
}

# What the others ask for. A licence that is neither permissive nor here fails a test.
EXPLAINED = {
    "LicenseRef-NVIDIA-Proprietary": (
        "Libraries of the CUDA toolkit, to which torch's build for CUDA links. Proprietary. "
        "NVIDIA's licence agreement allows to pass them on as part of an application, on terms: "
        "whoever publishes an image with them must read and keep those. A build with a torch for "
        "CPUs (`--build-arg TORCH=...`) has none of them."
    ),
    "MPL-2.0": (
        "Weak copyleft, file by file. Passed on unmodified, as published; the source is at the "
        "package's home page. Nothing else in the image is affected."
    ),
}
_UNSTATED = {
    "cuda-toolkit": "Names packages of NVIDIA's, and has no file but that metadata.",
}
_STATED = {name.lower(): name for name in {*PERMISSIVE, *EXPLAINED}}

# Metadata that names no licence beside a text that is one.
_READ_IN_THE_TEXT = {"huey": "MIT", "skops": "MIT"}


def licence_of(metadata: Mapping[str, Any]) -> str:
    """Return the SPDX expression a distribution states; `unknown` if it states none.

    `metadata` is core metadata as JSON (PEP 566). What is most exact wins: the expression, then a
    `License` of one line, then the classifiers.
    """
    if expression := metadata.get("license_expression"):
        return _SPELLINGS.get(str(expression).lower(), str(expression))
    classifiers = [
        text.rpartition(" :: ")[2]
        for text in metadata.get("classifier") or []
        if text.startswith("License ::")
    ]
    stated = [
        name for text in (metadata.get("license") or "", *classifiers) if (name := _spdx(text))
    ]
    exact = [name for name in stated if name != "LicenseRef-BSD"]
    return (exact or stated or [_READ_IN_THE_TEXT.get(metadata["name"].lower(), UNKNOWN)])[0]


def not_permissive(expression: str) -> set[str]:
    """Return the licences that ask for more than a notice; where OR leaves a choice, the fewest."""
    tokens = re.findall(r"[()]|[^\s()]+(?: WITH [^\s()]+)?", expression)
    choices = _either(tokens)
    return min((choice - PERMISSIVE for choice in choices), key=lambda left: (len(left), *left))


def why(package: str, licence: str) -> str | None:
    """Return what a licence that is not permissive means here; None when nobody has looked."""
    return _UNSTATED.get(package) if licence == UNKNOWN else EXPLAINED.get(licence)


def _either(tokens: list[str]) -> list[set[str]]:
    # One set of licences for each way to read the expression; AND binds closer than OR.
    choices = _together(tokens)
    while tokens and tokens[0] == "OR":
        tokens.pop(0)
        choices = choices + _together(tokens)
    return choices


def _together(tokens: list[str]) -> list[set[str]]:
    choices = _one(tokens)
    while tokens and tokens[0] == "AND":
        tokens.pop(0)
        choices = [left | right for right in _one(tokens) for left in choices]
    return choices


def _one(tokens: list[str]) -> list[set[str]]:
    token = tokens.pop(0)
    if token != "(":
        return [{token}]
    choices = _either(tokens)
    tokens.pop(0)
    return choices


def _spdx(text: str) -> str | None:
    spelled = " ".join(text.split()).lower()
    known = {**_SPELLINGS, **_BSD, **_STATED}
    if " and " in spelled:
        names = [known.get(part) for part in spelled.split(" and ")]
        return " AND ".join(str(name) for name in names) if all(names) else None
    return known.get(spelled)
