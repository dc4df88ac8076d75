"""The report's pages in a real browser: they fit a phone, load nothing and show everything.

With RANKZERO_UPDATE_SCREENSHOTS=1 the pictures of docs/ are made anew.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_report import ALL_SECTIONS, HOSTILE, make_metrics, write_example, write_run
from trainer.report.page import write_comparison, write_report
from trainer.report.read import read_run

pytestmark = pytest.mark.e2e

BROWSER = shutil.which("chromium")
DOCS = Path(__file__).parents[2] / "docs"
LAPTOP, PHONE, NARROW = (1440, 900), (390, 844), (360, 740)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
# A window is never narrower than 500 pixels, a frame is: its width is what the page goes by. Opens
# what is collapsed, then tells what a reader would meet.
FRAME = """<!doctype html><iframe width="{width}" height="{height}" style="border: 0"
srcdoc="{page}"></iframe><script>
addEventListener("load", () => {{
  const frame = document.querySelector("iframe").contentWindow, page = frame.document;
  const all = (names, under = page) => [...under.querySelectorAll(names)];
  const box = one => one.getBoundingClientRect();
  all("details").forEach(one => {{ one.open = true }});
  const width = page.documentElement.clientWidth;
  const scrolls = one => one.closest(".scroll") && !one.matches(".scroll");
  const drawings = all("svg").filter(one => one.getClientRects().length);
  const texts = drawings.flatMap(one => all("text", one));
  const isCut = one => box(one).left < box(one.ownerSVGElement).left - 1
    || box(one).right > box(one.ownerSVGElement).right + 1;
  const size = one => parseFloat(frame.getComputedStyle(one).fontSize) * one.getScreenCTM().a;
  document.body.dataset.seen = JSON.stringify({{
    width: frame.innerWidth,
    scrollWidth: page.documentElement.scrollWidth,
    outside: all("body *").filter(one => !scrolls(one) && box(one).right > width + 0.5)
      .map(one => one.tagName + "." + one.getAttribute("class")),
    requests: frame.performance.getEntriesByType("resource").map(one => one.name),
    sections: all("section").filter(one => box(one).height > 40).map(one => one.id),
    charts: drawings.length,
    rows: new Set(drawings.map(one => Math.round(box(one).top))).size,
    letters: Math.min(...texts.map(size)),
    cut: texts.filter(isCut).map(one => one.textContent),
  }});
}});
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    if BROWSER is None:
        pytest.skip("no chromium on PATH (Debian: apt-get install chromium)")
    return BROWSER


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of a full run, of one whose texts do their worst, and of both beside a failed one."""
    folder = tmp_path_factory.mktemp("runs")
    example = write_example(folder / "medical-lora")
    bad = "".join(HOSTILE)
    samples = [
        {"step": step, "samples": [{"prompt": bad, "greedy": bad, "sampled": text}]}
        for step, text in enumerate(HOSTILE)
    ]
    violation = {"rule": bad, "severity": bad, "found": bad}
    check = {"prompt": bad, "answer": bad, "violations": [violation]}
    hostile = write_example(
        folder / ("long-" * 40),
        samples=samples,
        safety=[{"step": 1, "checks": [check]}],
        advice=[dict.fromkeys(("name", "severity", "seen", "why", "change"), bad)],
        status={"state": "failed", "error": bad, "message": bad, "remedy": bad},
        resolved={"model": {"name": "x" * 300}, "y" * 300: {"z" * 300: bad}, "lora": {"r": bad}},
        data_report={
            "splits": {"s" * 200: {"rows": 7, "tokens": 10**15}},
            "sources": [{"path": "/path" * 60, "rows_read": 10**15}],
            "skipped": {"by_reason": {"r" * 200: 3}, "listed": [{"where": bad, "message": bad}]},
            "warnings": [bad],
            "notes": [bad],
            "preview": {"text": bad, "learned": []},
        },
        plan={"strategy": bad, "decisions": [{"setting": bad, "value": bad, "reason": bad}]},
    )
    failed = write_run(folder / "failed", metrics=make_metrics(30, seed=2)[:-2])
    records = [read_run(run) for run in (example, hostile, failed)]
    write_comparison(records, folder / "comparison.html")
    return {
        "example": write_report(example)[0],
        "hostile": write_report(hostile)[0],
        "comparison": folder / "comparison.html",
    }


def _start(browser: str, page: Path, size: tuple[int, int], *options: str) -> str:
    """Open a page in a browser of its own, without a network; return what it prints."""
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={page.parent / 'browser'}",
        f"--window-size={size[0]},{size[1]}",
        *options,
        page.as_uri(),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return ended.stdout


def _probe(browser: str, page: Path, size: tuple[int, int], folder: Path) -> dict[str, Any]:
    source, num_policies = POLICY.subn("", page.read_text(encoding="utf-8"))
    assert num_policies == 1  # without it a request is made, and seen
    outer = folder / "outer.html"
    frame = FRAME.format(width=size[0], height=size[1], page=html.escape(source))
    outer.write_text(frame, encoding="utf-8")
    found = re.search(r'data-seen="([^"]*)"', _start(browser, outer, (1600, 1200), "--dump-dom"))
    assert found
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    assert seen["width"] == size[0]
    return seen


@pytest.mark.parametrize("name", ["example", "hostile", "comparison"])
@pytest.mark.parametrize("size", [NARROW, (768, 1024), LAPTOP], ids=["phone", "tablet", "laptop"])
def test_no_page_is_wider_than_the_window(
    browser: str, pages: dict[str, Path], name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    seen = _probe(browser, pages[name], size, tmp_path)
    assert seen["outside"] == []
    assert seen["scrollWidth"] <= size[0]
    assert seen["requests"] == []
    assert seen["charts"] > 0
    assert seen["cut"] == []


def test_a_phone_shows_everything_one_chart_below_the_other(
    browser: str, pages: dict[str, Path], tmp_path: Path
) -> None:
    seen = _probe(browser, pages["example"], NARROW, tmp_path)
    assert seen["sections"] == ALL_SECTIONS
    assert seen["charts"] == seen["rows"] == 7
    assert seen["letters"] >= 10  # CSS pixels


def test_a_laptop_shows_everything_in_full_rows(
    browser: str, pages: dict[str, Path], tmp_path: Path
) -> None:
    seen = _probe(browser, pages["example"], LAPTOP, tmp_path)
    assert seen["sections"] == ALL_SECTIONS
    assert seen["charts"] == 7
    assert seen["letters"] >= 10


def _screenshot(browser: str, page: Path, size: tuple[int, int], folder: Path, theme: str) -> Path:
    picture = folder / f"{size[0]}-{theme}.png"
    # Blink's own names for the preference: 0 is dark, 1 light.
    setting = f"--blink-settings=preferredColorScheme={0 if theme == 'dark' else 1}"
    _start(browser, page, size, setting, f"--screenshot={picture}")
    return picture


def _brightness(picture: Path) -> tuple[float, float]:
    """Return how bright the ground is, and the share of pixels that differ from it, 0 to 1."""
    from matplotlib.image import imread

    pixels = imread(picture)[..., :3].mean(axis=2)
    ground = float(pixels[0, 0])
    return ground, float((abs(pixels - ground) > 0.2).mean())


@pytest.mark.parametrize(
    ("size", "theme", "kept"),
    [
        (LAPTOP, "light", "report-laptop.png"),
        (PHONE, "light", "report-phone.png"),
        (LAPTOP, "dark", "report-dark.png"),
    ],
)
def test_pictures_show_the_page_in_the_theme_asked_for(
    browser: str,
    pages: dict[str, Path],
    tmp_path: Path,
    size: tuple[int, int],
    theme: str,
    kept: str,
) -> None:
    picture = _screenshot(browser, pages["example"], size, tmp_path, theme)
    ground, share = _brightness(picture)
    assert ground < 0.2 if theme == "dark" else ground > 0.9
    assert share > 0.01
    if os.environ.get("RANKZERO_UPDATE_SCREENSHOTS") == "1":
        shutil.copyfile(picture, DOCS / kept)
