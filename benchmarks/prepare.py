"""Data preparation beside the usual ways, in one run: rows per second and ratios.

All ways give the same ids for the same rows (checked before timing). Usage: make bench
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.tiny import make_tokenizer  # noqa: E402
from trainer.config import Config, DataConfig, ModelConfig  # noqa: E402
from trainer.data.store import load_prepared  # noqa: E402
from trainer.prepare import prepare  # noqa: E402

NUM_ROWS, ROUNDS = 5_000, 3
CHATS = ROOT / "examples" / "data" / "support_chats.jsonl"


def main() -> None:
    """Print one line per way: median seconds, rows per second, ratio to ours."""
    lines = CHATS.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(lines[i % len(lines)]) for i in range(NUM_ROWS)]
    tokenizer = make_tokenizer()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder / "model")
        (folder / "model" / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
        source = folder / "rows.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

        def ours(round_number: int) -> list[list[int]]:
            config = Config(
                model=ModelConfig(name=str(folder / "model")),
                data=DataConfig(
                    train=[str(source)], cache_dir=str(folder / f"cache-{round_number}"), workers=1
                ),
                output_dir=str(folder / "run"),
            )
            split = load_prepared(prepare(config)).split("train")
            assert split is not None
            return [split.row(i)[0].tolist() for i in range(len(split))]

        def template_per_row(_: int) -> list[list[int]]:
            """The reference: ids alone, no masks, nothing checked, nothing written."""
            return [tokenizer.apply_chat_template(row["messages"])["input_ids"] for row in rows]

        def template_twice_per_row(_: int) -> list[list[int]]:
            """The common way to a mask: the prompt's ids beside the whole conversation's."""
            for row in rows:
                tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True)
            return template_per_row(0)

        ways: dict[str, Callable[[int], list[list[int]]]] = {
            "this project (ids, masks, checks, Arrow files)": ours,
            "apply_chat_template per row (ids only)": template_per_row,
            "apply_chat_template twice per row (ids and a mask)": template_twice_per_row,
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for round_number in range(ROUNDS):  # interleaved, so that a busy moment hits all
            for way, function in ways.items():
                started = time.perf_counter()
                ids = function(round_number)
                seconds[way].append(time.perf_counter() - started)
                if function is ours:
                    expected = ids
                assert ids == expected, f"{way} gives other ids"
    own = statistics.median(seconds[next(iter(ways))])
    for way, times in seconds.items():
        median = statistics.median(times)
        print(f"{way:52} {median:6.2f} s {NUM_ROWS / median:9,.0f} rows/s  x {median / own:.2f}")


if __name__ == "__main__":
    main()
