"""Charts drawn by matplotlib: SVG for the page and one PNG. Same charts, same bytes."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from trainer.report.curves import Chart, Line
from trainer.report.format import short
from trainer.report.series import finite_values
from trainer.report.theme import MARKERS, PICTURE, Palette, to_inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS_PER_INCH = 72


class Size(NamedTuple):
    """Of a drawing, in points: a CSS pixel each where it is shown at its own size."""

    width: float
    height: float
    font: float = 11


SMALL = Size(320, 190)
"""A third of a laptop's page, or the width of a phone."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 10.0, 40.0
"""Around the axes, in points: room for the labels."""
_TICK_STEPS = (1, 2, 2.5, 5, 10)
_WIDE = 600
_FAINT = 0.35
_DPI = 120
_LINE_HEIGHT = 1.35
_CHARACTER_WIDTH = 0.62
"""Of the font's size, on average, in DejaVu Sans, which is wider than most."""


def draw_svg(chart: Chart, size: Size, *, name: str, label_lines: bool = False) -> str:
    """Return a chart as an SVG element that takes the page's colours and font.

    label_lines: write each curve's name at its end.
    """
    with _settings(size.font):
        right = _label_width(chart, size) if label_lines else _RIGHT
        figure = _figure(size)
        edges = (_LEFT, _BOTTOM, size.width - _LEFT - right, size.height - _BOTTOM - _TOP)
        box = (
            edges[0] / size.width,
            edges[1] / size.height,
            edges[2] / size.width,
            edges[3] / size.height,
        )
        axes = figure.add_axes(box)
        _draw(axes, chart, MARKERS)
        if label_lines:
            _label(axes, chart, MARKERS, size)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=_NO_SVG_METADATA)
    return to_inline(file.getvalue(), name, chart.title)


_NO_SVG_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def draw_png(charts: Sequence[Chart]) -> bytes:
    """Return up to four charts as a PNG, two by two."""
    with _settings(10):
        figure = _figure(Size(936, 576), is_transparent=False)
        figure.set_layout_engine("constrained", w_pad=0.18, h_pad=0.18)
        grid = figure.subplots(2, 2, squeeze=False).flatten()
        for number, axes in enumerate(grid):
            if number >= len(charts):
                axes.set_axis_off()
                continue
            chart = charts[number]
            _draw(axes, chart, PICTURE)
            unit = f" ({chart.unit})" if chart.unit else ""
            axes.set_title(chart.title + unit, loc="left", fontsize=11, color="#1c1e21", pad=10)
            if len(chart.lines) > 1 or chart.limit:
                axes.legend(frameon=False, fontsize=9, labelcolor=PICTURE.text)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    return file.getvalue()


def _figure(size: Size, *, is_transparent: bool = True) -> Figure:
    # Not pyplot, which keeps figures and looks for a display.
    from matplotlib.figure import Figure

    inches = (size.width / _POINTS_PER_INCH, size.height / _POINTS_PER_INCH)
    return Figure(figsize=inches, facecolor="none" if is_transparent else "white")


@contextmanager
def _settings(font_size: float) -> Iterator[None]:
    """Set what the user's own matplotlibrc could set otherwise."""
    import matplotlib

    fixed: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "rankzero",
        "font.family": ["DejaVu Sans"],  # comes with matplotlib
        "font.size": font_size,
        "text.parse_math": False,  # a run's name may hold dollar signs
        "axes.unicode_minus": True,
    }
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(fixed)
        # The browser has the characters that DejaVu Sans lacks.
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def _draw(axes: Axes, chart: Chart, palette: Palette) -> None:
    for line in chart.lines:
        _draw_line(axes, line, palette)
    if chart.limit is not None:
        name, level = chart.limit
        axes.axhline(level, color=palette.limit, linewidth=1.2, dashes=(4, 3), label=name)
    if chart.is_log:
        axes.set_yscale("log")
    _set_bounds(axes, chart)
    _style(axes, chart, palette)


def _draw_line(axes: Axes, line: Line, palette: Palette) -> None:
    is_alone = len(finite_values(line.points)) == 1
    axes.plot(
        *zip(*line.points, strict=True),
        color=palette.series[line.colour % len(palette.series)],
        # Of more runs than colours the others are dashed.
        linestyle="-" if line.colour < len(palette.series) else (0, (5, 2)),
        linewidth=0.9 if line.mean else 1.8 if line.has_markers else 1.5,
        alpha=_FAINT if line.mean else None,
        marker="o" if line.has_markers or is_alone else None,
        markersize=4,
        label="" if line.mean else line.name,
        solid_joinstyle="round",
        clip_on=False,
    )
    if line.mean:
        _draw_line(axes, replace(line, points=line.mean, mean=()), palette)


def _set_bounds(axes: Axes, chart: Chart) -> None:
    low, high = chart.bounds
    if low is not None and high is not None:
        margin = 0.03 * (high - low)
        axes.set_ylim(low - margin, high + margin)
    elif low is not None and not chart.is_log:
        axes.set_ylim(bottom=low)
    steps = [step for line in chart.lines for step, _ in line.points]
    first, last = min(steps), max(steps)
    room = max((last - first) * 0.01, 0.5 if first == last else 0)
    axes.set_xlim(first - room, last + room)


def _style(axes: Axes, chart: Chart, palette: Palette) -> None:
    from matplotlib.ticker import (
        FuncFormatter,
        LogLocator,
        MaxNLocator,
        MultipleLocator,
        NullLocator,
    )

    axes.patch.set_visible(False)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(palette.grid)
    axes.grid(axis="y", color=palette.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=palette.text, pad=5)
    num_ticks = 10 if axes.bbox.width > _WIDE else 5
    axes.xaxis.set_major_locator(MaxNLocator(nbins=num_ticks, integer=True, steps=_TICK_STEPS))
    if chart.is_log:
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
    elif chart.bounds == (0, 1):
        axes.yaxis.set_major_locator(MultipleLocator(0.25))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=_TICK_STEPS))
    axes.yaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.set_xlabel("step", loc="right", color=palette.text, labelpad=2)


def _label_width(chart: Chart, size: Size) -> float:
    longest = max(len(line.name) for line in chart.lines)
    return min(longest * _CHARACTER_WIDTH * size.font + 14, size.width * 0.36)


def _label(axes: Axes, chart: Chart, palette: Palette, size: Size) -> None:
    """Write each name beside the end of its curve, moved apart where two would touch."""
    height = size.height - _BOTTOM - _TOP
    wanted = []
    for line in chart.lines:
        ends = [point for point in line.mean or line.points if math.isfinite(point[1])]
        in_display = axes.transData.transform(ends[-1])
        _, fraction = axes.transAxes.inverted().transform(in_display)
        wanted.append(float(fraction) * height)
    for line, position in zip(
        chart.lines, spread(wanted, size.font * _LINE_HEIGHT, height), strict=True
    ):
        axes.annotate(
            _cut_to(line.name, _label_width(chart, size), size.font),
            (1, position / height),
            xycoords="axes fraction",
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=palette.series[line.colour % len(palette.series)],
            annotation_clip=False,
        )


def _cut_to(name: str, width: float, font: float) -> str:
    limit = int((width - 14) / (_CHARACTER_WIDTH * font)) + 1
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def spread(wanted: Sequence[float], gap: float, height: float) -> list[float]:
    """Return positions close to the wanted ones, in their order and at least `gap` apart. PURE.

    They stay between 0 and `height` where there is room for all.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed: list[float] = []
    for index in order:
        lowest = placed[-1] + gap if placed else 0.0
        placed.append(max(wanted[index], lowest))
    ceiling = height
    for number in reversed(range(len(placed))):
        placed[number] = min(placed[number], ceiling)
        ceiling = placed[number] - gap
    result = [0.0] * len(wanted)
    for index, position in zip(order, placed, strict=True):
        result[index] = position
    return result
