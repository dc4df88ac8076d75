"""Colours of the curves: fixed ones for a PNG, names of the page's variables for an SVG. PURE."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Palette:
    """Colours as `#rrggbb`, by what they are for."""

    text: str
    grid: str
    limit: str
    series: tuple[str, ...]


PICTURE = Palette(
    text="#565d66",
    grid="#e3e5e8",
    limit="#8a9099",
    series=(
        "#3b6ea8",
        "#c8641b",
        "#3f8a5b",
        "#8457a6",
        "#b5476a",
        "#7a6a2b",
        "#2f8c94",
        "#6b7280",
    ),
)
"""For a white ground."""

MARKERS = Palette(
    text="#00f001",
    grid="#00f002",
    limit="#00f003",
    series=tuple(f"#00f1{number:02x}" for number in range(len(PICTURE.series))),
)
"""Colours that stand for variables until `to_inline` names them."""

_VARIABLES = {
    MARKERS.text: "var(--muted)",
    MARKERS.grid: "var(--line)",
    MARKERS.limit: "var(--limit)",
    **{color: f"var(--series-{number})" for number, color in enumerate(MARKERS.series)},
}


def to_inline(svg: str, name: str, title: str) -> str:
    """Return an SVG of matplotlib's as a part of the page: its colours, its font, its own ids.

    name: distinguishes the ids of this drawing from those of others on the page.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    # Only what is referred to needs an id: clip paths and markers, whose ids are hashes.
    referred = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    body = re.sub(
        r' id="([^"]*)"',
        lambda found: f' id="{name}-{found[1]}"' if found[1] in referred else "",
        body,
    )
    body = re.sub(r'(url\(#|xlink:href="#)', rf"\g<1>{name}-", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    for color, variable in _VARIABLES.items():
        body = body.replace(color, variable)
    opening = f'<svg role="img" aria-label="{title}"'
    body = re.sub(
        r'<svg( [^>]*?)? width="[^"]*" height="[^"]*"', _keep_rest(opening), body, count=1
    )
    return re.sub(r"\n\s*", "\n", body).strip()


def _keep_rest(opening: str) -> str:
    return opening.replace("\\", "\\\\") + r"\1"
