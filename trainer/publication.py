"""A finished run on the Hub: its adapter or its merged model, with a card that tells its story."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import snapshot_download

from trainer.config import Config
from trainer.hub import check_push, push_folder
from trainer.model_card.base import LEGAL_FILES, published_name
from trainer.model_card.card import write_model_card
from trainer.model_source import explaining_load
from trainer.requirements import check_requirements
from trainer.run_directory import RunDirectory


def check_publication(config: Config) -> None:
    """Check before training what a push at its end needs.

    Raises: ConfigError, EnvironmentProblem, as `trainer.hub.check_push`.
    """
    if config.hub.repository is not None:
        check_push(config.hub.repository, private=config.hub.private)


def publish_run(run: RunDirectory, config: Config) -> str:
    """Push what the config names and return the repository's URL.

    Ranks: rank 0 only.
    Raises: GateFailed when the run does not meet what it requires; as `trainer.hub.push_folder`.
    """
    hub = config.hub
    assert hub.repository is not None  # whoever calls has looked
    check_requirements(run.adapter)
    if hub.content == "merged":
        return push_folder(run.merged, hub.repository, private=hub.private)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "adapter"
        stage_adapter(run, config, folder)
        return push_folder(folder, hub.repository, private=hub.private)


def stage_adapter(run: RunDirectory, config: Config, folder: Path) -> None:
    """Copy a run's adapter to a new folder, with a card, and its base by the public name."""
    name, revision = config.model.name, config.model.revision
    base = Path(name).expanduser()
    if not base.is_dir():
        with explaining_load(name, revision):
            kinds = ["README.md", *LEGAL_FILES]
            base = Path(snapshot_download(name, revision=revision, allow_patterns=kinds))
    shutil.copytree(run.adapter, folder)
    path = folder / "adapter_config.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    description["base_model_name_or_path"] = published_name(name, base)
    path.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    write_model_card(folder, base=name, base_folder=base, adapters=[run.adapter])
