"""Where a base model comes from (a folder or the Hub), and what is wrong when it does not load."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from trainer.errors import ConfigError, EnvironmentProblem, RankZeroError

_FIELD = "model.name"
RECORDED_BASE = "base model of the adapter"
"""The field to name when the model was not given but read from adapter_config.json."""
# What transformers lets out when it looks a model's dtype up in torch.
_NO_SUCH_TYPE = re.compile(r"module 'torch' has no attribute ('\w+')")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LONGEST_REASON = 200  # characters; the libraries' own advice after it does not fit ours


def looks_like_path(name: str) -> bool:
    """Tell a folder that may be missing from a Hub id (`owner/name` or `name`)."""
    if name.startswith((".", "~")) or Path(name).is_absolute() or name.count("/") > 1:
        return True
    parent = Path(name).parent
    return parent != Path() and parent.is_dir()


def check_revision(name: str, revision: str | None) -> None:
    """Raises: ConfigError for a revision of a local folder, which would be ignored."""
    if revision is not None and Path(name).expanduser().is_dir():
        raise ConfigError(
            f"model.revision: {revision} is given, and model.name {name} is a local folder",
            rule="a revision belongs to a Hub id",
            fix="drop model.revision, or give the model's Hub id",
        )


def check_model_folder(name: str, field: str = _FIELD) -> None:
    """Check a folder's presence before any library turns it into a Hub request.

    Raises: ConfigError for a missing folder, one without a model, or an adapter folder.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.is_file():
            raise ConfigError(f"{field}: {name} is a file", fix="give the folder that holds it")
        if looks_like_path(name):
            raise _missing_folder(name, folder, field)
        return
    if (folder / "config.json").is_file():
        return
    if (folder / "adapter_config.json").is_file():
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        raise ConfigError(
            f"{field}: {name} is a LoRA adapter, not a base model",
            rule="training and merging start from a whole model",
            fix=f"give its base model ({base.get('base_model_name_or_path')}), or merge it first",
        )
    raise ConfigError(
        f"{field}: {name} holds no config.json",
        rule="a model folder holds config.json, weights and tokenizer files",
        fix="give the folder written by save_pretrained, or a Hub snapshot",
    )


def located(name: str) -> str:
    """Return a folder's absolute path, which PEFT records in the adapter; a Hub id stays as it is.

    A relative path in adapter_config.json would be found from one working directory only.
    """
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


@contextmanager
def explaining_load(name: str, revision: str | None = None, field: str = _FIELD) -> Iterator[None]:
    """Turn the libraries' loading errors into one message with one fix.

    Raises: ConfigError for a wrong name, revision or kind of model; EnvironmentProblem for access,
        network and missing libraries. What is not about loading passes through.
    """
    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError, HFValidationError) as error:
        raise _explained(error, name, revision, field) from error
    except AttributeError as error:
        unknown = _NO_SUCH_TYPE.fullmatch(str(error))
        if unknown is None:
            raise
        raise ConfigError(
            f"{field}: config.json of {name} names the dtype {unknown[1]}, which torch has not",
            rule="dtype is a type of torch, such as bfloat16",
            fix="correct dtype in its config.json, or fetch that file again",
        ) from error


def _explained(error: Exception, name: str, revision: str | None, field: str) -> RankZeroError:
    """Classify by the exception the Hub client raised, wherever in the chain it sits."""
    chain = list(_causes(error))

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    if caused_by(GatedRepoError):
        return EnvironmentProblem(
            f"{field}: {name} is gated and this machine has no access",
            rule="a gated model needs its licence accepted and a Hub token (HF_TOKEN)",
            fix=f"accept the licence at https://huggingface.co/{name}, then run `hf auth login`",
        )
    if caused_by(RevisionNotFoundError):
        return ConfigError(
            f"model.revision: {name} has no revision {revision!r}",
            rule="a revision is a branch, a tag or a commit of the model",
            fix=f"choose one from https://huggingface.co/{name}/commits/main",
        )
    if caused_by(RepositoryNotFoundError, HFValidationError):
        return ConfigError(
            f"{field}: {name!r} is neither a folder here nor a model on the Hub",
            rule="a model is a folder, or a Hub id owner/name (private ones need HF_TOKEN)",
            fix="check the spelling, or give the path of a model folder",
        )
    if caused_by(LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, ConnectionError):
        return EnvironmentProblem(
            f"{field}: {name} is not on this machine and the Hub cannot be reached",
            rule="a Hub id must be in the local cache, or the Hub reachable (HF_HUB_OFFLINE unset)",
            fix=f"run `hf download {name}` where there is network, or give a model folder"
            + (" with --base" if field == RECORDED_BASE else ""),
        )
    return _explained_by_kind(error, name, field)


def _explained_by_kind(error: Exception, name: str, field: str) -> RankZeroError:
    pointer = _find_lfs_pointer(Path(name).expanduser())
    if pointer is not None:
        return ConfigError(
            f"{field}: {pointer} is a git-lfs pointer, not the file itself",
            rule="git brings the large files of a model only with git-lfs",
            fix=f"git -C {shlex.quote(str(pointer.parent))} lfs pull, or fetch the model with "
            "`hf download`",
        )
    reason = _first_sentence(error)
    if "backend tokenizer" in str(error):
        return ConfigError(
            f"{field}: {name} has no tokenizer that can be read",
            rule="a model folder holds tokenizer.json and tokenizer_config.json",
            fix="copy these from where the model came from",
        )
    if "trust_remote_code" in str(error):
        return ConfigError(
            f"model.trust_remote_code: {name} ships its own code, and running it is off",
            rule="code from a model repository runs only when you say so",
            fix="read that code, then "
            + ("set model.trust_remote_code to true" if field == _FIELD else "--trust-remote-code"),
        )
    if isinstance(error, ImportError):
        return EnvironmentProblem(
            f"{field}: {name} needs a library that is not installed: {reason}",
            rule="every library a model uses must be importable",
            fix="install the library named above",
        )
    return ConfigError(
        f"{field}: {name} could not be loaded: {reason}",
        rule="a model is complete and of a kind the installed transformers knows",
        fix="check that its files are complete, or choose a supported causal language model",
    )


def _find_lfs_pointer(folder: Path) -> Path | None:
    """Return a file of a model folder that git-lfs has not brought yet."""
    if not folder.is_dir():
        return None
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(OSError), path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                return path
    return None


def _first_sentence(error: Exception) -> str:
    """Keep what is wrong; the library's advice that follows, often a paragraph, is not for here."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    sentence = line.partition(". ")[0]
    return sentence if len(sentence) <= _LONGEST_REASON else f"{sentence[:_LONGEST_REASON]}..."


def _causes(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _missing_folder(name: str, folder: Path, field: str) -> ConfigError:
    if field == RECORDED_BASE:
        return ConfigError(
            f"the base folder {name} recorded in the adapter is not there",
            rule="an adapter is put on the base model it was trained on",
            fix="give --base FOLDER to the merge, or correct base_model_name_or_path in "
            "adapter_config.json",
        )
    siblings = (
        [child.name for child in folder.parent.iterdir() if child.is_dir()]
        if folder.parent.is_dir()
        else []
    )
    close = difflib.get_close_matches(folder.name, siblings, n=1)
    fix = (
        f"did you mean {folder.parent / close[0]}?"
        if close
        else "check the path (relative paths start at the working directory)"
    )
    return ConfigError(
        f"{field}: there is no folder {name}", rule="a model is a folder, or a Hub id", fix=fix
    )
