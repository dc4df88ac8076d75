"""One way of preparing data, timed in a process of its own: `prepare.py` starts this.

Usage: PYTHON prepare_ways.py WAY SOURCE MODEL FOLDER PROCESSES. Prints lines of JSON: when the
libraries are loaded, and what it took. Then writes FOLDER/digests, 16 bytes for each row.
"""

# ruff: noqa: PLC0415  (every way imports what it needs: TRL's Python has none of this project's)

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MAX_LENGTH = 1024
Rows = Iterator[tuple[Any, Any]]  # ids and labels of one example


def ours(source: Path, model: Path, folder: Path, processes: int) -> Callable[[], Rows]:
    """`rankzero`'s own preparation; processes 0 leaves their number to it."""
    sys.path.insert(0, str(ROOT))
    import numpy as np
    from transformers import AutoTokenizer

    from trainer.config import Config
    from trainer.data.store import load_prepared
    from trainer.prepare import prepare

    AutoTokenizer.from_pretrained(model)  # what transformers imports at first use, it has now
    config = Config.model_validate(
        {
            "model": {"name": str(model)},
            "data": {
                "train": str(source),
                "max_length": MAX_LENGTH,
                "cache_dir": str(folder / "cache"),
                "workers": processes or None,
            },
            "output_dir": str(folder / "run"),
        }
    )

    def run() -> Rows:
        split = load_prepared(prepare(config)).split("train")
        assert split is not None
        return ((ids, np.where(m, ids, -100)) for ids, m in map(split.row, range(len(split))))

    return run


def plain_map(source: Path, model: Path, _: Path, processes: int) -> Callable[[], Rows]:
    """`datasets.map` with apply_chat_template per row and its assistant mask."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(model)

    def run() -> Rows:
        tokenizer = AutoTokenizer.from_pretrained(model)

        def encode(row: dict[str, Any]) -> dict[str, Any]:
            encoded = tokenizer.apply_chat_template(
                row["messages"], return_dict=True, return_assistant_tokens_mask=True
            )
            ids, mask = encoded["input_ids"][:MAX_LENGTH], encoded["assistant_masks"]
            labels = [token if learned else -100 for token, learned in zip(ids, mask, strict=False)]
            return {"input_ids": ids, "labels": labels}

        rows = load_dataset("json", data_files=str(source), split="train")
        num_proc = processes if processes > 1 else None
        return _rows(rows.map(encode, num_proc=num_proc, remove_columns=rows.column_names))

    return run


def trl(source: Path, model: Path, folder: Path, processes: int) -> Callable[[], Rows]:
    """TRL's `SFTTrainer._prepare_dataset` with its defaults and `assistant_only_loss`."""
    from datasets import Dataset, load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(model)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    network = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=1, **sizes)
    )
    settings = SFTConfig(
        output_dir=str(folder / "run"),
        assistant_only_loss=True,
        dataset_num_proc=processes if processes > 1 else None,
        max_length=MAX_LENGTH,
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    one = Dataset.from_list([{"messages": turns}])
    trainer = SFTTrainer(network, settings, train_dataset=one, processing_class=tokenizer)

    def run() -> Rows:
        rows = load_dataset("json", data_files=str(source), split="train")
        own = AutoTokenizer.from_pretrained(model)
        return _rows(trainer._prepare_dataset(rows, own, settings, False, None, "train"))

    return run


WAYS = {"ours": ours, "map": plain_map, "trl": trl}


def _rows(dataset: Any) -> Rows:
    for batch in dataset.with_format("numpy").iter(1000):
        yield from zip(batch["input_ids"], batch["labels"], strict=True)


def _write_digests(rows: Rows, path: Path) -> None:
    import numpy as np

    with path.open("wb") as file:
        for ids, labels in rows:
            both = np.stack((ids, labels)).astype(np.int32)
            file.write(hashlib.blake2b(both.tobytes(), digest_size=16).digest())


def _cpu_seconds() -> float:
    """Return the processor time of this process and those it has ended: no neighbour adds to it."""
    return sum(os.times()[:4])


def main() -> None:
    """Prepare, say how long it took, then digest what came out."""
    way, source, model, folder, processes = sys.argv[1:]
    os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=folder, HF_DATASETS_CACHE=folder + "/datasets")
    run = WAYS[way](Path(source), Path(model), Path(folder), int(processes))
    print(json.dumps({"ready": True}), flush=True)
    started, cpu_started = time.perf_counter(), _cpu_seconds()
    rows = run()
    seconds, cpu_seconds = time.perf_counter() - started, _cpu_seconds() - cpu_started
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds}), flush=True)
    _write_digests(rows, Path(folder) / "digests")


if __name__ == "__main__":
    main()
