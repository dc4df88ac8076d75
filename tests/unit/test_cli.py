"""The command line: what it offers, what it writes, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from launcher import planning, trainer_module
from launcher import run as run_module
from launcher.cli import COMMANDS, rankzero
from launcher.profile_file import shipped_profiles
from launcher.supervise import supervise
from trainer.config import load_config, to_json
from trainer.config_paths import with_absolute_paths
from trainer.errors import ConfigError, Interrupted, OutOfMemory, RankZeroError, TrainingFailed
from trainer.model_facts import ModelFacts
from trainer.run_directory import RunDirectory, write_json
from trainer.status import write_completed

ROOT = Path(__file__).parents[2]

# The public surface. A change here is a change users see.
FROZEN = {
    "init": {"path"},
    "schema": set(),
    "plan": {"config", "--profile", "--nodes", "--set", "--json"},
    "train": {
        "config",
        "--profile",
        "--engine",
        "--processes",
        "--resume",
        "--nodes",
        "--node-rank",
        "--rendezvous",
        "--set",
        "--dry-run",
    },
    "render": {
        "config",
        "--profile",
        "--nodes",
        "--set",
        "--kind",
        "--queue",
        "--image",
        "--namespace",
        "--claim",
        "--internet",
        "--output",
    },
    "submit": {
        "config",
        "--profile",
        "--nodes",
        "--set",
        "--kind",
        "--queue",
        "--image",
        "--namespace",
        "--claim",
        "--internet",
        "--context",
        "--detach",
    },
    "status": {"run", "--namespace", "--context", "--json"},
    "logs": {"run", "--namespace", "--context", "--follow", "--node", "--all-attempts"},
    "cancel": {"run", "--namespace", "--context"},
    "merge": {
        "targets",
        "--base",
        "--output",
        "--base-precision",
        "--quantization",
        "--dtype",
        "--replace",
        "--ignore-requirements",
        "--push-to-hub",
        "--private",
        "--trust-remote-code",
    },
    "generate": {
        "models",
        "--prompt",
        "--system",
        "--max-new-tokens",
        "--precision",
        "--trust-remote-code",
        "--json",
    },
    "evaluate": {"run", "--split", "--json"},
    "compare": {"runs", "--html", "--json"},
    "report": {"run"},
    "checkpoints": {"run", "--verify", "--prune", "--json"},
    "profiles": {"--json"},
    "doctor": {"--json"},
}


def _invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(rankzero, [str(argument) for argument in arguments])


def _config(folder: Path, **changes: object) -> Path:
    values = {
        "model": {"name": "m"},
        "data": {"train": "rows.jsonl"},
        "output_dir": str(folder / "runs" / "one"),
        **changes,
    }
    path = folder / "my run.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_commands_and_options_are_frozen() -> None:
    found: dict[str, set[str]] = {}
    context = click.Context(rankzero)
    for name in rankzero.list_commands(context):
        command = rankzero.get_command(context, name)
        assert command is not None
        found[name] = {
            parameter.opts[0] if isinstance(parameter, click.Option) else str(parameter.name)
            for parameter in command.params
        }
        assert command.get_short_help_str(limit=200).rstrip(".") == COMMANDS[name].rstrip(".")
    assert found == FROZEN


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "launcher", "--version"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert printed.stdout.startswith("rankzero, version ")
    assert _invoke("nonsense").exit_code == 2
    assert _invoke("train").exit_code == 2


def test_a_bad_config_ends_with_2_and_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: {name: m}\ndata: {train: f}\ntraining: {learning_rte: 1}\n")
    command = [sys.executable, "-m", "launcher", "train", str(path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert f"{path}:3: unknown key `training.learning_rte`" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_init_writes_a_config_that_loads_and_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "first.yaml"
    assert _invoke("init", path).exit_code == 0
    load_config(path)
    path.write_text("mine")
    again = _invoke("init", path)
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    assert path.read_text() == "mine"
    assert _invoke("init", tmp_path / "none" / "run.yaml").exit_code == 2


def test_schema_is_json_on_stdout() -> None:
    printed = _invoke("schema")
    assert printed.exit_code == 0
    assert "training" in json.loads(printed.stdout)["properties"]


@pytest.fixture
def known_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model of `_config` be one whose facts are known: nothing is measured."""
    facts = ModelFacts.model_validate_json(
        (ROOT / "tests" / "model_facts" / "llama-3.2-1b.lora.json").read_bytes()
    )
    monkeypatch.setattr(planning, "find_facts", lambda *_: facts)


@pytest.mark.usefixtures("known_model")
def test_dry_run_prints_the_command_of_each_engine_and_starts_nothing(tmp_path: Path) -> None:
    output = tmp_path / "a run"
    config = _config(tmp_path, output_dir=str(output))
    printed = _invoke(
        *("train", config, "--profile", "cpu", "--processes", "2", "--engine", "accelerate"),
        *("--set", "training.deepspeed_config=zero2", "--set", "data.max_length=512"),
        "--dry-run",
    )
    assert printed.exit_code == 0, printed.output
    lines = printed.stdout.splitlines()
    resolved = str(output / "dry-run" / "resolved.json")
    assert shlex.split(lines[1]) == [
        *(sys.executable, "-m", "trainer.prepare", "--config", resolved)
    ]
    commands = {
        title.split()[1].rstrip(":"): shlex.split(command)
        for title, command in pairwise(lines[2:])
        if title.startswith("# ") and not command.startswith("# ")
    }
    assert list(commands) == ["accelerate", "torchrun", "deepspeed"]
    assert "# python: not possible here (--engine python with 2 processes)" in lines
    assert all(command[-1] == resolved for command in commands.values())
    assert f"--config_file={output / 'dry-run' / 'accelerate.yaml'}" in " ".join(
        commands["accelerate"]
    ).replace("--config_file ", "--config_file=")
    assert load_config(Path(resolved)).training.deepspeed_config is not None
    # Not a run: the real thing may follow.
    assert _invoke("train", config, "--profile", "cpu", "--dry-run").exit_code == 0


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"zero_optimization": {"stage": 7}}, "it must be 0, 1, 2 or 3"),
        ({"zero_optimization": 3}, "`zero_optimization` is 3"),
        ({"train_batch_size": 64}, "`train_batch_size` is 64"),
        ({"optimizer": {"type": "Adam"}}, "`optimizer` would overrule training.optimizer"),
    ],
)
def test_a_deepspeed_config_that_contradicts_ends_with_2_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: object, problem: str
) -> None:
    monkeypatch.setattr(planning, "find_facts", lambda *_: pytest.fail("measured"))
    (tmp_path / "ds.json").write_text(json.dumps(settings), encoding="utf-8")
    config = _config(tmp_path, training={"deepspeed_config": str(tmp_path / "ds.json")})
    printed = _invoke("plan", config, "--profile", "multi-a100-40gb")
    assert printed.exit_code == 2, printed.output
    assert problem in printed.stderr
    named = _invoke("plan", config, "--set", "training.deepspeed_config=nothing")
    assert named.exit_code == 2


@pytest.mark.parametrize(("columns", "has_summary"), [("80", False), ("120", True)])
def test_each_profile_is_one_line_that_fits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, columns: str, *, has_summary: bool
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    table, _, _ = _invoke("profiles").stdout.partition("\n\n")
    heading, *rows = table.splitlines()
    assert len(rows) == len(shipped_profiles())
    assert all(len(row) <= int(columns) for row in (heading, *rows))
    assert heading.endswith("summary") is has_summary


def test_a_model_folder_that_is_not_there_is_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.model_facts._measure", lambda *_: pytest.fail("measured"))
    missing = f"model.name={tmp_path / 'none'}"
    ended = _invoke("plan", _config(tmp_path), "--profile", "cpu", "--set", missing)
    assert ended.exit_code == 2, ended.output
    assert f"there is no folder {tmp_path / 'none'}" in ended.stderr
    assert "measuring" not in ended.stderr


class _Recorded:
    """Stands in for the processes: notes what would start and ends as told."""

    def __init__(self, *codes: int | RankZeroError) -> None:
        self.codes, self.commands, self.interactive = list(codes), list[list[str]](), False

    def __call__(self, command: list[str], *, is_interactive: bool = False, **_: object) -> int:
        self.commands.append(command)
        self.interactive = is_interactive
        code = self.codes.pop(0)
        if isinstance(code, RankZeroError):
            raise code
        return code


@pytest.mark.usefixtures("known_model")
def test_train_writes_the_run_directory_then_prepares_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = _Recorded(0, 75)
    monkeypatch.setattr(run_module, "supervise", recorded)
    config = _config(tmp_path)
    assert _invoke("train", config, "--resume", "never", "--set", "seed=3").exit_code == 75
    run = tmp_path / "runs" / "one"
    assert [command[2] for command in recorded.commands] == ["trainer.prepare", "trainer"]
    assert recorded.commands[1][-2:] == ["--resume", "never"]
    assert (run / "given_config.yaml").read_bytes() == config.read_bytes()
    plan = json.loads((run / "plan.json").read_text())
    fixed = [f"{name}={json.dumps(value)}" for name, value in plan["overrides"].items()]
    resolved = with_absolute_paths(load_config(config, ["seed=3", *fixed]))
    assert (run / "resolved.json").read_text() == to_json(resolved)


@pytest.mark.usefixtures("known_model")
def test_a_run_out_of_memory_hears_what_would_need_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "supervise", _Recorded(0, OutOfMemory("rank 1: no memory")))
    ended = _invoke("train", _config(tmp_path), "--profile", "cpu")
    assert ended.exit_code == 4
    plan = json.loads((tmp_path / "runs" / "one" / "plan.json").read_text())
    planned = plan["usage"][0]["gib"]
    assert f"the plan predicted a peak of {planned:.1f}" in ended.stderr
    cheapest = re.search(r"1\. training\.gradient_checkpointing: true: peak (\S+) of", ended.stderr)
    assert cheapest is not None
    assert float(cheapest[1]) < planned
    assert "error: rank 1: no memory" in ended.stderr


@pytest.fixture
def stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known_model: None
) -> tuple[Path, RunDirectory]:
    """A run that was stopped after some steps, and its config with a batch pair."""
    monkeypatch.setattr(run_module, "supervise", _Recorded(0, 75))
    pair = {"batch_size": 2, "gradient_accumulation_steps": 3}
    config = _config(tmp_path, training=pair, data={"train": "rows.jsonl", "max_length": 256})
    assert _invoke("train", config, "--profile", "cpu").exit_code == 75
    run = RunDirectory(tmp_path / "runs" / "one")
    write_json(run.status, {"state": "interrupted", "exit_code": 75})
    write_json(run.path / "contract.json", {"global_batch_size": 6})
    write_json(run.last_save, {"seconds": 100.0, "bytes": 10, "blocked_seconds": 0.1})
    run.metrics.write_text("{}\n")
    return config, run


def test_train_goes_on_with_the_run_that_is_there(
    stopped: tuple[Path, RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = stopped
    before = {path: path.read_bytes() for path in run.path.glob("*.*")}
    recorded = _Recorded(0, ConfigError("another run"), 0, 0, 0, 0)
    monkeypatch.setattr(run_module, "supervise", recorded)
    two = ("--profile", "cpu", "--processes", "2")
    assert _invoke("train", config, *two).exit_code == 2
    assert {path: path.read_bytes() for path in before} == before
    # Accepted this time: the plan is the run's from now on.
    assert _invoke("train", config, *two).exit_code == 0
    changed = {path.name for path in before if path.read_bytes() != before[path]}
    assert changed == {"plan.json"}
    plan = json.loads(run.plan.read_text())
    assert plan["overrides"]["training.global_batch_size"] == 6  # not 2 x 3 x 2 processes
    assert any("kept from the run's first start" in each["reason"] for each in plan["decisions"])
    assert plan["shutdown_timeout_seconds"] >= 3 * 100
    for number, (prepared, trained) in enumerate(
        zip(recorded.commands[::2], recorded.commands[1::2], strict=True), start=2
    ):
        resolved = str(run.path / "attempts" / f"{number:03d}" / "resolved.json")
        assert prepared[-1] == trained[-1] == resolved
    assert load_config(Path(resolved)).training.global_batch_size == 6
    (run.checkpoints / "step-000001").mkdir(parents=True)
    assert _invoke("train", config, *two, "--resume", str(run.path)).exit_code == 0
    assert recorded.commands[-1][-2:] == ["--resume", str(run.path)]


def test_a_run_that_is_there_is_begun_anew_nowhere(stopped: tuple[Path, RunDirectory]) -> None:
    config, _ = stopped
    for more in ((), ("--dry-run",)):
        refused = _invoke("train", config, "--resume", "never", *more)
        assert refused.exit_code == 2
        assert "already holds a run" in refused.stderr
        assert "--resume auto" in refused.stderr
    shown = _invoke("train", config, "--profile", "cpu", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert _invoke("train", config, "--resume", "nothing").exit_code == 2


def test_a_completed_run_is_left_as_it_is(
    stopped: tuple[Path, RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = stopped
    write_completed(run)
    run.adapter.mkdir()
    recorded = _Recorded(0, 0)
    monkeypatch.setattr(run_module, "supervise", recorded)
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    finished = _invoke("train", config, "--profile", "cpu")
    assert finished.exit_code == 0, finished.output
    assert "is complete: nothing to do" in finished.stderr
    assert str(run.adapter) in finished.stderr
    assert recorded.commands == []
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    # Another config, or an explicit checkpoint, is another matter; so says the trainer.
    assert _invoke("train", config, "--profile", "cpu", "--set", "seed=4").exit_code == 0
    assert len(recorded.commands) == 2


@pytest.mark.usefixtures("known_model")
def test_a_failed_preparation_gives_the_directory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = _Recorded(2, 0, 0)
    monkeypatch.setattr(run_module, "supervise", recorded)
    config = _config(tmp_path)
    assert _invoke("train", config).exit_code == 2
    assert not (tmp_path / "runs").exists()
    assert _invoke("train", config).exit_code == 0
    assert len(recorded.commands) == 3


@pytest.mark.usefixtures("known_model")
def test_what_others_left_survives_a_failed_preparation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "supervise", _Recorded(2))
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "notes.txt").write_text("mine")
    assert _invoke("train", _config(tmp_path)).exit_code == 2
    assert [path.name for path in run.iterdir()] == ["notes.txt"]


@pytest.mark.usefixtures("known_model")
def test_a_place_that_cannot_be_written_ends_with_3(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = _invoke("train", _config(tmp_path, output_dir=str(tmp_path / "file" / "run")))
    assert ended.exit_code == 3
    assert "cannot be written" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["merge", "run"], ["trainer.merge", "--", "run"]),
        (
            ["merge", "run", "--base", "b", "--output", "o"],
            ["trainer.merge", "--base=b", "--output=o", "--", "run"],
        ),
        (
            ["generate", "a", "b", "--prompt", "-x", "--max-new-tokens", "5", "--json"],
            [
                "trainer.generation",
                "--prompt=-x",
                "--max-new-tokens=5",
                "--json",
                "--",
                "a",
                "b",
            ],
        ),
        (["generate", "a"], ["trainer.generation", "--", "a"]),
        (
            ["evaluate", "run", "--split", "train"],
            ["trainer.evaluation", "--split=train", "--", "run"],
        ),
        (["evaluate", "run"], ["trainer.evaluation", "--split=test", "--", "run"]),
    ],
)
def test_verbs_start_their_module(
    arguments: list[str], command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = _Recorded(5)
    monkeypatch.setattr(trainer_module, "supervise", recorded)
    assert _invoke(*arguments).exit_code == 5
    assert recorded.commands == [[sys.executable, "-m", *command]]
    assert recorded.interactive == (arguments == ["generate", "a"])


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_exit_code_passes_through() -> None:
    assert supervise(_python("raise SystemExit(75)")) == 75
    assert supervise(_python("")) == 0


def test_a_killed_child_is_a_failed_training() -> None:
    with pytest.raises(TrainingFailed, match="SIGKILL") as caught:
        supervise(_python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    assert caught.value.exit_code == 4


# Runs the supervisor in a process of its own, whose child says when it is ready for signals.
_SUPERVISED = """
import sys
from launcher.supervise import supervise
sys.exit(supervise([sys.executable, "-c", sys.argv[1]]))
"""
# Naps, not `signal.pause`: a signal just before that call would be waited for for ever.
_SAVES_ON_SIGTERM = """
import signal, sys, time
def stop(*_):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while True:
    time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_child_and_its_answer_comes_back(number: signal.Signals) -> None:
    command = [sys.executable, "-c", _SUPERVISED, _SAVES_ON_SIGTERM]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == "saved\n"
    assert process.returncode == 75


# The command itself, whose planning waits for a signal.
_PLANNING = """
import time
from launcher import cli
from launcher.commands import plan
def wait(*_):
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
plan.plan_run = wait
cli.main()
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75)]
)
def test_a_signal_while_planning_is_an_interruption(number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-c", _PLANNING, "plan", "run.yaml"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == code
    assert "Traceback" not in said


def test_a_child_that_ctrl_c_ends_gives_the_code_of_ctrl_c() -> None:
    code = f"import os, signal; os.kill({os.getpid()}, signal.SIGINT); signal.pause()"
    with pytest.raises(Interrupted) as caught:
        supervise(_python(f"import signal; signal.signal(2, signal.SIG_DFL); {code}"))
    assert caught.value.exit_code == 130


def test_a_command_that_starts_deaf_answers_ctrl_c_without_a_traceback(
    capfd: pytest.CaptureFixture[str],
) -> None:
    early = f"import os, time; os.kill({os.getpid()}, 2); time.sleep(1); print('alive', flush=True)"
    late = "from trainer.entry import run_entry; import sys; sys.exit(run_entry(print, []))"
    assert supervise(_python(f"{early}\n{late}"), starts_deaf=True) == 130
    said = capfd.readouterr()
    assert said.out == "alive\n"
    assert said.err == "interrupted\n"


def test_ctrl_c_while_libraries_are_imported_ends_at_once() -> None:
    importing = (
        "import os, signal, sys, time\n"
        "from trainer.entry import ending_at_once, run_entry\n"
        "def main(_):\n"
        "    with ending_at_once():\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(30)\n"
        "sys.exit(run_entry(main, []))"
    )
    ended = subprocess.run(_python(importing), capture_output=True, check=False, timeout=60)
    assert ended.returncode == -signal.SIGINT
    assert ended.stderr == b""


def test_a_child_that_dies_of_the_signal_passed_on_may_be_started_again(tmp_path: Path) -> None:
    pid = os.getpid()
    code = f"import os, signal; os.kill({pid}, signal.SIGTERM); signal.pause()"
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        supervise(_python(code))
    assert caught.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) is before
