"""The base model of a card: its public name, and the licence it came with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub.repocard import metadata_load

LEGAL_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
_LICENSES = ("LICENSE", "LICENCE")
_HUB_FOLDER = "models--"
_SNAPSHOTS = "snapshots"


@dataclass(frozen=True)
class Base:
    """A base model, without a word about the machine it lies on."""

    name: str
    hub_id: str | None = None
    """None for a local folder that says nothing of the Hub."""
    revision: str | None = None
    """Commit on the Hub."""
    license: dict[str, str] = field(default_factory=dict)
    """Front matter about the licence; empty when it is not known."""
    legal_files: tuple[str, ...] = ()
    """Files with the licence's text that lie beside the card."""


def read_base(name: str, folder: Path, output: Path) -> Base:
    """Read what is known of a base model.

    name: as the user or the adapter gave it, a path or a Hub id. folder: where its files are.
    output: where the card will be.
    """
    hub_id, revision = _origin(name, folder)
    legal = sorted({file.name for kind in LEGAL_FILES for file in output.glob(kind)})
    return Base(
        name=published_name(name, folder),
        hub_id=hub_id,
        revision=revision,
        license=_license(folder, hub_id, legal),
        legal_files=tuple(legal),
    )


def published_name(name: str, folder: Path) -> str:
    """Return a model's Hub id, or its folder's name alone: directories are nobody's business."""
    return _origin(name, folder)[0] or folder.resolve().name


def _origin(name: str, folder: Path) -> tuple[str | None, str | None]:
    """Find Hub id and commit; the Hub's cache has them in the path: models--O--N/snapshots/C."""
    is_local = Path(name).expanduser().is_dir()
    place = folder.resolve()
    if place.parent.name != _SNAPSHOTS:
        return (None if is_local else name), None
    cached = place.parent.parent.name
    if is_local and not cached.startswith(_HUB_FOLDER):
        return None, None
    hub_id = cached.removeprefix(_HUB_FOLDER).replace("--", "/", 1) if is_local else name
    return hub_id, place.name


def _license(folder: Path, hub_id: str | None, legal: list[str]) -> dict[str, str]:
    """Return the licence as the base states it; `other` when it only brings a text."""
    stated = _read_front_matter(folder / "README.md")
    values = {
        key: value
        for key in ("license", "license_name", "license_link")
        if isinstance(value := stated.get(key), str)
    }
    if "license" not in values:
        own = next((file for file in legal if file.startswith(_LICENSES)), None)
        return {"license": "other", "license_link": own} if own else {}
    link = values.get("license_link")
    if link and not link.startswith(("http://", "https://")) and link not in legal:
        del values["license_link"]
        if hub_id:
            values["license_link"] = f"https://huggingface.co/{hub_id}/blob/main/{link}"
    return values


def _read_front_matter(card: Path) -> dict[str, object]:
    try:
        return metadata_load(card) or {}
    except (OSError, ValueError, yaml.YAMLError):  # a card of the base that cannot be read
        return {}
