"""Adapters of a quantised base, several adapters, added tokens: merged as they were meant."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from tests.tiny import make_tokenizer
from tests.unit.test_merge_streamed import check_same, load, make_adapter, make_base, merged_by_peft
from trainer.entry import run_entry
from trainer.errors import ConfigError, EnvironmentProblem
from trainer.merge.command import main
from trainer.merge.job import MergeOptions
from trainer.merge.merging import merge_adapter
from trainer.merge.proofs import sample_ids, sample_logits
from trainer.merge.quantized import Quantization

KINDS: dict[str, BitsAndBytesConfig] = {
    "nf4": BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    ),
    "fp4": BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True
    ),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"), base)


def quantized(base: Path, kind: str) -> Any:
    model = load(base, quantization_config=KINDS[kind], dtype=torch.float32)
    for module in model.modules():
        module.support_avx512bf16_for_cpu = False
    return model.eval()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_dequantized_is_the_base_that_transformers_reads_and_peft_merges(
    kind: Any, architecture: str, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base", architecture)
    adapter = make_adapter(tmp_path / "adapter", base)
    options = MergeOptions(precision="dequantized", quantization=Quantization(kind))
    report = merge_adapter(adapter, tmp_path / "out", options)
    read = quantized(base, kind).dequantize().float()
    expected = PeftModel.from_pretrained(read, adapter).merge_and_unload().state_dict()
    if architecture == "gpt2":  # transformers makes linear layers of its transposed ones
        expected = {n: t.T if re.search(r"c_\w+\.weight", n) else t for n, t in expected.items()}
    check_same(tmp_path / "out", expected)
    assert report.base_precision == "dequantized"
    assert report.quantization == kind


@pytest.mark.parametrize("kind", KINDS)
def test_the_distances_are_those_of_the_model_that_was_trained(
    kind: Any, base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(adapter, run / "adapter")
    settings = {"model": {"quantization": kind, "double_quantization": True}}
    (run / "resolved.json").write_text(json.dumps(settings))
    assert run_entry(main, [str(run), "--base-precision", "auto"]) == 0
    assert f"the {kind} base it was trained on" in capsys.readouterr().err
    assert run_entry(main, [str(run), "--output", str(tmp_path / "original")]) == 0
    ids = sample_ids(AutoTokenizer.from_pretrained(base))
    trained = sample_logits(PeftModel.from_pretrained(quantized(base, kind), adapter), ids)
    far = {}
    for name, folder in (("dequantized", run / "merged"), ("original", tmp_path / "original")):
        report = json.loads((folder / "merge.json").read_text())
        assert report["base_precision"] == name
        far[name] = float((sample_logits(load(folder), ids) - trained).pow(2).mean().sqrt())
        assert report["distances"][name] == pytest.approx(far[name], rel=1e-2, abs=1e-6)
    assert far["dequantized"] < far["original"]


def test_how_the_base_was_stored_must_be_known(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not known") as failed:
        merge_adapter(adapter, tmp_path / "out", MergeOptions(precision="dequantized"))
    assert "--quantization" in failed.value.fix
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_in_sequence_are_merges_one_after_another(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base", "llama")
    load(base).to(dtype).save_pretrained(base)
    first = make_adapter(tmp_path / "first", base, target_modules=["q_proj", "down_proj"])
    merge_adapter(first, tmp_path / "between")
    second = make_adapter(
        tmp_path / "second",
        tmp_path / "between",
        target_modules=["q_proj", "up_proj"],
        use_dora=True,
        modules_to_save=["lm_head"],
    )
    merge_adapter(second, tmp_path / "expected")
    folders = [str(first), str(second)]
    assert run_entry(main, [*folders]) == 2  # whose merged/ would it be
    assert run_entry(main, [*folders, "--output", str(tmp_path / "out")]) == 0
    check_same(tmp_path / "out", load(tmp_path / "expected", dtype="auto").state_dict())
    report = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert [name.split("/")[1] for name in report["adapters"]] == ["first", "second"]
    targets = {name.split(".")[-2] for name in report["targets"]}
    assert targets == {"q_proj", "down_proj", "up_proj", "lm_head"}


def test_added_tokens_come_along(base: Path, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<extra{number}>" for number in range(600 - len(tokenizer))])
    wider = load(base)
    wider.resize_token_embeddings(len(tokenizer))
    wider.save_pretrained(tmp_path / "wider")
    adapter = make_adapter(
        tmp_path / "adapter",
        tmp_path / "wider",
        target_modules=["q_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
    )
    options = MergeOptions(base=str(base))
    with pytest.raises(ConfigError, match="600 rows"):  # nothing says that these are new tokens
        merge_adapter(adapter, tmp_path / "out", options)
    tokenizer.save_pretrained(adapter)
    report = merge_adapter(adapter, tmp_path / "out", options)
    assert "training added 88 tokens" in report.how
    assert load(tmp_path / "out").config.vocab_size == 600
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == 600
    check_same(tmp_path / "out", merged_by_peft(tmp_path / "wider", adapter))


def test_single_trained_tokens_are_merged(base: Path, tmp_path: Path) -> None:
    options = {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]}
    adapter = make_adapter(tmp_path / "adapter", base, **options)
    report = merge_adapter(adapter, tmp_path / "out")
    assert "model.embed_tokens.weight" in report.targets
    check_same(tmp_path / "out", merged_by_peft(base, adapter))


def test_an_earlier_merge_is_replaced_when_asked_for(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    merge_adapter(adapter, output)
    other = make_adapter(tmp_path / "other", base, r=2)
    with pytest.raises(ConfigError, match="exists"):
        merge_adapter(other, output)
    merge_adapter(other, output, MergeOptions(replace=True))
    check_same(output, merged_by_peft(base, other))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]
    foreign = tmp_path / "foreign"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(foreign)
    with pytest.raises(ConfigError, match="exists"):
        merge_adapter(other, foreign, MergeOptions(replace=True))
    (output / "mine.gguf").write_text("mine")
    with pytest.raises(ConfigError, match=r"more than a merge: mine\.gguf"):
        merge_adapter(adapter, output, MergeOptions(replace=True))
    assert (output / "mine.gguf").read_text() == "mine"
    check_same(output, merged_by_peft(base, other))


def test_a_replacement_that_fails_or_is_killed_leaves_the_earlier_merge(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, output = tmp_path / "disk" / "m", tmp_path / "link"
    disk.parent.mkdir()
    output.symlink_to(disk)
    merge_adapter(adapter, output)
    other = make_adapter(tmp_path / "other", base, r=2)
    plain = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name == ".m.partial":
            raise OSError(5, "Input/output error")
        return plain(path, target)

    with monkeypatch.context() as patch, pytest.raises(EnvironmentProblem, match="Input/output"):
        patch.setattr(Path, "rename", failing)
        merge_adapter(other, output, MergeOptions(replace=True))
    check_same(output, merged_by_peft(base, adapter))
    disk.rename(tmp_path / "disk" / ".m.replaced")  # as a kill between the two would leave it
    merge_adapter(other, output, MergeOptions(replace=True))
    check_same(output, merged_by_peft(base, other))
    assert output.is_symlink()
    assert [path.name for path in disk.parent.iterdir()] == ["m"]


def test_what_is_merged_is_never_written_over(base: Path, adapter: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    merge_adapter(adapter, first)
    second = make_adapter(tmp_path / "second", first)
    for options in (MergeOptions(base=str(first), replace=True), MergeOptions(replace=True)):
        with pytest.raises(ConfigError, match="holds what is to be merged"):
            merge_adapter(second, first, options)
    with pytest.raises(ConfigError, match="given twice"):
        merge_adapter([adapter, adapter], tmp_path / "out")
    check_same(first, merged_by_peft(base, adapter))


def test_another_request_is_another_merge(base: Path, adapter: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    merge_adapter(
        adapter, output, MergeOptions(precision="dequantized", quantization=Quantization("nf4"))
    )
    others = (
        MergeOptions(precision="dequantized", quantization=Quantization("fp4")),
        MergeOptions(precision="dequantized", quantization=Quantization("nf4", is_double=False)),
        MergeOptions(dtype=torch.float16),
    )
    for other in others:
        with pytest.raises(ConfigError, match="another merge"):
            merge_adapter(adapter, output, other)


def test_only_lora_is_merged(adapter: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(adapter, tmp_path / "adapter")
    description = json.loads((copy / "adapter_config.json").read_text())
    for changed in ({"peft_type": "IA3"}, {"r": "4"}, {"rank_pattern": "x"}, {"bias": 1}):
        (copy / "adapter_config.json").write_text(json.dumps(description | changed))
        assert run_entry(main, [str(copy)]) == 2
    (copy / "adapter_config.json").write_text("[]")
    assert run_entry(main, [str(copy)]) == 2


def test_a_base_that_is_not_the_one_of_the_run(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(adapter, tmp_path / "adapter")
    contract = {"base_model": {"name": "base", "digest": "of other weights"}}
    (tmp_path / "contract.json").write_text(json.dumps(contract))
    assert run_entry(main, [str(tmp_path / "adapter")]) == 2
    assert "are not those the adapter was trained on" in capsys.readouterr().err
    assert run_entry(main, [str(tmp_path / "adapter"), "--base", str(base)]) == 0
    assert "warning: the adapter was trained on other files" in capsys.readouterr().err


@pytest.mark.parametrize("shard", ["1GB", "40KB"])
def test_another_type_is_rounded_to_once(shard: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama")
    load(base).to(torch.bfloat16).save_pretrained(base, max_shard_size=shard)
    if shard == "40KB":
        (base / "model.safetensors").unlink()
    adapter = make_adapter(tmp_path / "adapter", base)
    output = tmp_path / "out"
    assert run_entry(main, [str(adapter), "--output", str(output), "--dtype", "float32"]) == 0
    exact = PeftModel.from_pretrained(load(base, dtype=torch.float32), adapter)
    check_same(output, exact.merge_and_unload().state_dict())
    if shard == "40KB":
        index = json.loads((output / "model.safetensors.index.json").read_text())
        weights = [load_file(file) for file in output.glob("*.safetensors")]
        size = sum(tensor.nbytes for part in weights for tensor in part.values())
        assert index["metadata"]["total_size"] == size
        assert len(weights) == 3
    assert run_entry(main, [str(adapter), "--output", str(output)]) == 2  # another merge
