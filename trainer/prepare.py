"""Dataset preparation as its own process: `python -m trainer.prepare --config FILE`.

read -> validate -> chat template -> tokenise -> mask -> split -> Arrow files in the cache, and
data_report.json in the run directory. The same input is never prepared twice.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # What is imported below takes a second: Ctrl-C then ends this process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from trainer.config import Config, load_config
from trainer.data.build import build_entry
from trainer.data.cache import entry_path, is_complete, write_entry
from trainer.data.layouts import lay_out
from trainer.data.sources import SourceFile, find_files
from trainer.data.tokenizer import load_tokenizer_facts
from trainer.entry import run_entry
from trainer.errors import EnvironmentProblem
from trainer.run_directory import RunDirectory, write_json


def prepare(config: Config, *, show_progress: bool = False) -> Path:
    """Make the prepared data of a config, or find it made; a new run gets its data_report.json.

    A run that has begun keeps its report: whether it goes on with this data is not decided here.
    Returns the cache entry; `load_prepared` opens it.
    Raises: DataError for bad rows or files, EnvironmentProblem when it cannot be written.
    """
    entry = prepare_entry(config, show_progress=show_progress)
    if not RunDirectory(Path(config.output_dir)).contract.exists():
        write_report(config, entry)
    return entry


def prepare_entry(config: Config, *, show_progress: bool = False) -> Path:
    """As `prepare`, without the report."""
    files = find_files(config.data)
    entry = entry_path(config, files)
    if not is_complete(entry):
        laid_out = lay_out(files, config.data)
        facts = load_tokenizer_facts(config)
        with _progress(files, show_progress) as on_progress:
            write_entry(
                entry, lambda folder: build_entry(config, laid_out, facts, folder, on_progress)
            )
    return entry


def find_prepared(config: Config) -> Path | None:
    """Return the cache entry of a config if it was made already."""
    entry = entry_path(config, find_files(config.data))
    return entry if is_complete(entry) else None


def read_report(entry: Path) -> dict[str, Any]:
    """Read what data_report.json is made of."""
    report = json.loads((entry / "report.json").read_text(encoding="utf-8"))
    return {"fingerprint": entry.name, "cache_entry": str(entry), **report}


def write_report(config: Config, entry: Path) -> None:
    """Write RUN/data_report.json.

    Raises: EnvironmentProblem.
    """
    report = read_report(entry)
    target = RunDirectory(Path(config.output_dir)).data_report
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, report)
    except OSError as error:
        raise EnvironmentProblem(
            f"output_dir: {target} cannot be written: {error.strerror}",
            fix="choose a writable output_dir, or make room",
        ) from error


@contextmanager
def _progress(files: list[SourceFile], wanted: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal's stderr, by source bytes read."""
    console = Console(stderr=True)
    if not (wanted and console.is_terminal):
        yield lambda *_: None
        return
    sizes = [Path(file.path).stat().st_size for file in files if file.kind != "hub"]
    total = sum(sizes) if len(sizes) == len(files) else None
    columns = (
        TextColumn("preparing data"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[rows]:,} rows"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task, seen = bar.add_task("", total=total, rows=0), 0

        def on_progress(rows: int, num_bytes: int) -> None:
            nonlocal seen
            seen += rows
            bar.update(task, advance=num_bytes, rows=seen)

        yield on_progress


class _Stdout(Console):
    """Where the report goes; a reader that has read enough, such as `head`, ends no run."""

    def __init__(self) -> None:
        super().__init__(soft_wrap=True)

    def on_broken_pipe(self) -> None:
        with suppress(SystemExit):
            super().on_broken_pipe()


def print_report(report: dict[str, Any], console: Console) -> None:
    """Print counts per split, what was left out, and what deserves attention."""
    splits = report["splits"]
    counts = " / ".join(f"{split['rows']} {name}" for name, split in splits.items())
    console.print(f"{counts} rows", highlight=False)
    table = Table("split", *("examples", "tokens", "label tokens", "truncated", "mean", "max"))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, split in splits.items():
        if split["examples"]:
            length = split["length"]
            numbers = (
                split["examples"],
                split["tokens"],
                split["label_tokens"],
                split["truncated"],
            )
            cells = [f"{number:,}" for number in (*numbers, length["mean"], length["max"])]
            table.add_row(name, *cells)
    console.print(table)
    skipped = report["skipped"]
    if skipped["rows"]:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in skipped["by_reason"].items())
        console.print(f"skipped: {skipped['rows']} rows ({reasons})", highlight=False, markup=False)
    for label in ("warnings", "notes"):
        for text in report[label]:
            console.print(f"{label[:-1]}: {text}", highlight=False, markup=False)
    console.print(f"prepared data: {report['cache_entry']}", highlight=False, markup=False)


def main(arguments: Sequence[str]) -> None:
    """Run the command line. Raises RankZeroError."""
    parser = argparse.ArgumentParser(prog="python -m trainer.prepare", description="Prepare data.")
    parser.add_argument("--config", required=True, type=Path, help="config, YAML or JSON")
    options = parser.parse_args(arguments)
    config = load_config(options.config)
    entry = prepare(config, show_progress=True)
    print_report(read_report(entry), _Stdout())


if __name__ == "__main__":
    sys.exit(run_entry(main))
