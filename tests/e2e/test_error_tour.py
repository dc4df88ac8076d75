"""What new users do wrong, one row each: one message with a fix, the right exit code, no traceback.

Every row starts in a folder that holds a whole run waiting to happen (run.yaml, a tiny model, 24
rows of data) and makes one mistake. The command is a real process, as a user starts it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.commands import EXAMPLE_DATA, read_json, run
from tests.tiny import make_model_folder

pytestmark = pytest.mark.e2e

CONFIG = """\
model:
  name: model
data:
  train: data/rows.jsonl
  max_length: 512
training:
  max_steps: 1
  learning_rate: 1e-3
  global_batch_size: 4
  precision: fp32
lora: {r: 8, alpha: 16}
output_dir: run
"""
# A profile like a cloud's T4: older than bf16.
OLD_GPU = """\
device: cuda
summary: one T4
gpus_per_node: 1
gpu: {model: T4, memory_gib: 14.6, bf16: false}
host: small-cloud
quantization: none
allow_offload: false
"""
# What an import finds when a library was never installed.
HIDING = """\
import importlib.machinery, os
finder = importlib.machinery.PathFinder
find = finder.find_spec
def find_spec(name, *rest):
    return None if name.partition('.')[0] in HIDDEN else find(name, *rest)
HIDDEN = LIBRARIES
finder.find_spec = staticmethod(find_spec)
"""
# Ctrl-C in the middle of the imports.
INTERRUPTING = """\
import os, signal, sys
class Interrupting:
    def find_spec(self, name, *rest):
        if name == "trainer.data.build":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
"""
MADE_BY_OTHERS = {"hub", "disk"}
"""By the Hub's client, and by a row itself."""
LFS_POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4665a5ea423c2713d436b5ee50593a9640e0018c1550b5a0002f74190d6caea8\nsize 269060552\n"
)
Change = Callable[[Path], None]
"""Makes the mistake, in the folder of the run."""


@dataclass(frozen=True)
class Mistake:
    """One row. Every word must be in the message, after `error:`."""

    name: str
    command: str
    exit_code: int
    words: tuple[str, ...]
    change: Change = lambda _: None
    environment: dict[str, str] = field(default_factory=dict)
    through: str = ""
    """What the command is started through; skipped where that cannot be had."""
    output: str = ""
    """What stdout shows nevertheless; nothing unless said."""
    begins: bool = False
    """The trainer itself says so: by then the data is prepared, and the run tells its failure."""


def text(name: str, content: str) -> Change:
    """Put a file there."""

    def change(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")

    return change


def config(old: str, new: str) -> Change:
    """Write something else in run.yaml."""

    def change(folder: Path) -> None:
        assert old in CONFIG
        (folder / "run.yaml").write_text(CONFIG.replace(old, new), encoding="utf-8")

    return change


def without(pattern: str) -> Change:
    """Remove files."""

    def change(folder: Path) -> None:
        found = list(folder.glob(pattern))
        assert found
        for path in found:
            path.unlink()

    return change


def json_value(name: str, key: str, value: object) -> Change:
    """Set one value of a JSON file."""

    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), key: value}), "utf-8")

    return change


def rows(*lines: str) -> Change:
    return text("data/rows.jsonl", "".join(f"{line}\n" for line in lines))


def hidden(*libraries: str) -> Change:
    return text("stubs/sitecustomize.py", HIDING.replace("LIBRARIES", repr(libraries)))


def read_only(folder: Path) -> None:
    (folder / "locked").mkdir(mode=0o555)


def lfs_pointer(folder: Path) -> None:
    text("model/model.safetensors", LFS_POINTER)(folder)


def never_trained(folder: Path) -> None:
    text("run/resolved.json", json.dumps({"model": {"name": str(folder / "model")}}))(folder)
    text("run/status.json", json.dumps({"state": "failed"}))(folder)


def orphaned_adapter(folder: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "/nowhere/base", "r": 8}
    text("adapter/adapter_config.json", json.dumps(settings))(folder)
    save_file({}, folder / "adapter" / "adapter_model.safetensors")


def old_transformers(folder: Path) -> None:
    stub = "stubs/transformers-4.40.0.dist-info/METADATA"
    text(stub, "Metadata-Version: 2.1\nName: transformers\nVersion: 4.40.0\n")(folder)


ROW = '{"instruction": "What is a femur?", "response": "The thigh bone."}'
STUBS = {"PYTHONPATH": "{folder}/stubs"}
NO_NETWORK = {
    "HF_HUB_OFFLINE": "0",
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1",
    "HF_HOME": "{folder}/hub",
}
# Root may write everywhere, until this is taken from it.
WITHOUT_PRIVILEGES = "" if os.geteuid() else "setpriv --bounding-set=-dac_override,-dac_read_search"
TINY_DISK = (
    f"unshare --mount {'--user --map-root-user' if os.geteuid() else ''} sh -c "
    "'mkdir -p disk && mount -t tmpfs -o size=64k none disk && exec \"$@\"' sh"
)

TOUR = [
    # ---- the config
    Mistake("config path", "train rnu.yaml", 2, ("rnu.yaml", "no such file", "rankzero init")),
    Mistake("config is a folder", "train data", 2, ("data: this is a folder",)),
    Mistake(
        "config is no YAML",
        "train run.yaml",
        2,
        ("run.yaml:2", "YAML"),
        config("  name: model", "\tname: model"),
    ),
    Mistake(
        "key typo",
        "train run.yaml",
        2,
        ("run.yaml:8", "learning_rat", "did you mean", "learning_rate"),
        config("learning_rate", "learning_rat"),
    ),
    Mistake(
        "wrong type",
        "train run.yaml",
        2,
        ("run.yaml:7", "max_steps", "whole number", "many"),
        config("max_steps: 1", "max_steps: many"),
    ),
    Mistake(
        "out of range",
        "train run.yaml",
        2,
        ("run.yaml:8", "learning_rate", "greater than 0, not -1"),
        config("1e-3", "-1"),
    ),
    Mistake(
        "alpha 0",
        "train run.yaml",
        2,
        ("run.yaml:11", "lora.alpha", "greater than 0, not 0"),
        config("alpha: 16", "alpha: 0"),
    ),
    Mistake(
        "--set typo", "train run.yaml --set training.learning_rat=1", 2, ("--set", "did you mean")
    ),
    Mistake(
        "--set without value",
        "train run.yaml --set training.learning_rate",
        2,
        ("--set", "learning_rate=VALUE"),
    ),
    Mistake("verb typo", "trian run.yaml", 2, ("trian", "did you mean `train`")),
    Mistake("option typo", "train run.yaml --profle cpu", 2, ("--profle", "--profile")),
    Mistake("argument missing", "train", 2, ("CONFIG", "--help")),
    Mistake("option value", "train run.yaml --processes two", 2, ("--processes", "two")),
    # ---- the model
    Mistake(
        "model folder typo",
        "train run.yaml",
        2,
        ("there is no folder", "modle", "did you mean model?"),
        config("name: model", "name: ./modle"),
    ),
    Mistake(
        "Hub id, no network",
        "train run.yaml",
        3,
        ("someone/something", "Hub cannot be reached"),
        config("name: model", "name: someone/something"),
        NO_NETWORK,
    ),
    Mistake(
        "Hub id, offline",
        "train run.yaml",
        3,
        ("someone/something", "HF_HUB_OFFLINE unset"),
        config("name: model", "name: someone/something"),
        {**NO_NETWORK, "HF_HUB_OFFLINE": "1"},
    ),
    Mistake(
        "model without weights",
        "train run.yaml",
        2,
        ("model.name: model holds no weights",),
        without("model/model.safetensors"),
    ),
    Mistake(
        "LFS pointer",
        "train run.yaml",
        2,
        ("model.safetensors is a git-lfs pointer", "lfs pull"),
        lfs_pointer,
        begins=True,
    ),
    Mistake(
        "no tokenizer",
        "train run.yaml",
        2,
        ("model has no tokenizer", "tokenizer.json"),
        without("model/tokenizer*"),
    ),
    Mistake(
        "odd dtype",
        "train run.yaml",
        2,
        ("dtype", "float99"),
        json_value("model/config.json", "dtype", "float99"),
    ),
    Mistake(
        "unknown architecture",
        "train run.yaml",
        2,
        ("llamma",),
        json_value("model/config.json", "model_type", "llamma"),
    ),
    # ---- the data
    Mistake(
        "data path",
        "train run.yaml",
        2,
        ("data/row.jsonl", "did you mean data/rows.jsonl"),
        config("rows.jsonl", "row.jsonl"),
    ),
    Mistake(
        "data empty",
        "train run.yaml",
        2,
        ("data/rows.jsonl", "no rows"),
        text("data/rows.jsonl", ""),
    ),
    Mistake(
        "column typo",
        "train run.yaml",
        2,
        ("respnse", "did you mean"),
        config(
            "train: data/rows.jsonl",
            "train: [{path: data/rows.jsonl, columns: {response: respnse}}]",
        ),
    ),
    Mistake(
        "broken JSON line", "train run.yaml", 2, ("rows.jsonl:2", "JSON"), rows(ROW, ROW[:-3], ROW)
    ),
    Mistake(
        "rows too long",
        "train run.yaml",
        2,
        ("all 24 rows", "data.max_length"),
        config("max_length: 512", "max_length: 8\n  too_long: skip"),
    ),
    Mistake(
        "no answers",
        "train run.yaml",
        2,
        ("rows.jsonl:1", "response", "empty"),
        rows('{"instruction": "What is a femur?", "response": ""}'),
    ),
    # ---- the machine
    Mistake(
        "output_dir not writable",
        "train run.yaml --set output_dir=locked/run",
        3,
        ("locked/run", "Permission denied"),
        read_only,
        through=WITHOUT_PRIVILEGES,
    ),
    Mistake(
        "disk full",
        "train run.yaml --set output_dir=disk/run",
        3,
        ("GiB of disk", "set output_dir"),
        through=TINY_DISK,
    ),
    Mistake(
        "port in use",
        "train run.yaml --nodes 2 --rendezvous 127.0.0.1:{port}",
        3,
        ("port {port}", "already in use"),
        begins=True,
    ),
    Mistake("no rendezvous", "train run.yaml --nodes 2", 2, ("--rendezvous",)),
    Mistake(
        "profile typo", "train run.yaml --profile single-24bg", 2, ("did you mean", "single-24gb")
    ),
    Mistake(
        "profile for GPUs", "train run.yaml --profile single-80gb", 3, ("GPU", "--profile auto")
    ),
    Mistake(
        "two processes with python",
        "train run.yaml --processes 2 --engine python",
        2,
        ("--engine python with 2 processes", "torchrun"),
    ),
    Mistake("fp16 on the CPU", "train run.yaml --set training.precision=fp16", 3, ("fp16", "fp32")),
    Mistake(
        "bf16 on an old GPU",
        "plan run.yaml --profile ./t4.yaml --set training.precision=bf16",
        3,
        ("bf16", "profile t4", "fp16"),
        text("t4.yaml", OLD_GPU),
    ),
    Mistake(
        "no wandb",
        "train run.yaml --set tracking.to=[wandb]",
        3,
        ("wandb", "pip install wandb"),
        hidden("wandb"),
        STUBS,
    ),
    Mistake(
        "no bitsandbytes",
        "train run.yaml --set model.quantization=nf4",
        3,
        ("bitsandbytes", "pip install"),
        hidden("bitsandbytes"),
        STUBS,
    ),
    Mistake(
        "no kubernetes client",
        "submit run.yaml --profile multi-a100-40gb --image i:1",
        3,
        ("rankzero[k8s]",),
        hidden("kubernetes"),
        STUBS,
    ),
    Mistake(
        "no kubeconfig",
        "submit run.yaml --profile multi-a100-40gb --image i:1",
        3,
        ("kubeconfig", "KUBECONFIG"),
        environment={"KUBECONFIG": "{folder}/none"},
    ),
    Mistake(
        "old transformers",
        "doctor",
        3,
        ("transformers", "pip install"),
        old_transformers,
        STUBS,
        output="4.40.0 is too old",
    ),
    # ---- a run
    Mistake(
        "--resume of nothing", "train run.yaml --resume runs/old", 2, ("runs/old", "no such folder")
    ),
    Mistake(
        "--resume of a folder that is no run",
        "train run.yaml --resume data",
        2,
        ("/data", "no checkpoint"),
    ),
    Mistake(
        "output_dir holds something else",
        "train run.yaml --set output_dir=other",
        2,
        ("other", "already holds"),
        text("other/adapter/adapter_config.json", "{}"),
    ),
    Mistake(
        "merge without the base", "merge adapter", 2, ("/nowhere/base", "--base"), orphaned_adapter
    ),
    Mistake("merge of nothing", "merge adaptr", 2, ("adaptr is not a folder",)),
    Mistake(
        "generate of an untrained run",
        "generate run --prompt Hello",
        2,
        ("run run holds no trained model",),
        never_trained,
    ),
    Mistake(
        "render for this machine",
        "render run.yaml --profile auto --output k8s",
        2,
        ("--profile auto is this machine", "rankzero profiles"),
    ),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def place(model: Path, tmp_path: Path) -> Path:
    """A run waiting to happen."""
    make_place(model, tmp_path)
    return tmp_path


def make_place(model: Path, folder: Path) -> None:
    shutil.copytree(model, folder / "model")
    (folder / "data").mkdir(exist_ok=True)
    lines = (EXAMPLE_DATA / "medical_qa.jsonl").read_text(encoding="utf-8").splitlines()
    rows(*sorted(lines, key=len)[:24])(folder)
    (folder / "run.yaml").write_text(CONFIG, encoding="utf-8")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server(("", 0)) as listener:
        yield int(listener.getsockname()[1])


@pytest.mark.parametrize("mistake", TOUR, ids=lambda mistake: mistake.name)
def test_a_mistake_is_told_once_with_its_fix(mistake: Mistake, place: Path, port: int) -> None:
    mistake.change(place)
    before = {path.name for path in place.iterdir()}
    told = start(mistake, place, port)
    assert told.returncode == mistake.exit_code, told.stderr
    assert "Traceback" not in told.stdout + told.stderr
    assert re.findall("^.*error:", told.stderr, re.MULTILINE | re.IGNORECASE) == ["error:"]
    message = told.stderr.partition("error:")[2]
    assert re.search("^ +fix: +[^ ]", message, re.MULTILINE), message
    missing = [word for word in mistake.words if word.replace("{port}", str(port)) not in message]
    assert not missing, message
    left = {path.name for path in place.iterdir()} - before - MADE_BY_OTHERS
    assert left == ({"run"} if mistake.begins else set())
    if mistake.begins:
        assert not (place / "run" / "metrics.jsonl").exists()
        status = read_json(place / "run" / "status.json")
        assert (status["state"], status["exit_code"]) == ("failed", mistake.exit_code)
    elif mistake.output:
        assert mistake.output in told.stdout
    else:
        assert told.stdout == ""


def start(mistake: Mistake, place: Path, port: int) -> subprocess.CompletedProcess[str]:
    """Start what the user typed, in the folder of the run."""
    through = shlex.split(mistake.through)
    if through and subprocess.run([*through, "true"], check=False, cwd=place).returncode:
        pytest.skip(f"this user may not start anything through {through[0]}")
    command = shlex.split(mistake.command.replace("{port}", str(port)))
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "-1", **mistake.environment}
    given = {name: value.replace("{folder}", str(place)) for name, value in environment.items()}
    return subprocess.run(
        [*through, sys.executable, "-m", "launcher", *command],
        check=False,
        cwd=place,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **given},
    )


def test_a_run_that_never_began_is_begun_without_the_mistake(place: Path) -> None:
    train = ("-m", "launcher", "train", "run.yaml")
    asked = (*train, "--set", "safety.enabled=true", "--set", "safety.checker=none.Such")
    assert run(*asked, cwd=place).returncode == 2
    trained = run(*train, cwd=place)
    assert trained.returncode == 0, trained.stderr
    assert read_json(place / "run" / "status.json")["state"] == "completed"


def test_a_run_that_failed_on_broken_weights_is_begun_anew_with_whole_ones(place: Path) -> None:
    weights = place / "model" / "model.safetensors"
    whole = weights.read_bytes()
    lfs_pointer(place)
    train = ("-m", "launcher", "train", "run.yaml")
    assert run(*train, cwd=place).returncode == 2
    weights.write_bytes(whole)
    refused = run(*train, cwd=place)
    assert refused.returncode == 2, refused.stderr
    assert "begin it anew with --resume never" in refused.stderr
    assert run(*train, "--resume", "never", cwd=place).returncode == 0


def test_ctrl_c_while_preparation_is_still_imported_shows_no_traceback(place: Path) -> None:
    text("stubs/sitecustomize.py", INTERRUPTING)(place)
    command = ("-m", "trainer.prepare", "--config", "run.yaml")
    ended = run(*command, cwd=place, PYTHONPATH=str(place / "stubs"))
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")


def test_a_reader_that_has_read_enough_does_not_fail_the_preparation(place: Path) -> None:
    """As in `rankzero train run.yaml | head -1`."""
    read, write = os.pipe()
    os.close(read)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "trainer.prepare", "--config", "run.yaml"],
            check=False,
            cwd=place,
            stdout=write,
            stderr=subprocess.PIPE,
        )
    finally:
        os.close(write)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert (place / "run" / "data_report.json").is_file()
