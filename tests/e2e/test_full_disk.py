"""What can happen to the disk below a run: the reason is told, and the last checkpoint stays."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import read_json, write_config
from tests.e2e.running import leftovers, newest_step, start, train
from tests.resuming import cut_at, require_same_run
from tests.tiny import make_model_folder
from tests.warm_ranks import train_warm

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="mounts as Linux does"),
]

NUM_STEPS = 40
KEPT = 8
# Changes the folder $2 as $1 says for the command that follows, then copies it to $2.after.
IN_OWN_MOUNTS = """
change=$1 folder=$2; shift 2
take_all_space() {
  until [ -e "$folder/checkpoints/step-000004" ]; do sleep 0.01; done
  while :; do cat /dev/zero >> "$folder/of_somebody_else"; sleep 0.001; done 2> /dev/null
}
case $change in
  filling)
    mkdir "$folder" && mount -t tmpfs -o size=32m none "$folder" || exit 99
    take_all_space & taker=$! ;;
  read-only)
    mount --bind "$folder" "$folder" && mount -o remount,bind,ro "$folder" || exit 99 ;;
esac
"$@"
code=$?
[ -z "$taker" ] || kill "$taker"
rm -f "$folder/of_somebody_else"
cp -a "$folder" "$folder.after"
exit $code
"""


def in_own_mounts(change: str, folder: Path, *command: str | Path) -> tuple[int, str]:
    """Run `rankzero COMMAND` with `folder` changed for it alone; it is FOLDER.after afterwards."""
    private = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--user", "--map-root-user"])
    if subprocess.run([*private, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount anything")
    shell = [*private, "sh", "-c", IN_OWN_MOUNTS, "sh", change, folder]
    done = subprocess.run(
        [*shell, sys.executable, "-m", "launcher", *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return done.returncode, done.stderr


def go_on(run: Path) -> str:
    """Train to the end as the run's last attempt was to; return what was said."""
    config = {**read_json(run / "resolved.json"), "output_dir": str(run)}
    moved = run.with_name(f"{run.name}.json")
    moved.write_text(json.dumps(config), encoding="utf-8")
    ended = train_warm(moved)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to; its config lies beside it."""
    folder = tmp_path_factory.mktemp("straight")
    config = write_config(
        folder / "run.json",
        make_model_folder(folder / "tiny-llama"),
        folder / "straight",
        training={"max_steps": NUM_STEPS, "precision": "fp32"},
        lora={"r": 64, "alpha": 64, "dropout": 0.1},
        evaluation={"every_steps": 20},
        checkpoint={"every_steps": 1, "keep_last": KEPT},
    )
    train(config, folder / "straight", "python")
    return folder / "straight"


@pytest.fixture(scope="module")
def config(straight: Path) -> Path:
    return straight.with_name("run.json")


def test_a_full_disk_costs_only_the_checkpoint_it_had_no_room_for(
    straight: Path, config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, said = in_own_mounts("filling", run, "train", config, "--set", f"output_dir={run}")
    assert code == 3, said
    assert re.search(r"error: .*no space left", said, re.IGNORECASE), said
    assert "Traceback" not in said
    left = tmp_path / "run.after"
    assert leftovers(left) == []
    step = newest_step(left)
    assert 4 <= step < NUM_STEPS
    status = read_json(left / "status.json")
    assert (status["state"], status["exit_code"]) == ("failed", 3)
    assert f"(step {step}, " in go_on(left)  # on a disk with room
    require_same_run(straight, left)


def test_a_read_only_run_is_told_and_left_as_it_is(
    straight: Path, config: Path, tmp_path: Path
) -> None:
    run = cut_at(straight, NUM_STEPS - 4, tmp_path / "run")
    before = everything_in(run)
    for part in (run, run / "checkpoints"):
        command = ("train", config, "--set", f"output_dir={run}")
        code, said = in_own_mounts("read-only", part, *command)
        assert code == 3, said
        assert "Read-only file system" in said
        assert "Traceback" not in said
        after = everything_in(part.with_name(f"{part.name}.after"))
        assert after == {name: before[name] for name in after}
        assert newest_step(run) == NUM_STEPS - 4
    go_on(run)
    require_same_run(straight, run)


def everything_in(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_run_directory_taken_away_is_told_and_can_be_brought_back(
    straight: Path, config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    live = start(config, run, "python")
    live.until(lambda: live.last_step >= 4, "step 4")
    run.rename(tmp_path / "elsewhere")
    assert live.end() == 3, live.tail
    assert f"error: the run directory {run} is gone" in live.said
    assert "Traceback" not in live.said
    assert not run.exists()
    (tmp_path / "elsewhere").rename(run)
    assert newest_step(run) >= 3
    assert leftovers(run) == []
    go_on(run)
    require_same_run(straight, run)


def test_damaged_checkpoints_are_passed_over_whatever_the_clock_says(
    straight: Path, config: Path, tmp_path: Path
) -> None:
    run = cut_at(straight, NUM_STEPS - 4, tmp_path / "run")
    steps = [f"step-{NUM_STEPS - 4 - back:06d}" for back in range(4)]
    newest, second, third, whole = (run / "checkpoints" / name for name in steps)
    adapter, optimizer = newest / "adapter_model.safetensors", second / "optimizer.safetensors"
    os.truncate(adapter, adapter.stat().st_size - 1)
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 1
    optimizer.write_bytes(content)
    (third / "manifest.json").unlink()
    scramble_times(run)
    told = [line for line in go_on(run).splitlines() if line.startswith(("skipped", "going on"))]
    expected = (
        f"skipped {newest.name}: adapter_model.safetensors has ",
        f"skipped {second.name}: optimizer.safetensors does not have ",
        f"skipped {third.name}: it has no manifest.json",
        f"going on from {whole} (step {NUM_STEPS - 7}, ",
    )
    assert len(told) == len(expected), told
    for line, beginning in zip(told, expected, strict=True):
        assert line.startswith(beginning), told
    require_same_run(straight, run)


def scramble_times(run: Path) -> None:
    """Let all times be as after a clock was set back: the newest file from before the others."""
    for age, path in enumerate(sorted(run.rglob("*"), reverse=True)):
        os.utime(path, (4e9 - age, 4e9 - age), follow_symlinks=False)
    for name in ("metrics.jsonl", "status.json"):
        text = (run / name).read_text(encoding="utf-8")
        later = re.sub(r'"(time|started)": (\d)', lambda found: f'"{found[1]}": 9', text)
        (run / name).write_text(later, encoding="utf-8")
