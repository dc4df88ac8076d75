"""One run in every tracker: the same names and numbers, once each, on this machine alone.

A tracker that is not installed is skipped (`pip install wandb mlflow trackio`).
"""

from __future__ import annotations

import importlib.util
import json
import socket
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.commands import rankzero, read_json, read_metrics, run, write_config
from tests.resuming import cut_at
from tests.tiny import make_model_folder

pytestmark = pytest.mark.e2e
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
PROMPTS = ["What is blood pressure?", "My chest hurts. What should I do?"]
NUM_STEPS, CUT = 6, 4
# What a config's figures are called in each tracker.
SHOWN_AS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "tokens_per_second": "train/tokens_per_second",
    "train_runtime": "train/train_runtime",
    "eval_loss": "eval/loss",
    "eval_quality": "eval/quality",
    "eval_safety_compliance_rate": "eval/safety_compliance_rate",
    "test_loss": "test/loss",
}
Series = dict[str, list[tuple[int, float]]]


def is_installed(tracker: str) -> bool:
    return importlib.util.find_spec(tracker) is not None


each_tracker = pytest.mark.parametrize(
    "tracker",
    [
        pytest.param(
            name, marks=pytest.mark.skipif(not is_installed(name), reason=f"{name} not installed")
        )
        for name in TRACKERS
    ],
)
with_wandb = pytest.mark.skipif(not is_installed("wandb"), reason="wandb not installed")


@pytest.fixture(scope="module")
def way_out() -> Iterator[dict[str, str]]:
    """The only way to the network, as variables; whoever took it fails the test."""
    with closing(socket.create_server(("127.0.0.1", 0))) as proxy:
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        both = {spelled: address for name in names for spelled in (name, name.lower())}
        local = "localhost,127.0.0.1,::1"
        yield both | {"NO_PROXY": local, "no_proxy": local, "WANDB_MODE": "offline"}
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, way_out: dict[str, str]) -> Path:
    """A run of two ranks, in all trackers that are installed."""
    folder = tmp_path_factory.mktemp("tracked")
    config = write_config(
        folder / "run.json",
        make_model_folder(folder / "tiny-llama"),
        folder / "out",
        training={"max_steps": NUM_STEPS, "precision": "fp32"},
        checkpoint={"every_steps": 2, "keep_last": 10},
        samples={"prompts": PROMPTS, "max_new_tokens": 8},
        safety={"enabled": True, "prompts": PROMPTS, "max_new_tokens": 8},
        tracking={"to": [name for name in TRACKERS if is_installed(name)], "project": "medical"},
    )
    trained = rankzero("train", config, "--engine", "torchrun", "--processes", "2", **way_out)
    assert trained.returncode == 0, trained.stderr
    return folder / "out"


@pytest.fixture(scope="module")
def resumed(tracked: Path, way_out: dict[str, str]) -> Path:
    """The run as a kill at its end would leave it, gone on from an earlier checkpoint."""
    again = cut_at(tracked, CUT, tracked.parent / "again")
    config, where = tracked.parent / "run.json", f"output_dir={again}"
    engine = ("--engine", "torchrun", "--processes", "2")
    trained = rankzero("train", config, "--set", where, *engine, **way_out)
    assert trained.returncode == 0, trained.stderr
    return again


# -- what each tracker holds ----------------------------------------------------------------------


def in_tensorboard(run_directory: Path) -> Series:
    events = EventAccumulator(str(run_directory / "tensorboard"))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def in_mlflow(run_directory: Path) -> Series:
    with closing(sqlite3.connect(run_directory / "mlflow.db")) as base:
        (_,) = base.execute("select run_uuid from runs").fetchall()
        rows = base.execute("select key, step, value from metrics order by timestamp, step")
        return _by_name((name, step, value) for name, step, value in rows)


def in_trackio(run_directory: Path) -> Series:
    with closing(sqlite3.connect(run_directory / "trackio" / "medical.db")) as base:
        ((_,),) = base.execute("select distinct run_id from metrics").fetchall()
        rows = base.execute("select step, metrics from metrics order by id").fetchall()
        return _by_name(
            (name, step, value) for step, text in rows for name, value in json.loads(text).items()
        )


def in_wandb(run_directory: Path) -> Series:
    rows = [row for file in wandb_files(run_directory) for row in wandb_rows(file)]
    return _by_name(
        (name, row["_step"], value)
        for row in rows
        for name, value in row.items()
        if not name.startswith("_") and isinstance(value, (int, float))
    )


def wandb_files(run_directory: Path) -> list[Path]:
    return sorted(run_directory.glob("wandb/offline-run-*/run-*.wandb"))


def wandb_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Read what W&B would send: records in blocks, as LevelDB's log has them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = file.read_bytes(), 7, b""  # after its own header
    while at + 7 <= len(data):
        if 0x8000 - at % 0x8000 < 7:
            at += 0x8000 - at % 0x8000
            continue
        length, kind = struct.unpack_from("<xxxxHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, parts = Record.FromString(parts), b""
            if record.HasField("history"):
                yield {
                    item.key or item.nested_key[0]: json.loads(item.value_json)
                    for item in record.history.item
                    if len(item.nested_key) < 2  # no parts of a table or a picture
                }


def _by_name(points: Iterator[tuple[str, int, float]]) -> Series:
    found: Series = {}
    for name, step, value in points:
        found.setdefault(name, []).append((step, value))
    return found


READERS = {
    "tensorboard": in_tensorboard,
    "wandb": in_wandb,
    "mlflow": in_mlflow,
    "trackio": in_trackio,
}


# -- tests ----------------------------------------------------------------------------------------


@each_tracker
def test_every_tracker_has_the_same_names_and_numbers(tracked: Path, tracker: str) -> None:
    shown = READERS[tracker](tracked)
    lines = read_metrics(tracked)
    for name, shown_as in SHOWN_AS.items():
        logged = {line["step"]: line[name] for line in lines if name in line}
        assert logged
        assert dict(shown[shown_as]) == pytest.approx(logged), name
    assert all(name.startswith(("train/", "eval/", "test/")) for name in shown)
    assert len(shown) == len({name for line in lines for name in line} - {"step", "time"})


@each_tracker
def test_a_run_that_goes_on_is_one_run_and_shows_no_step_twice(resumed: Path, tracker: str) -> None:
    if tracker == "wandb":  # offline each attempt has its file; the service joins them by the id
        first, second = (list(wandb_rows(file)) for file in wandb_files(resumed))
        assert {file.name for file in wandb_files(resumed)} == {
            f"run-{read_json(resumed / 'trackers.json')['wandb']}.wandb"
        }
        assert [row["_step"] for row in first if "train/loss" in row] == [1, 2, 3, 4, 5, 6]
        assert [row["_step"] for row in second if "train/loss" in row] == [5, 6]
    else:
        steps = [step for step, _ in READERS[tracker](resumed)["train/loss"]]
        assert steps == [1, 2, 3, 4, 5, 6]


def test_answers_are_text_in_tensorboard(tracked: Path) -> None:
    events = EventAccumulator(str(tracked / "tensorboard"))
    events.Reload()
    lines = (tracked / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    shown = events.Tensors("samples/2/text_summary")
    assert [event.step for event in shown] == [json.loads(line)["step"] for line in lines]
    text = shown[-1].tensor_proto.string_val[0].decode()
    sample = json.loads(lines[-1])["samples"][1]
    assert sample["prompt"] == PROMPTS[1]
    assert sample["prompt"] in text
    assert all(f"    {line}" in text for line in sample["greedy"].splitlines())


@with_wandb
def test_answers_are_a_table_in_wandb(tracked: Path) -> None:
    tables = tracked.glob("wandb/offline-run-*/files/media/table/samples_*.table.json")
    found = sorted((int(path.name.split("_")[1]), read_json(path)) for path in tables)
    lines = (tracked / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    last = [list(sample.values()) for sample in json.loads(lines[-1])["samples"]]
    step, table = found[-1]
    assert step == NUM_STEPS
    assert table["columns"] == ["prompt", "greedy", "sampled", "quality"]
    assert table["data"] == last


@with_wandb
def test_the_curves_of_the_report_are_in_wandb(tracked: Path) -> None:
    (picture,) = tracked.glob("wandb/offline-run-*/files/media/images/training_curves_*.png")
    assert picture.read_bytes() == (tracked / "training_curves.png").read_bytes()


def test_a_tracker_that_is_not_asked_for_is_not_imported(tracked: Path, tmp_path: Path) -> None:
    config = read_json(tracked.parent / "run.json")
    config |= {"tracking": {"to": []}, "output_dir": str(tmp_path / "out"), "samples": {}}
    (tmp_path / "run.json").write_text(json.dumps(config), encoding="utf-8")
    code = (
        "import pathlib, sys\n"
        "from trainer.main import run\n"
        "run(pathlib.Path(sys.argv[1]))\n"
        # DeepSpeed imports mlflow where it is installed: deepspeed/autotuning/autotuner.py
        "names = {'tensorboard', 'wandb', 'trackio', 'gradio_client'}\n"
        "print(sorted(names & set(sys.modules)))"
    )
    done = run("-c", code, tmp_path / "run.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
