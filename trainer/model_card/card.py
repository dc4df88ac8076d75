"""The facts of a model as the README.md of its Hub repository."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCardData

from trainer.model_card.base import Base, published_name, read_base
from trainer.model_card.run import Adapter, Row, read_adapter

_TEMPLATE = "card.md.jinja"
_PRECISIONS = {
    "original": "the base as it is stored",
    "dequantized": "the base as its quantised form reads",
}
_LIBRARIES = ("rankzero", "torch", "transformers", "peft")


@dataclass(frozen=True)
class Merge:
    """How base and adapters became one model, and the proof."""

    rows: tuple[Row, ...]
    requirements: tuple[Row, ...]
    """Figure, condition, measured, met."""
    notes: tuple[str, ...]
    versions: dict[str, str]
    has_safety: bool


@dataclass(frozen=True)
class Card:
    """Everything a card says."""

    base: Base
    adapters: tuple[Adapter, ...]
    """In the order they were applied."""
    merge: Merge | None = None
    """None: the card of an adapter."""
    needs_code: bool = False
    """The model comes with code of its own."""

    @property
    def has_safety(self) -> bool:
        measured = self.merge is not None and self.merge.has_safety
        return measured or self.adapters[-1].has_safety


def write_model_card(
    folder: Path,
    *,
    base: str,
    base_folder: Path,
    adapters: Sequence[Path],
    report: Mapping[str, Any] | None = None,
) -> None:
    """Write README.md for the model in `folder`, which has all its other files.

    base: as the user or the adapter names it; base_folder: where its files are. adapters: in the
    order they were merged. report: what merge.json says; None for the card of an adapter.

    Raises: OSError; ConfigError when an adapter_config.json is not JSON.
    """
    card = Card(
        base=read_base(base, base_folder, folder),
        adapters=tuple(read_adapter(adapter) for adapter in adapters),
        merge=None if report is None else read_merge(report, base, base_folder),
        needs_code=any(folder.glob("*.py")),
    )
    (folder / "README.md").write_text(render(card), encoding="utf-8")


def render(card: Card) -> str:
    """Return the whole README.md. Pure."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    template = environment.get_template(_TEMPLATE)
    text = template.render(card=card, front_matter=front_matter(card).to_yaml())
    return re.sub(r"\n{3,}", "\n\n", text)


def front_matter(card: Card) -> ModelCardData:
    """Return what the Hub itself reads of a card. Pure.

    Only Hub ids: the Hub refuses a card whose base_model or datasets are anything else.
    Source: https://huggingface.co/docs/hub/model-cards#specifying-a-base-model; a model made of
    one base and what it learned is a `finetune`, `merge` is one of several bases.
    """
    is_adapter = card.merge is None
    base_id = card.base.hub_id
    relation = {"base_model_relation": "adapter" if is_adapter else "finetune"} if base_id else {}
    datasets = {name for adapter in card.adapters if adapter.data for name in adapter.data.hub_ids}
    return ModelCardData(
        base_model=base_id,
        **relation,
        **card.base.license,
        datasets=sorted(datasets) or None,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["rankzero", "lora"],
    )


def read_merge(report: Mapping[str, Any], base: str, base_folder: Path) -> Merge:
    """Read what merge.json says, without its paths."""
    required: Mapping[str, Mapping[str, Any]] = report.get("requirements") or {}
    measured = [figure for figure, found in required.items() if found["measured"] is not None]
    return Merge(
        rows=_merge_rows(report),
        requirements=tuple(
            (
                figure,
                str(found["required"]),
                "not measured" if found["measured"] is None else f"{found['measured']:.4g}",
                "yes" if found["met"] else "no",
            )
            for figure, found in required.items()
        ),
        notes=tuple(_public(note, base, base_folder) for note in report.get("notes") or ()),
        versions=_versions(),
        has_safety=any(figure.startswith("safety.") for figure in measured),
    )


def _public(text: str, base: str, folder: Path) -> str:
    name = published_name(base, folder)
    places = sorted({str(folder), base}, key=len, reverse=True)
    for place in places:
        if "/" in place.strip("."):  # not `.`, which is in every text
            text = text.replace(place, name)
    return text


def _versions() -> dict[str, str]:
    installed = {}
    for library in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):  # run from its source
            installed[library] = metadata.version(library)
    return installed


def _merge_rows(report: Mapping[str, Any]) -> tuple[Row, ...]:
    names = report["targets"]
    kinds = sorted({name.removesuffix(".weight").rpartition(".")[2] for name in names})
    rows: list[Row] = [
        ("How", report["how"].partition(":")[0]),
        ("Type of the weights", report["dtype"]),
        ("Merged into", _PRECISIONS.get(report["base_precision"], report["base_precision"])),
        ("Adapter tensors used, each once", str(report["num_adapter_tensors"])),
        ("Weights the merge may change", f"{len(names)} ({', '.join(kinds)})"),
        (
            "Largest difference of logits from base with adapter",
            f"{report['max_logit_difference']:.2g} (largest logit {report['max_logit']:.3g})",
        ),
    ]
    rows += [
        (f"Distance from what was trained, base {precision}", f"{distance:.3g}")
        for precision, distance in (report.get("distances") or {}).items()
    ]
    rows += [
        (f"Digest of {part}", digest)
        for part, digest in (report.get("identity") or {}).items()
        if part != "precision"
    ]
    return tuple(rows)


def _cell(text: str) -> str:
    """Keep a value inside its table cell, and HTML out of it."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
