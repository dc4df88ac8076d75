"""report.html and training_curves.png of a run, and one page for several runs."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import EnvironmentProblem
from trainer.report.answers import make_safety, make_samples
from trainer.report.comparison import compare_losses, make_comparison
from trainer.report.curves import Chart, make_charts, make_picture
from trainer.report.drawing import SMALL, Size, draw_png, draw_svg
from trainer.report.facts import (
    make_advice,
    make_data,
    make_key_settings,
    make_plan,
    make_settings,
)
from trainer.report.head import make_head
from trainer.report.read import RunRecord, read_run

if TYPE_CHECKING:
    from markupsafe import Markup

PAGE = "report.html"
PICTURE = "training_curves.png"

# By how many charts would stand alone in the last row of three: the columns and rows that the
# first chart takes so that none does, and its size.
_FIRST_CHART = {
    0: ("full", Size(1120, 300)),
    1: ("wide", Size(732, 218)),
    2: ("tall", Size(732, 452)),
}
_ALL_RUNS = Size(1120, 380)
_ALL_RUNS_NARROW = Size(320, 270)


@dataclass(frozen=True)
class Drawing:
    """A chart with its SVG; `narrow` takes its place on a phone, where it is given."""

    chart: Chart
    svg: str
    narrow: str = ""


def write_report(run: Path) -> tuple[Path, Path]:
    """Write report.html and training_curves.png into a run directory; return their paths.

    Raises: ConfigError when the folder is no run; EnvironmentProblem when it cannot be written to.
    """
    record = read_run(run)
    page, picture = render_report(record), draw_png(make_picture(record))
    _write(run / PAGE, page)
    _write(run / PICTURE, picture)
    return run / PAGE, run / PICTURE


def write_comparison(records: Sequence[RunRecord], output: Path) -> None:
    """Write one page for several runs. Raises: EnvironmentProblem when it cannot be written."""
    _write(output, render_comparison(records))


def render_report(run: RunRecord) -> bytes:
    """Return the page of one run."""
    charts = make_charts(run)
    shape, drawings = _draw_grid(charts)
    return _render(
        "page.html.j2",
        {
            "head": make_head(run),
            "advice": make_advice(run),
            "drawings": drawings,
            "shape": shape,
            "samples": make_samples(run),
            "safety": make_safety(run),
            "data": make_data(run),
            "plan": make_plan(run),
            "key_settings": make_key_settings(run) if run.config else (),
            "settings": make_settings(run),
        },
    )


def render_comparison(runs: Sequence[RunRecord]) -> bytes:
    """Return the page of several runs."""
    comparison = make_comparison(runs)
    drawings = []
    for chart in compare_losses(runs, comparison.names):
        wide = draw_svg(chart, _ALL_RUNS, name=chart.key, label_lines=True)
        narrow = draw_svg(chart, _ALL_RUNS_NARROW, name=f"{chart.key}-narrow", label_lines=True)
        drawings.append(Drawing(chart, wide, narrow))
    return _render("compare.html.j2", {"comparison": comparison, "drawings": drawings})


def _draw_grid(charts: Sequence[Chart]) -> tuple[str, list[Drawing]]:
    """Draw the first chart large and the others small, so that rows of three are full."""
    if not charts:
        return "", []
    shape, size = _FIRST_CHART[(len(charts) - 1) % 3]
    first, *others = charts
    wide = draw_svg(first, size, name=first.key)
    narrow = draw_svg(first, SMALL, name=f"{first.key}-narrow")
    small = [Drawing(chart, draw_svg(chart, SMALL, name=chart.key)) for chart in others]
    return shape, [Drawing(first, wide, narrow), *small]


def _render(template: str, values: Mapping[str, Any]) -> bytes:
    import jinja2
    from markupsafe import Markup

    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Written here and by matplotlib, which escapes the names it is given.
    environment.filters["drawn"] = Markup
    environment.filters["breakable"] = _breakable
    style = Markup((folder / "style.css").read_text(encoding="utf-8"))
    text = environment.get_template(template).render(style=style, **values)
    # An answer cut inside a character may hold half a surrogate pair, which UTF-8 has no bytes for.
    return text.encode("utf-8", errors="replace")


def _breakable(text: str) -> Markup:
    """Let a long name break after a dot, a slash or an underscore rather than inside a word."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([._/])(?=[^\W\d])", r"\1<wbr>", str(escape(text))))


def _write(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise EnvironmentProblem(
            f"{path} cannot be written: {error.strerror}",
            rule="the report is written into a folder that is there and may be written to",
            fix="make room or change its permissions",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
