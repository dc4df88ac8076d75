"""Publishing a model folder on the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from trainer.errors import ConfigError, EnvironmentProblem, RankZeroError

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*", "adapter_config.json")
"""What decides which weights are loaded from a folder."""
_LONGEST_REASON = 300  # characters
_LOG_IN = "run `hf auth login`, or set HF_TOKEN, with a token that may write"


def check_push(repo: str, *, private: bool = False) -> None:
    """Check all that can be known of a push before there is anything to push.

    Raises: ConfigError for a repository id that cannot be, or a public one where a private one is
        wanted; EnvironmentProblem offline, without network, or without a token that may write.
    """
    _find_target(HfApi(), repo, private=private)


def push_folder(folder: Path, repo: str, *, private: bool = False) -> str:
    """Publish the files of a folder in one commit and return the repository's URL.

    One commit: nobody sees half a model. What was uploaded before an error is not sent again.

    Raises: as `check_push`; ConfigError for a card that the Hub refuses, or a repository with other
        weights in it. The folder stays as it is.
    """
    api = HfApi()
    there = _find_target(api, repo, private=private)
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    }
    _check_weights(repo, there, files)
    with _explaining(repo, folder):
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.create_commit(
            url.repo_id,
            [CommitOperationAdd(name, path) for name, path in files.items()],
            commit_message="Upload the model",
        )
    return str(url)


def _find_target(api: HfApi, repo: str, *, private: bool) -> list[str]:
    """Check the way to the repository and return the names of the files in it."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(
            f"{repo!r} cannot be a repository on the Hub",
            rule="OWNER/NAME, of letters, digits, '-', '_' and '.', at most 96 in each",
            fix="give it as on the Hub's page, such as my-team/my-model",
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise EnvironmentProblem(
            f"{repo} cannot be pushed to: HF_HUB_OFFLINE is set",
            rule="a push needs the Hub",
            fix="unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE), or push where there is network",
        )
    with _explaining(repo):
        _check_account(api.whoami(), repo)
        try:
            found = api.model_info(repo)
        except RepositoryNotFoundError:
            return []
    if private and not found.private:
        raise ConfigError(
            f"{repo} exists and is public",
            rule="a model that is to be private is not pushed to a public repository",
            fix="make the repository private on its settings page, or name another one",
        )
    return [file.rfilename for file in found.siblings or ()]


def _check_account(account: dict[str, Any], repo: str) -> None:
    """Raises: EnvironmentProblem when this account, or its token, may not write there."""
    token = (account.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise EnvironmentProblem(
            f"{repo} cannot be pushed to: the token may only read",
            rule="a push needs a token that may write",
            fix=f"make one at {constants.ENDPOINT}/settings/tokens, then {_LOG_IN}",
        )
    owners = {account["name"], *(group["name"] for group in account.get("orgs") or ())}
    owner = repo.rpartition("/")[0]
    if owner and owner.lower() not in {name.lower() for name in owners}:
        raise EnvironmentProblem(
            f"{repo} cannot be pushed to: {account['name']} has no part in {owner}",
            rule="a repository belongs to the account or one of its organisations",
            fix=f"push to {account['name']}/{repo.rpartition('/')[2]}, or log in as a member",
        )


def _check_weights(repo: str, there: list[str], files: dict[str, Path]) -> None:
    """Raises: ConfigError when other weights than these would be loaded from the repository."""
    other = [
        name
        for name in there
        if name not in files and any(fnmatch(name, pattern) for pattern in _WEIGHTS)
    ]
    if other:
        raise ConfigError(
            f"{repo} holds other weights: {', '.join(other[:3])}{' ...' if other[3:] else ''}",
            rule="a push adds and replaces files, and removes none; two models do not mix",
            fix="name another repository, or remove those files there",
        )


@contextmanager
def _explaining(repo: str, folder: Path | None = None) -> Iterator[None]:
    """Turn what the Hub or the network says into one error with one fix. Raises: RankZeroError."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise EnvironmentProblem(
            f"{repo} cannot be pushed to: there is no Hub token on this machine",
            rule="a push needs a token that may write",
            fix=_LOG_IN,
        ) from error
    except HfHubHTTPError as error:
        raise _refused(error, repo, folder) from error
    except json.JSONDecodeError as error:
        raise _unreachable(repo, folder, "it does not answer as the Hub") from error
    except (HTTPError, OSError, RuntimeError) as error:
        raise _unreachable(repo, folder, _in_a_line(error)) from error
    except ValueError as error:
        raise ConfigError(
            f"the Hub refuses {folder or repo}: {_in_a_line(error)}",
            rule="the front matter of README.md is as the Hub defines it",
            fix="correct it, then run the same command again",
        ) from error


def _refused(error: HfHubHTTPError, repo: str, folder: Path | None) -> RankZeroError:
    status = error.response.status_code
    if status == 401:
        return EnvironmentProblem(
            f"{repo} cannot be pushed to: the Hub does not accept the token (401)",
            rule="a push needs a token that is valid and may write",
            fix=f"{_LOG_IN}; HF_TOKEN wins over a login",
        )
    if status == 403:
        return EnvironmentProblem(
            f"{repo} cannot be pushed to: this token may not write there (403)",
            rule="a push needs a token that may write to the repository",
            fix=f"check the repository's owner and the token's rights, then {_LOG_IN}",
        )
    said = (error.server_message or "").strip().partition("\n")[0]
    return _unreachable(repo, folder, f"the Hub answers {status}{f': {said}' if said else ''}")


def _unreachable(repo: str, folder: Path | None, reason: str) -> EnvironmentProblem:
    kept = f"{folder} is as it was; " if folder else ""
    return EnvironmentProblem(
        f"{repo} cannot be pushed to: {reason}",
        rule="a push needs the Hub from its beginning to its end",
        fix=f"{kept}run the same command again when the Hub can be reached",
    )


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
