"""Names that Kubernetes accepts, and the labels that find a run's objects again. PURE."""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath

from launcher import __version__
from trainer.errors import ConfigError

APPLICATION = "rankzero"
LONGEST_LABEL = 63
"""Characters of a DNS label. Source: RFC 1123, which every name and label value here obeys."""
# A JobSet's pods have the longest names: NAME-node-0-INDEX-xxxxx, with an index of three digits.
LONGEST_NAME = LONGEST_LABEL - len("-node-0-999-xxxxx")
_HASH_CHARACTERS = 6
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def run_name(output_dir: str) -> str:
    """Return the name of a run's objects: `rankzero-` and the run directory's own name.

    A name that had to be changed or shortened ends in a hash of the original, so that two run
    directories never share their objects by accident.
    """
    own = PurePosixPath(output_dir).name
    plain = re.sub(r"[^a-z0-9]+", "-", own.lower()).strip("-")
    name = f"{APPLICATION}-{plain}" if plain else APPLICATION
    if plain == own and len(name) <= LONGEST_NAME:
        return name
    suffix = hashlib.sha256(own.encode()).hexdigest()[:_HASH_CHARACTERS]
    return f"{name[: LONGEST_NAME - len(suffix) - 1].rstrip('-')}-{suffix}"


def check_name(option: str, name: str) -> str:
    """Return a name of the cluster's that the user gave, as it is.

    Raises: ConfigError when no object can be called so.
    """
    if len(name) <= LONGEST_LABEL and _DNS_LABEL.fullmatch(name):
        return name
    raise ConfigError(
        f"{option} {name!r} is no name of a Kubernetes object",
        rule=f"lower-case letters, digits and dashes, at most {LONGEST_LABEL}, no dash at an end",
        fix="give the name that kubectl shows",
    )


def selector_labels(name: str) -> dict[str, str]:
    """Return the labels that a run's pods have and no other's."""
    return {"app.kubernetes.io/name": APPLICATION, "app.kubernetes.io/instance": name}


def labels(name: str) -> dict[str, str]:
    """Return the labels of every object of a run."""
    return {
        **selector_labels(name),
        "app.kubernetes.io/component": "trainer",
        "app.kubernetes.io/managed-by": APPLICATION,
        "app.kubernetes.io/version": __version__,
    }
