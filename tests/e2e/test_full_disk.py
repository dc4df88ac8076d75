"""What can happen to the disk below a run: the reason is told, and the last checkpoint stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import rankzero, read_json, write_config
from tests.e2e.running import leftovers, newest_step, start, train
from tests.resuming import cut_at, require_same_run
from tests.tiny import make_model_folder
from trainer.checkpoints.folder import list_checkpoints

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="mounts as Linux does"),
]

NUM_STEPS = 8
# Changes the folder $2 as $1 says for the command that follows, then copies it to $2.after.
IN_OWN_MOUNTS = """
change=$1 folder=$2; shift 2
fill() {
  until [ -e "$folder/checkpoints/step-000003" ]; do sleep 0.01; done
  free=$(df --output=avail -k "$folder" | tail -n 1)
  fallocate -l $((free - $1))KiB "$folder/somebody_elses"
}
case $change in
  filled-up-to-*)
    mkdir "$folder"; mount -t tmpfs -o size=256m none "$folder" || exit 99
    fill "${change#filled-up-to-}" & ;;
  read-only)
    mount --bind "$folder" "$folder" && mount -o remount,bind,ro "$folder" || exit 99 ;;
esac
"$@"
code=$?
rm -f "$folder/somebody_elses"
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


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def straight(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to, and beside it the config it was made with."""
    folder = tmp_path_factory.mktemp("straight")
    config = write_config(
        folder / "run.json",
        base,
        folder / "straight",
        training={"max_steps": NUM_STEPS, "precision": "fp32"},
        lora={"r": 64, "alpha": 64, "dropout": 0.1},
        evaluation={"every_steps": 4},
        checkpoint={"every_steps": 1, "keep_last": 100},
    )
    train(config, folder / "straight", "python")
    return folder / "straight"
