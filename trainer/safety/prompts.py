"""The prompts whose answers are checked: the built-in set, or a user's file."""

from __future__ import annotations

from pathlib import Path

import yaml

from trainer.config_problems import did_you_mean
from trainer.errors import ConfigError

BUILT_IN = "medical"
_FOLDER = Path(__file__).resolve().parent
_RULE = (
    f"prompts are `{BUILT_IN}`, a .yaml file with a list of texts, or a .txt file, a prompt a line"
)

_YAML_FIX = "begin each prompt with `- `, in quotes if it has a colon or a hash"


def load_prompts(source: str | Path | tuple[str, ...]) -> tuple[str, ...]:
    """Return the built-in prompts (`medical`), those of a file, or the ones that are given.

    Raises: ConfigError naming file and line.
    """
    if isinstance(source, tuple):
        return source
    path = _FOLDER / "medical_prompts.yaml" if source == BUILT_IN else Path(source)
    readers = {".yaml": _from_yaml, ".yml": _from_yaml, ".txt": _from_lines}
    if path.suffix.lower() not in readers:
        meant = did_you_mean(str(source), {BUILT_IN: BUILT_IN})
        raise ConfigError(
            f"{source}: not a set of prompts that can be read{meant}",
            rule=_RULE,
            fix=f"write {BUILT_IN}, the path of such a file, or a list of prompts",
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not valid UTF-8", rule=_RULE, fix="save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror})",
            rule=_RULE,
            fix="check the path (relative paths start at the working directory)",
        ) from None
    prompts = readers[path.suffix.lower()](path, text)
    if not prompts:
        raise ConfigError(f"{path}: no prompt in it", rule=_RULE, fix="write one, or name no file")
    return prompts


def _from_lines(_path: Path, text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _from_yaml(path: Path, text: str) -> tuple[str, ...]:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        message = f"{path}:{line}: not readable as YAML: {error.problem}"
        raise ConfigError(message, rule=_RULE, fix=_YAML_FIX) from None
    except yaml.YAMLError as error:
        message = f"{path}: not readable as YAML: {error}"
        raise ConfigError(message, rule=_RULE, fix=_YAML_FIX) from None
    if root is None:
        return ()
    if not isinstance(root, yaml.SequenceNode):
        raise ConfigError(f"{path}: not a list", rule=_RULE, fix=_YAML_FIX)
    return tuple(_text(path, node) for node in root.value)


def _text(path: Path, node: yaml.Node) -> str:
    is_text = isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str"
    if is_text and node.value.strip():
        return str(node.value).strip()
    raise ConfigError(
        f"{path}:{node.start_mark.line + 1}: a prompt that is no text",
        rule=_RULE,
        fix="write quotes around it: to YAML a colon, a bare number or yes is something else",
    )
