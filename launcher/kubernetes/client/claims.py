"""Whether volumes that exist already will do for a run. PURE."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.kubernetes.client.resources import Object, is_being_deleted, name_of
from launcher.kubernetes.manifests.volumes import READ_ONLY

_UNITS = {
    "": 1,
    **{unit: 1000**power for power, unit in enumerate("kMGTPE", 1)},
    **{f"{unit}i": 1024**power for power, unit in enumerate("KMGTPE", 1)},
}
_QUANTITY = re.compile(r"([0-9.]+(?:[eE][0-9]+)?)([A-Za-z]*)")
_SHARED = ("ReadWriteMany",)
_SHARED_FOR_READING = ("ReadWriteMany", "ReadOnlyMany")


@dataclass(frozen=True)
class Wanted:
    """A volume as the run uses it."""

    role: str
    name: str
    nodes: int
    size: str | None
    """What the plan asks for; None for a volume that was named by --claim."""


def find_claim_problem(wanted: Wanted, claim: Object | None) -> str | None:
    """Return why a claim will not do, with a fix; None when it will, or is yet to be made."""
    what, other = f"volume claim {wanted.name}", f"--claim {wanted.role}=NAME"
    if claim is None:
        if wanted.size is not None:
            return None
        return _problem(
            f"--claim {wanted.role}={wanted.name}: there is no such volume claim",
            "make it, or leave the option out to get one of the plan's size",
        )
    if is_being_deleted(claim):
        return _problem(f"{what} is being deleted", f"wait, or name another with {other}")
    modes = claim["spec"].get("accessModes") or []
    usable = _SHARED_FOR_READING if wanted.role in READ_ONLY else _SHARED
    if wanted.nodes > 1 and not set(modes) & set(usable):
        return _problem(
            f"{what} is {', '.join(modes)}: {wanted.nodes} nodes cannot share it",
            f"name a {usable[0]} volume with {other}, or use --nodes 1",
        )
    size = _size(claim)
    if wanted.size is not None and to_bytes(size) < to_bytes(wanted.size):
        return _problem(
            f"{what} has {size}, the plan needs {wanted.size}",
            f"enlarge it (kubectl edit pvc {name_of(claim)}, if its storage class allows), or name "
            f"another with {other}",
        )
    return None


def to_bytes(quantity: str) -> float:
    """Read a Kubernetes quantity of bytes, such as 10Gi."""
    found = _QUANTITY.fullmatch(quantity)
    return float(found[1]) * _UNITS.get(found[2], 1) if found else 0.0


def wanted_claims(
    objects: Mapping[str, Object], pod: Mapping[str, Any], nodes: int
) -> list[Wanted]:
    """Return the volumes that a rendered pod mounts; those rendered with it have a size."""
    sizes = {
        name_of(each): each["spec"]["resources"]["requests"]["storage"]
        for each in objects.values()
        if each["kind"] == "PersistentVolumeClaim"
    }
    mounted = [each for each in pod["spec"]["volumes"] if "persistentVolumeClaim" in each]
    names = {each["name"]: each["persistentVolumeClaim"]["claimName"] for each in mounted}
    return [Wanted(role, name, nodes, sizes.get(name)) for role, name in names.items()]


def _size(claim: Object) -> str:
    """What a volume has once it is bound, else what was asked for."""
    capacity = (claim.get("status") or {}).get("capacity") or {}
    return str(capacity.get("storage") or claim["spec"]["resources"]["requests"]["storage"])


def _problem(what: str, fix: str) -> str:
    return f"{what}\n     fix: {fix}"
