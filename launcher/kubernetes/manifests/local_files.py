"""What of a config lies on this machine, and so must get to the cluster."""

from __future__ import annotations

import re
from pathlib import Path

from launcher.kubernetes.manifests.run_config import FILE_SETTINGS, LocalFiles
from launcher.profile_file import profile_names
from trainer.config import Config
from trainer.data.sources import KINDS
from trainer.errors import ConfigError
from trainer.model_source import looks_like_path


def find_local_files(config: Config, profile: str) -> LocalFiles:
    """Look up the files and folders that a config names, and a profile that is a file.

    Raises: ConfigError for a small file that cannot be read as text.
    """
    paths = {setting: _value(config, setting) for setting in FILE_SETTINGS}
    files = {
        setting: Path(value).expanduser()
        for setting, value in paths.items()
        if isinstance(value, str) and Path(value).expanduser().is_file()
    }
    if profile not in profile_names() and Path(profile).is_file():
        files["profile"] = Path(profile)
    sources = [*config.data.train, *config.data.validation, *config.data.test]
    name = config.model.name
    data = tuple(dict.fromkeys(source.path for source in sources if _is_local(source.path)))
    return LocalFiles(
        is_model_local=Path(name).is_dir() or looks_like_path(name),
        data=data,
        texts={setting: _read(path) for setting, path in files.items()},
        names={setting: _config_key(path.name) for setting, path in files.items()},
        data_bytes=sum(_size_bytes(Path(path).expanduser()) for path in data),
    )


def what_needs_the_internet(config: Config, local: LocalFiles) -> list[str]:
    """List what a run would fetch from outside the cluster, or send there. PURE."""
    found = [] if local.is_model_local else [f"model {config.model.name} is the Hub's"]
    sources = [*config.data.train, *config.data.validation, *config.data.test]
    found += [
        f"data {source.path} is the Hub's" for source in sources if source.path not in local.data
    ]
    if "wandb" in config.tracking.to:
        found.append("wandb is outside the cluster")
    if config.hub.repository is not None:
        found.append(f"{config.hub.repository} is to be pushed to the Hub")
    return found


def _value(config: Config, setting: str) -> object:
    section, _, name = setting.partition(".")
    return vars(vars(config)[section])[name]


def _is_local(path: str) -> bool:
    return (
        Path(path).suffix.lower() in KINDS
        or path.startswith(("/", ".", "~"))
        or path.count("/") > 1
        or Path(path).exists()
    )


def _config_key(name: str) -> str:
    """Source: Kubernetes API, ConfigMap: keys are letters, digits, `-`, `_` and `.`."""
    return re.sub(r"[^-._a-zA-Z0-9]", "_", name)


def _size_bytes(path: Path) -> float:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.is_file() else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read as text: {error}",
            rule="small files that a config names travel with it",
            fix="name a text file that you may read",
        ) from None
