"""A run's config as its pods read it: every local path is one of the cluster's. PURE.

Small files that the config names travel in the ConfigMap; models and data lie on volumes. What is
on this machine is looked up before and handed in, so that the same values give the same text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from launcher.kubernetes.cluster import CONFIG_FILE, CONFIG_FOLDER, MOUNTS
from trainer.config import Config
from trainer.data.sources import ROLES
from trainer.errors import ConfigError

# Settings that may name a small file, whose text pods need.
FILE_SETTINGS = (
    "data.chat_template",
    "training.deepspeed_config",
    "samples.prompts",
    "safety.prompts",
    "safety.rules",
)
# Source: Kubernetes API, ConfigMap: "The total size ... must be less than 1 MiB".
_LARGEST_CONFIG_BYTES = 1024 * 1024


@dataclass(frozen=True)
class LocalFiles:
    """What of a config lies on this machine."""

    is_model_local: bool
    data: tuple[str, ...]
    """Paths of the config's sources that are files or folders, not Hub ids."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Content of small files by setting, or by `profile`; only those that are files."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Their file names, by the same."""
    data_bytes: float = 0.0


@dataclass(frozen=True)
class ClusterConfig:
    """The config as values, and the files that belong to it."""

    values: dict[str, Any]
    files: dict[str, str]
    """Beside the config itself: name -> text."""

    def check_size(self, text: str) -> None:
        """Raises: ConfigError when config and files are more than a ConfigMap holds."""
        size = len(text.encode()) + sum(len(each.encode()) for each in self.files.values())
        if size > _LARGEST_CONFIG_BYTES:
            raise ConfigError(
                f"the config and the files it names are {size:,} bytes",
                rule="they travel in a ConfigMap, which holds 1 MiB",
                fix="put the largest on a volume and name its path there",
            )


def to_cluster_config(config: Config, local: LocalFiles) -> ClusterConfig:
    """Return the config with the cluster's paths, without the settings that are defaults.

    Raises: ConfigError when two things would get the same path there.
    """
    values = config.model_dump(mode="json", exclude_defaults=True)
    values["output_dir"] = cluster_path("runs", config.output_dir)
    if local.is_model_local:
        values["model"]["name"] = cluster_path("models", config.model.name)
    _check_distinct([PurePosixPath(path).name for path in local.data], "data sources")
    for split in ROLES:
        for source in values["data"].get(split, []):
            if source["path"] in local.data:
                source["path"] = cluster_path("data", source["path"])
    values["data"].pop("cache_dir", None)  # RANKZERO_CACHE says it
    _check_distinct([CONFIG_FILE, *local.names.values()], "files the config names")
    for setting in local.texts:
        section, _, name = setting.partition(".")
        if name:
            values[section][name] = f"{CONFIG_FOLDER}/{local.names[setting]}"
    files = {local.names[setting]: text for setting, text in local.texts.items()}
    return ClusterConfig(values, files)


def cluster_path(role: Any, path: str) -> str:
    """Return where a file or folder of this machine lies in a pod: its own name on a volume."""
    own = PurePosixPath(path).name
    if not own or own == "..":
        raise ConfigError(
            f"{path} has no name of its own",
            rule=f"on the cluster it lies under {MOUNTS[role]} by its own name",
            fix="give its path with the name",
        )
    return f"{MOUNTS[role]}/{own}"


def _check_distinct(names: Sequence[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"{what} have the same name: {', '.join(twice)}",
            rule="on the cluster each lies in one folder, by its own name",
            fix="rename one of them",
        )
