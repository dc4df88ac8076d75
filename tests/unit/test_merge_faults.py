"""Whatever goes wrong in a merge: a clear error or a right model, and never half of one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.test_merge_streamed import (
    check_same,
    load,
    make_adapter,
    make_base,
    merged_by_peft,
)
from trainer.entry import run_entry
from trainer.errors import ConfigError, EnvironmentProblem, TrainingFailed
from trainer.merge import candidate, shards, streamed
from trainer.merge.command import main
from trainer.merge.job import MergeOptions
from trainer.merge.merging import merge_adapter
from trainer.merge.partial import open_partial

# Merges in children of its own, which kill themselves the moment they are to write a given number
# of bytes, or are killed at a random moment.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from trainer.merge import shards
from trainer.merge.merging import merge_adapter
torch.set_num_threads(1)
adapter, folder, places, seed = sys.argv[1:]
plain, shards.sys.platform = shards._write, "none"  # so that all bytes pass by here
def child(output, left=float("inf")):
    pid = os.fork()
    if pid:
        return pid
    def write(writer, data):
        nonlocal left
        if len(data) >= left:
            plain(writer, data[:int(left)])
            os.kill(os.getpid(), signal.SIGKILL)
        left -= len(data)
        plain(writer, data)
    shards._write = write
    merge_adapter(Path(adapter), Path(folder, output))
    os._exit(0)
def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
for number, place in enumerate(places.split()):
    print(ended(child(f"out{number}", int(place))))
started = time.monotonic()
assert ended(child("whole")) == 0
seconds, chance = time.monotonic() - started, random.Random(int(seed))
for _ in range(12):
    pid = child("random")
    time.sleep(chance.uniform(0, seconds))
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    if Path(folder, "random").exists():
        break
print(ended(child("random")))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("base")
    whole = make_base(root / "whole", "llama")
    load(whole).save_pretrained(root / "base", max_shard_size="60KB")
    for file in whole.glob("token*"):
        shutil.copyfile(file, root / "base" / file.name)
    return root / "base"


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"), base)


def test_an_adapter_of_another_base_names_the_tensor_and_both_shapes(
    adapter: Path, tmp_path: Path
) -> None:
    other = make_base(tmp_path / "other", "llama", hidden_size=64)
    with pytest.raises(ConfigError, match=r"lora_[AB].weight is \[.*32.*\].*\[.*64.*\]") as failed:
        merge_adapter(adapter, tmp_path / "out", MergeOptions(base=str(other)))
    assert "--base" in failed.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_an_adapter_for_layers_the_base_lacks(adapter: Path, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", "gpt2")
    with pytest.raises((ConfigError, TrainingFailed)):
        merge_adapter(adapter, tmp_path / "out", MergeOptions(base=str(other)))
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize("spoil", ["truncated", "missing", "header", "shape", "tensor"])
def test_a_damaged_base_is_named(spoil: str, base: Path, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    shard = sorted((tmp_path / "base").glob("*.safetensors"))[1]
    content, name = shard.read_bytes(), ""
    if spoil == "truncated":
        shard.write_bytes(content[:-1])
    elif spoil == "missing":
        shard.unlink()
    elif spoil == "header":
        shard.write_bytes(content[:8] + b"x" + content[9:])
    else:
        tensors = load_file(shard)
        name = next(name for name in tensors if tensors[name].dim() == 2)
        tensor = tensors.pop(name)
        if spoil == "shape":
            tensors[name] = tensor[:-1].contiguous()
        save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(ConfigError) as failed:
        merge_adapter(adapter, tmp_path / "out", MergeOptions(base=str(tmp_path / "base")))
    assert (name if spoil == "tensor" else shard.name) in failed.value.what
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_full_disk_leaves_nothing(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(shards, "_write", full)
    with pytest.raises(EnvironmentProblem, match="No space left") as failed:
        merge_adapter(adapter, tmp_path / "out")
    assert "free space" in failed.value.fix
    assert list(tmp_path.iterdir()) == []


def test_a_kill_at_any_moment_then_again(base: Path, adapter: Path, tmp_path: Path) -> None:
    expected = merged_by_peft(base, adapter)
    sizes = [file.stat().st_size for file in sorted(base.glob("*.safetensors"))]
    places = (1, sizes[0] - 1, sizes[0] + 5000, sum(sizes) - 1)
    seed = str(time.time_ns() % 1000)
    command = [sys.executable, "-c", KILLED, str(adapter), str(tmp_path)]
    command += [" ".join(map(str, places)), seed]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"seed {seed}: {ended.stderr}"
    assert ended.stdout.split() == [str(-signal.SIGKILL)] * len(places) + ["0"], seed
    check_same(tmp_path / "random", expected)
    for number, place in enumerate(places):
        output, partial = tmp_path / f"out{number}", tmp_path / f".out{number}.partial"
        assert not output.exists()
        assert partial.is_dir()
        if place > sizes[0]:  # what was finished is not made again
            progress = json.loads((partial / "progress.json").read_text())
            first = partial / next(iter(progress["shards"]))
            made = first.stat().st_ino, first.stat().st_mtime_ns
            merge_adapter(adapter, output)
            again = output / first.name
            assert (again.stat().st_ino, again.stat().st_mtime_ns) == made
        else:
            merge_adapter(adapter, output)
        assert not partial.exists()
        assert not (output / "progress.json").exists()
        check_same(output, expected)


def test_leftovers_of_another_merge_are_not_used(base: Path, adapter: Path, tmp_path: Path) -> None:
    left = tmp_path / ".out.partial"
    left.mkdir()
    for file in base.glob("*.safetensors"):  # whole files, of the right size, of another merge
        shutil.copyfile(file, left / file.name)
    sizes = {file.name: file.stat().st_size for file in left.iterdir()}
    other = {"base": "another", "adapters": "another", "precision": "original"}
    (left / "progress.json").write_text(json.dumps({"identity": other, "shards": sizes}))
    merge_adapter(adapter, tmp_path / "out")
    check_same(tmp_path / "out", merged_by_peft(base, adapter))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_merges_into_one_output(adapter: Path, tmp_path: Path) -> None:
    with (
        open_partial(tmp_path / "out", {}),
        pytest.raises(ConfigError, match="another process is merging"),
    ):
        merge_adapter(adapter, tmp_path / "out")
    merge_adapter(adapter, tmp_path / "out")


def test_the_same_merge_again_is_done_already(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    first = merge_adapter(adapter, output)
    before = {file.name: file.stat().st_mtime_ns for file in output.iterdir()}
    assert run_entry(main, [str(adapter), "--output", str(output)]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert {file.name: file.stat().st_mtime_ns for file in output.iterdir()} == before
    other = make_adapter(tmp_path / "other", base, r=2)
    with pytest.raises(ConfigError, match="exists"):
        merge_adapter(other, output)
    shard = output / next(name for name in first.files if name.endswith(".safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="exists"):
        merge_adapter(adapter, output)


def test_a_byte_changed_outside_the_targets_is_found(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = streamed.write_shard

    def spoiling(source: Any, target: Path, *rest: Any) -> None:
        plain(source, target, *rest)
        norm = [t for t in source.tensors if t.name == "model.norm.weight"]
        for tensor in norm:
            with target.open("r+b") as file:
                file.seek(tensor.offset)
                file.write(b"\x01")

    monkeypatch.setattr(streamed, "write_shard", spoiling)
    with pytest.raises(TrainingFailed, match=r"outside its targets: model\.norm\.weight"):
        merge_adapter(adapter, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_edit_that_is_not_written_is_found(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = streamed.write_shard

    def forgetting(source: Any, target: Path, edits: dict[str, Any], *rest: Any) -> None:
        plain(source, target, dict(list(edits.items())[1:]), *rest)

    monkeypatch.setattr(streamed, "write_shard", forgetting)
    with pytest.raises(TrainingFailed, match="left targeted weights as they were"):
        merge_adapter(adapter, tmp_path / "out")


def test_wrong_arithmetic_shows_in_the_logits(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = streamed.write_shard

    def doubling(source: Any, target: Path, edits: dict[str, Any], *rest: Any) -> None:
        for edit in edits.values():
            object.__setattr__(edit, "scaling", 2 * edit.scaling)
        plain(source, target, edits, *rest)

    monkeypatch.setattr(streamed, "write_shard", doubling)
    with pytest.raises(TrainingFailed, match="merged logits differ"):
        merge_adapter(adapter, tmp_path / "out")


def test_a_model_that_needs_its_weights_at_once_is_merged_in_memory(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: Any) -> torch.Tensor:
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")

    monkeypatch.setattr(candidate, "sample_logits", refusing)
    report = merge_adapter(adapter, tmp_path / "out")
    assert "in memory" in report.how
    check_same(tmp_path / "out", merged_by_peft(base, adapter))
