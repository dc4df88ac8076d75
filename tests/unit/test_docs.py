"""The README and docs/: short, without dead links, and naming only what there is."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import yaml

from launcher.cli import COMMANDS, rankzero
from trainer.conditions import Figure
from trainer.config import Config, load_config
from trainer.config_dialects import RENAMED
from trainer.config_schema import setting_paths

ROOT = Path(__file__).parents[2]
HOW_TO = sorted((ROOT / "docs" / "how-to").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
# Not imported: docs/ is no package.
REFERENCE: dict[str, Callable[[], str]] = runpy.run_path(str(ROOT / "docs/write_reference.py"))[
    "PAGES"
]
SECTIONS = {name for name in Config.model_fields if name not in ("seed", "output_dir")}
# A mapping's own keys (columns, rank_pattern) are no settings; what is above them is.
SETTINGS = set(setting_paths())
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FILE = re.compile(r"(?:benchmarks|deepspeed_configs|docs|examples|k8s|launcher|tests|trainer)/\S+")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def _fences(page: Path) -> Iterator[tuple[str, str]]:
    """Give language and text of each code block."""
    for _, language, text in _FENCE.findall(page.read_text(encoding="utf-8")):
        yield language, text


def _prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def _anchors(page: Path) -> set[str]:
    """Make the anchors of a page's headings as GitHub does."""
    titles = re.findall(r"^#+ (.*)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _commands(page: Path) -> Iterator[str]:
    """Give every `rankzero ...` of code blocks and inline code, one line each."""
    for language, text in _fences(page):
        if language == "yaml":
            continue
        for line in text.replace("\\\n", " ").splitlines():
            yield from re.findall(r"^(?:\$ |\^C)?(?:srun .*exec )?(rankzero [a-z].*)$", line)
    yield from (code for code in _CODE.findall(_prose(page)) if code.startswith("rankzero "))


def _problems(command: str) -> Iterator[str]:
    """Say what of a command there is not."""
    words = shlex.split(command.replace("'", " ").replace('"', " "), comments=True)[1:]
    verb, context = words[0], click.Context(rankzero)
    if verb.startswith("-"):
        return
    for each in verb.split("|"):
        found = rankzero.get_command(context, each)
        if found is None:
            yield f"no command {each}"
            continue
        known = {name for option in found.params for name in option.opts} | {"--help"}
        given = {re.split("[=|]", word)[0] for word in words if word.startswith("--")}
        yield from (f"{each} has no {option}" for option in sorted(given - known))


def _is_setting(name: str) -> bool:
    """Whether this is a setting, a section, or the beginning of several (`dataloader_*`)."""
    beginning = name if name.endswith("_") else f"{name}."
    return name in SETTINGS or any(known.startswith(beginning) for known in SETTINGS)


def _written(values: Any, prefix: str = "") -> Iterator[str]:
    """Give the dotted names of what a piece of YAML sets, as far as they are settings."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in SETTINGS:
            yield from _written(value, f"{name}.")
        else:
            yield name


def test_the_pages_are_found() -> None:
    assert len(PAGES) > 15
    assert sum(len(list(_commands(page))) for page in PAGES) > 100


@pytest.mark.parametrize("name", REFERENCE)
def test_the_reference_is_what_the_code_says(name: str) -> None:
    written = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert written == REFERENCE[name](), "`make reference` writes it again"


def test_the_reference_has_every_setting_and_every_option() -> None:
    config, commands = REFERENCE["config.md"](), REFERENCE["command-line.md"]()
    assert [name for name in SETTINGS if f"| `{name}` |" not in config] == []
    for name in COMMANDS:
        command = rankzero.get_command(click.Context(rankzero), name)
        assert command is not None
        part = commands.partition(f"## `rankzero {name}`")[2].partition("\n## ")[0]
        options = [each.opts[0] for each in command.params if isinstance(each, click.Option)]
        assert [option for option in options if f"| `{option}" not in part] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200


def test_the_config_of_the_readme_loads(tmp_path: Path) -> None:
    (text,) = [text for language, text in _fences(ROOT / "README.md") if language == "yaml"]
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    assert load_config(tmp_path / "run.yaml").lora.target_modules == "aggressive"


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.name)
def test_a_how_to_is_one_page(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").splitlines()) < 100


@pages
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in _LINK.findall(_prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            dead.append(link)
    assert dead == []


@pages
def test_commands_and_their_options_exist(page: Path) -> None:
    assert [problem for command in _commands(page) for problem in _problems(command)] == []


@pages
def test_settings_named_in_prose_exist(page: Path) -> None:
    named = re.findall(
        r"(?<![\w/.])([a-z]+\.[a-z_0-9]+(?:\.[a-z_0-9]+)*)", " ".join(_CODE.findall(_prose(page)))
    )
    known = {*get_args(Figure), *RENAMED}
    files = (".json", ".jsonl", ".py", ".yaml", ".md", ".html")
    unknown = [
        name
        for name in named
        if name.partition(".")[0] in SECTIONS and not name.endswith(files) and name not in known
    ]
    assert [name for name in unknown if not _is_setting(name)] == []


@pages
def test_settings_of_code_blocks_exist(page: Path) -> None:
    text = "\n".join(text for _, text in _fences(page))
    named = re.findall(r"--set ([\w.]+)=", text)
    for language, block in _fences(page):
        values = yaml.safe_load(block) if language == "yaml" else None
        if isinstance(values, dict) and set(values) <= set(Config.model_fields):
            named += _written(values)
    assert [name for name in named if not _is_setting(name)] == []


@pages
def test_files_named_in_prose_exist(page: Path) -> None:
    named = {code for code in _CODE.findall(_prose(page)) if _FILE.fullmatch(code)}
    paths = {re.sub(r"::.*", "", code) for code in named if not re.search(r"[*{<]", code)}
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|^|\$ )make ([a-z-]+)", readme, re.MULTILINE))
    assert {"demo", "test", "check"} <= named <= targets
