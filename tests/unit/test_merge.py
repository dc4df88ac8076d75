"""A merged model is base + adapter, needs no PEFT, and never appears half written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import CHATML, make_model_folder, make_tokenizer
from tests.unit.test_model_training import BATCH, CPU, logits, make_config, train
from trainer.entry import run_entry
from trainer.errors import ConfigError, EnvironmentProblem, Interrupted, TrainingFailed
from trainer.generation import main as generation_main
from trainer.merge import shards, streamed
from trainer.merge.command import main
from trainer.merge.job import MergeOptions
from trainer.merge.merging import merge_adapter
from trainer.merge.proofs import check_changes
from trainer.model import build_model

ONE_TOKEN = {True: [], False: ["--prompt", "Hi", "--max-new-tokens", "1"]}
"""Options beside the target, by whether the command is merge; the other one is generation."""
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "all linear": ("llama", {}),
    "fused": ("phi3", {"target_modules": ["q_proj", "k_proj"], "use_rslora": True}),
    "dora": ("llama", {"use_dora": True}),
    "head and bias": ("qwen2", {"modules_to_save": ["lm_head"], "bias": "all"}),
}


def make_adapter(root: Path, architecture: str = "llama", steps: int = 3, **lora: Any) -> Path:
    """Train a few steps; returns a run directory with `adapter/` beside the base model."""
    base = make_model_folder(root / "base", architecture)
    run = root / "run"
    built = build_model(make_config(base, lora=lora), device=CPU, precision="fp32")
    train(built, steps)
    built.model.save_pretrained(run / "adapter")
    make_tokenizer().save_pretrained(run / "adapter")
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("plain"))


@pytest.fixture
def tampered(run: Path, tmp_path: Path) -> Path:
    """A copy of the adapter to spoil."""
    for file in (run / "adapter").iterdir():
        (tmp_path / "adapter").mkdir(exist_ok=True)
        (tmp_path / "adapter" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "adapter"


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_base_plus_adapter(kind: str, tmp_path: Path) -> None:
    architecture, lora = KINDS[kind]
    run = make_adapter(tmp_path, architecture, **lora)
    report = merge_adapter(run / "adapter", tmp_path / "out")
    base_logits = logits(load(tmp_path / "base"))
    expected = logits(PeftModel.from_pretrained(load(tmp_path / "base"), run / "adapter"))
    merged = logits(load(tmp_path / "out"))
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-5)
    assert float((merged - base_logits).abs().max()) > 1e-2
    written = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert written["targets"] == list(report.targets)
    assert written["base"] == "base"
    assert written["max_logit_difference"] < 1e-4
    assert written["dtype"] == "float32"


def test_sixteen_bit_base_stays_sixteen_bit(tmp_path: Path) -> None:
    run = make_adapter(tmp_path, modules_to_save=["lm_head"])
    load(tmp_path / "base").to(torch.bfloat16).save_pretrained(tmp_path / "base")
    report = merge_adapter(run / "adapter", tmp_path / "out")
    assert report.dtype == "bfloat16"
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_command_line_then_load_without_peft(run: Path) -> None:
    assert run_entry(main, [str(run)]) == 0
    merged = run / "merged"
    tokenizer = AutoTokenizer.from_pretrained(merged)
    assert tokenizer.chat_template == CHATML
    code = (
        "import sys; sys.modules['peft'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        "import torch\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()\n"
        f"ids = torch.tensor({BATCH.tolist()})\n"
        "with torch.no_grad(): print(model(input_ids=ids).logits.double().sum().item())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(merged)], capture_output=True, text=True, check=True
    )
    expected = PeftModel.from_pretrained(load(run.parent / "base"), run / "adapter")
    assert float(ended.stdout) == pytest.approx(float(logits(expected).double().sum()), abs=1e-2)


def test_an_existing_output_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept").write_text("mine")
    assert run_entry(main, [str(run), "--output", str(tmp_path)]) == 2
    assert "exists" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]


def test_full_fine_tuning_has_nothing_to_merge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model_folder(tmp_path / "model")
    assert run_entry(main, [str(tmp_path)]) == 2
    assert "nothing to merge" in capsys.readouterr().err


def _extra(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name.replace("layers.0", "layers.9")] = tensors[name].clone()


def _renamed(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name.replace("layers.0", "layer.0")] = tensors.pop(name)


def _missing(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop(next(name for name in tensors if "lora_B" in name))


def _zero(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor.zero_()


def _not_finite(tensors: dict[str, torch.Tensor]) -> None:
    next(tensor for name, tensor in tensors.items() if "lora_B" in name).fill_(float("nan"))


def _overflowing(tensors: dict[str, torch.Tensor]) -> None:
    for tensor in tensors.values():
        tensor.fill_(1e30)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_extra, "not used by this base model"),
        (_renamed, "not used by this base model"),
        (_missing, "missing from the file"),
        (_not_finite, "not finite"),
        (_overflowing, "cannot be merged"),
    ],
)
def test_a_spoiled_adapter_fails(spoil: Any, says: str, tampered: Path, tmp_path: Path) -> None:
    path = tampered / "adapter_model.safetensors"
    tensors = load_file(path)
    spoil(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(TrainingFailed, match=says):
        merge_adapter(tampered, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]


def test_an_untrained_adapter_merges_to_its_base(
    tampered: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tampered / "adapter_model.safetensors"
    tensors = load_file(path)
    _zero(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    report = merge_adapter(tampered, tmp_path / "out")
    assert "warning: the adapter changes nothing" in capsys.readouterr().err
    assert report.notes
    assert report.max_logit_difference == 0
    merged = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert merged == (run.parent / "base" / "model.safetensors").read_bytes()


def test_changes_outside_the_targets_fail() -> None:
    check_changes({"a"}, {"a"}, {"a"})
    with pytest.raises(TrainingFailed, match="outside its targets: b"):
        check_changes({"a", "b"}, {"a"}, {"a"})
    with pytest.raises(TrainingFailed, match="left targeted weights as they were: b"):
        check_changes({"a"}, {"a", "b"}, {"a", "b"})


def test_logits_that_differ_fail(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = streamed.sample_logits

    def drifting(model: Any, ids: torch.Tensor) -> torch.Tensor:
        return plain(model, ids) + 0.5

    monkeypatch.setattr(streamed, "sample_logits", drifting)
    with pytest.raises(TrainingFailed, match="merged logits differ"):
        merge_adapter(run / "adapter", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, Interrupted, OSError])
def test_an_interrupted_merge_leaves_nothing_under_its_name(
    interruption: type[BaseException],
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: Any) -> None:
        raise interruption("stopped")

    with monkeypatch.context() as patch, pytest.raises((interruption, EnvironmentProblem)):
        patch.setattr(shards, "_copy", stop)
        merge_adapter(run / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ([] if interruption is OSError else [".out.partial"])
    report = merge_adapter(run / "adapter", tmp_path / "out")
    assert report.max_logit_difference < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_disk_is_checked_first(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(EnvironmentProblem, match="GiB are free"):
        merge_adapter(run / "adapter", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_another_base_and_a_missing_one(run: Path, tmp_path: Path) -> None:
    other = make_model_folder(tmp_path / "other", seed=5)
    report = merge_adapter(run / "adapter", tmp_path / "out", MergeOptions(base=str(other)))
    assert report.base == "other"
    with pytest.raises(ConfigError, match="--base: there is no folder"):
        merge_adapter(run / "adapter", tmp_path / "out2", MergeOptions(base=str(tmp_path / "othr")))


@pytest.mark.parametrize("command", [main, generation_main])
def test_a_recorded_base_that_is_gone(
    command: Any, tampered: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tampered / "adapter_config.json"
    recorded = json.loads(path.read_text()) | {"base_model_name_or_path": "/moved/base"}
    path.write_text(json.dumps(recorded))
    assert run_entry(command, [str(tampered), *ONE_TOKEN[command is main]]) == 2
    said = capsys.readouterr().err
    assert "the base folder /moved/base recorded in the adapter is not there" in said
    assert "give --base" in said
    assert "hf download" not in said


REMOTE_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("command", [main, generation_main])
def test_own_code_runs_when_the_run_or_the_flag_says_so(
    command: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nothing asks on the terminal"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    run = make_adapter(tmp_path)
    (tmp_path / "base" / "own.py").write_text(REMOTE_CODE)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForCausalLM": "own.OwnForCausalLM",
    }
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    options = ONE_TOKEN[command is main]
    assert run_entry(command, [str(run), *options]) == 2
    assert "--trust-remote-code" in capsys.readouterr().err
    bare = shutil.copytree(run / "adapter", tmp_path / "bare" / "adapter")
    assert run_entry(command, [str(bare), "--trust-remote-code", *options]) == 0
    resolved = {"model": {"trust_remote_code": True}}
    (run / "resolved.json").write_text(json.dumps(resolved))
    assert run_entry(command, [str(run / "adapter"), *options]) == 0
    assert run_entry(generation_main, [str(run), *ONE_TOKEN[False]]) == 0


def test_advice_names_checkpoints_as_they_are_called(tampered: Path, tmp_path: Path) -> None:
    weights = load_file(tampered / "adapter_model.safetensors")
    _not_finite(weights)
    save_file(weights, tampered / "adapter_model.safetensors")
    with pytest.raises(TrainingFailed, match="RUN/checkpoints/step-N"):
        merge_adapter(tampered, tmp_path / "out")
