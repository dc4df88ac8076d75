"""Data preparation beside TRL's and a plain `datasets.map`, in one run: rows/s, MB/s, peak memory.

Every way starts from the same JSON-lines file and the tokenizer's folder, in a process of its own
with its libraries loaded, and ends with ids and labels on disk; those must be equal in every row.
    python benchmarks/prepare.py [--sizes 10000 100000 1000000] [--peers PYTHON_WITH_TRL]
        [--peers-up-to ROWS] [--model FOLDER] [--output benchmarks/results/prepare.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
CHATS = ROOT / "examples" / "data" / "support_chats.jsonl"
WAYS = ROOT / "benchmarks" / "prepare_ways.py"
# The same text as SmolLM2's own, with the marks that the others find the assistant's tokens by.
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ROUNDS, ONE_ROUND_FROM = 3, 100_000  # rows: from there on once, a busy second weighs little
BEST_ONLY_ABOVE = 100_000  # rows: there the others run with their better number of processes only
SAMPLE_SECONDS = 0.25
MIB = 1 << 20


def main() -> None:
    """Print one line per way and size; write the numbers as JSON when asked to."""
    options = _options()
    cores = len(os.sched_getaffinity(0))
    if not options.peers:
        print("TRL: left out, name a Python that has it with --peers")
    machine = _machine(cores, options.peers)
    print(json.dumps(machine))
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = _model(Path(options.model), folder)
        for num_rows in sorted(options.sizes):
            num_bytes = write_rows(folder / "rows.jsonl", num_rows)
            ways = _ways(options, cores, num_rows, results)
            of_size = _measure_all(ways, folder, model, num_rows)
            for result in of_size:
                result["mb_per_second"] = num_bytes / 1e6 / result["seconds"]
                _show(result)
            results += of_size
            _summarise(of_size)
    if options.output:
        output = Path(options.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": machine, "results": results}, indent=1)
        output.write_text(text + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[10_000], help="rows")
    parser.add_argument("--model", default=str(ROOT / "models" / "smollm2-135m-instruct"))
    parser.add_argument("--peers", help="a Python interpreter that has trl and datasets")
    parser.add_argument("--peers-up-to", type=int, default=10**9, help="rows; above, ours alone")
    parser.add_argument("--output", help="write the numbers here, as JSON")
    return parser.parse_args()


def _model(given: Path, folder: Path) -> Path:
    """Copy a tokenizer and give it a template that all ways can work with."""
    if not (given / "tokenizer.json").is_file():
        sys.exit(f"{given}: no tokenizer.json; `make demo` makes this model, or name one: --model")
    model = folder / "model"
    model.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(given / name, model)
    (model / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return model


def write_rows(path: Path, num_rows: int) -> int:
    """Write made-up chats with lengths like real ones', 140 tokens on average; return the bytes.

    Half of the words are the example chats', with their commas and quotes, half are made up.
    """
    generator = random.Random(7)
    lines = CHATS.read_text(encoding="utf-8").splitlines()
    chats = [turn["content"] for line in lines for turn in json.loads(line)["messages"]]
    pool = [word for chat in chats for word in chat.split()]
    syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "ar", "en")]
    pool += ["".join(generator.choices(syllables, k=1 + n % 4)) for n in range(len(pool))]

    def say(role: str, mean: float) -> dict[str, str]:
        length = 1 + int(generator.lognormvariate(mean, 0.8))
        return {"role": role, "content": " ".join(generator.choices(pool, k=length))}

    with path.open("w", encoding="utf-8") as file:
        for _ in range(num_rows):
            turns = [say("system", 2.0)] if generator.random() < 0.2 else []
            for _ in range(generator.choices((1, 2, 3), (6, 3, 1))[0]):
                turns += [say("user", 2.2), say("assistant", 2.9)]
            file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
    return path.stat().st_size


def _ways(
    options: argparse.Namespace, cores: int, num_rows: int, so_far: list[dict[str, Any]]
) -> list[tuple[str, str, int]]:
    """List what to measure: way, Python, processes (0 leaves their number to the way)."""
    ways = [("ours", sys.executable, 0), ("ours", sys.executable, 1)]
    others = [("map", sys.executable), *([("trl", options.peers)] if options.peers else [])]
    for way, python in others if num_rows <= options.peers_up_to else []:
        tried = [result for result in so_far if result["way"] == way]
        if num_rows > BEST_ONLY_ABOVE and tried:
            best = max(tried, key=lambda result: (result["rows"], result["rows_per_second"]))
            ways.append((way, python, best["processes"]))
        else:
            ways += [(way, python, 1), (way, python, cores)]
    return ways


def _measure_all(
    ways: list[tuple[str, str, int]], folder: Path, model: Path, num_rows: int
) -> list[dict[str, Any]]:
    """Measure in rounds, so that a busy moment hits all. Exits when two ways differ in a row."""
    rounds: list[list[dict[str, Any]]] = [[] for _ in ways]
    first = folder / "first"
    first.unlink(missing_ok=True)
    for _ in range(ROUNDS if num_rows < ONE_ROUND_FROM else 1):
        for (way, python, count), measured in zip(ways, rounds, strict=True):
            work = folder / "work"
            work.mkdir()
            command = [python, WAYS, way, folder / "rows.jsonl", model, work, count]
            measured.append(measure([str(word) for word in command]))
            _check_equal(way, work / "digests", first)
            shutil.rmtree(work)
    results = []
    for (way, _, count), measured in zip(ways, rounds, strict=True):
        result = {"way": way, "processes": count, "rows": num_rows}
        for name in ("seconds", "cpu_seconds", "peak_mib"):
            result[name] = statistics.median(one[name] for one in measured)
        results.append({**result, "rows_per_second": num_rows / result["seconds"]})
    return results


def _check_equal(way: str, digests: Path, first: Path) -> None:
    if not first.exists():
        shutil.copy(digests, first)
    ours, theirs = first.read_bytes(), digests.read_bytes()
    if ours != theirs:
        size = 16
        pairs = range(0, max(len(ours), len(theirs)), size)
        row = next(i for i in pairs if ours[i : i + size] != theirs[i : i + size])
        sys.exit(f"{way} gives other ids or labels in row {row // size}")


def measure(command: list[str]) -> dict[str, Any]:
    """Run one way. Memory is watched from its libraries being loaded to the data being on disk."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    memory = Memory(process.pid)
    result: dict[str, Any] = {}
    errors: list[str] = []
    drain = threading.Thread(target=lambda: errors.extend(process.stderr or []))
    drain.start()
    for line in process.stdout or []:
        if not line.startswith("{"):
            continue
        result |= json.loads(line)
        if "seconds" in result:
            memory.stop()
        else:
            memory.start()
    drain.join()
    if process.wait() or "seconds" not in result:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}\n{''.join(errors[-20:])}")
    result.pop("ready")
    return {**result, "peak_mib": memory.peak_bytes / MIB}


class Memory(threading.Thread):
    """Samples the memory of a process and all its children; keeps the peak.

    A page that several processes share counts once. Pages of mapped files do not count: the
    system takes them back when it needs room.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root, self._ended = psutil.Process(pid), threading.Event()
        self.peak_bytes = 0

    def run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        total = 0
        for process in [self._root, *self._root.children(recursive=True)]:
            try:
                lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            except OSError:  # it ended just now
                continue
            kinds = ("Pss_Anon:", "Pss_Shmem:")
            total += sum(int(line.split()[1]) for line in lines if line.startswith(kinds)) * 1024
        self.peak_bytes = max(self.peak_bytes, total)

    def stop(self) -> None:
        """Sample once more, then no more."""
        self._ended.set()
        self.join()
        self._sample()


def _show(result: dict[str, Any]) -> None:
    print(
        f"{result['rows']:>9,} rows  {result['way']:4} processes {result['processes'] or '-':>2}  "
        f"{result['seconds']:7.1f} s {result['cpu_seconds']:7.1f} s of cores "
        f"{result['rows_per_second']:8,.0f} rows/s "
        f"{result['mb_per_second']:6.2f} MB/s  peak {result['peak_mib']:6,.0f} MiB",
        flush=True,
    )


def _summarise(results: list[dict[str, Any]]) -> None:
    """Compare the number of processes we choose ourselves with the best of every other way."""
    own = results[0]
    for way in dict.fromkeys(result["way"] for result in results if result["way"] != "ours"):
        others = [result for result in results if result["way"] == way]
        ratios = {
            name: min(other[name] for other in others) / own[name]
            for name in ("seconds", "cpu_seconds")
        }
        print(
            f"{own['rows']:>9,} rows  {way} at its best takes x {ratios['seconds']:.1f} the time, "
            f"x {ratios['cpu_seconds']:.1f} the time of cores"
        )
    print("ids and labels are equal in every row\n", flush=True)


def _machine(cores: int, peers: str | None) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "")
    libraries = ("tokenizers", "transformers", "datasets", "pyarrow", "jinja2")
    found: dict[str, Any] = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "cpu": model or platform.processor(),
        "cores": cores,
        "load": round(os.getloadavg()[0], 2),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
    }
    if peers:
        code = "from importlib.metadata import version; print(version('trl'))"
        run = subprocess.run([peers, "-c", code], check=True, capture_output=True, text=True)
        found["trl"] = run.stdout.strip()
    return found


if __name__ == "__main__":
    main()
