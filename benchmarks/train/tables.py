"""Results as Markdown.

python -m benchmarks.train.tables RESULT.json [README.md]    print them, or put them in their place
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.train.figures import Spread, best_of, one_time_seconds, ratios, speeds
from benchmarks.train.ways import OURS, WAYS, Choice

GIB = 2**30
_BEGIN, _END = "<!-- train: begin -->", "<!-- train: end -->"
_HEADS = (
    "way",
    "settings",
    "useful tokens/s",
    "x best peer",
    "labelled tokens/s",
    "peak GiB",
    "once, s",
    "loss off",
    "gradients off",
)


def main(result: str, readme: str | None = None) -> None:
    """Print a result, or write it between the marks of a Markdown file."""
    lines = sections(json.loads(Path(result).read_text(encoding="utf-8")))
    if readme is None:
        print("\n".join(lines))
        return
    path = Path(readme)
    path.write_text(between_marks(path.read_text(encoding="utf-8"), lines), encoding="utf-8")


def between_marks(text: str, lines: Sequence[str]) -> str:
    """Replace what stands between the marks. PURE. Raises: ValueError when they are not there."""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        raise ValueError(f"the text has no {_BEGIN} ... {_END}")
    return "\n".join([before + begin, "", *lines, "", end + after])


def sections(result: Mapping[str, Any]) -> list[str]:
    """Write a whole result. PURE."""
    machine = result["machine"]
    lines = [
        f"{result['date']}, {result['model']}, commit {machine['commit']}; "
        f"{machine['processor']}, {machine['cores']} cores "
        f"({', '.join(machine['instructions'])}), {machine['threads']} threads, "
        f"{machine['memory_gib']} GiB, {machine['system']}, Python {machine['python']}; "
        f"{_libraries(result)}.",
    ]
    for name, profile in result["profiles"].items():
        lines += ["", f"### {name}", "", rows_line(profile), noise_line(profile), ""]
        lines += profile_table(profile)
    return [*lines, *(f"\n{reason}." for reason in result["left_out"])]


def _libraries(result: Mapping[str, Any]) -> str:
    """Name the versions; a library with several is named with each."""
    found = {
        f"{name} {version}"
        for profile in result["profiles"].values()
        for way in profile["ways"]
        for name, version in way["versions"].items()
    }
    return ", ".join(sorted(found))


def profile_table(profile: Mapping[str, Any]) -> list[str]:
    """Draw the table of one profile; ways that did not run follow it, with the reason."""
    ran = {way["way"]: way for way in profile["ways"] if way["rounds"]}
    peers = {name: way["rounds"] for name, way in ran.items() if name != OURS}
    best = best_of(peers)
    rows = [_cells(way, profile, ran[best] if best else None) for way in ran.values()]
    lines = [f"| {' | '.join(_HEADS)} |", f"|{'---|' * 2}{'---:|' * (len(_HEADS) - 2)}"]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    lines += [
        f"\n{WAYS[way['way']].title}: {way['problem']}"
        for way in profile["ways"]
        if way["problem"] is not None
    ]
    return lines


def rows_line(profile: Mapping[str, Any]) -> str:
    """Say what was trained on."""
    rows = profile["rows"]
    return (
        f"{profile['about'][0].upper()}{profile['about'][1:]}: {rows['steps_per_round']} steps of "
        f"{rows['examples_per_step']} examples a round, {profile['tokens']:,} tokens "
        f"({profile['labels']:,} labelled), {rows['mean']:.0f} a row, longest {rows['longest']}."
    )


def noise_line(profile: Mapping[str, Any]) -> str:
    """Say what a difference is measured with."""
    noise, limits = profile["noise"], profile["allowed"]
    return (
        f"Differences are from plain PEFT in float32, row by row; in bf16 that itself is off by "
        f"{noise['loss']:.3%} in the loss and {noise['gradients']:.2%} in the gradients, and up to "
        f"{limits['loss']:.2%} and {limits['gradients']:.2%} count as equal."
    )


def _cells(
    way: Mapping[str, Any], profile: Mapping[str, Any], best: Mapping[str, Any] | None
) -> Sequence[str]:
    rounds, tokens = way["rounds"], way["tokens"]
    labels = profile["labels"] * tokens / profile["tokens"]
    choice = str(Choice(**way["choice"])) if way["choice"] else "its own plan"
    return (
        WAYS[way["way"]].title,
        choice,
        _spread(Spread.of(speeds(tokens, rounds))),
        _spread(ratios(rounds, best["rounds"]), ".2f") if best else "",
        f"{Spread.of(speeds(labels, rounds)).median:,.0f}",
        _memory(way),
        f"{way['start_seconds'] + one_time_seconds(way['warm_up'], rounds):.0f}",
        f"{way['parity']['loss']:.3%}",
        f"{way['parity']['gradients']:.2%}" + ("" if way["is_equal"] else " (!)"),
    )


def _memory(way: Mapping[str, Any]) -> str:
    children = way["children_bytes"] / GIB
    return f"{way['peak_bytes'] / GIB:.2f}" + (f" + {children:.2f}" if children >= 0.01 else "")


def _spread(spread: Spread, form: str = ",.0f") -> str:
    return f"{spread.median:{form}} ({spread.lowest:{form}} to {spread.highest:{form}})"


if __name__ == "__main__":
    main(*sys.argv[1:])
