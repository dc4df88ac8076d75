"""The streamed merge gives PEFT's weights, from any kind of base file, or says why it does not."""

from __future__ import annotations

import copy
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny import make_tokenizer
from trainer.merge import weight_files
from trainer.merge.job import MergeOptions
from trainer.merge.merging import merge_adapter
from trainer.merge.report import MergeReport

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
LLAMA = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 8},
    "gemma": {**LLAMA, "head_dim": 8},  # head tied to the embedding
    "phi3": {**LLAMA, "pad_token_id": 0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},  # stored transposed
    "opt": {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "gpt_neox": {**SIZES, "intermediate_size": 64},
    "falcon": SIZES,
    "mixtral": {**LLAMA, "num_local_experts": 4},  # experts joined on loading
}
ATTENTION = {"mixtral": ["q_proj", "v_proj"]}
TIED_IN_VAIN = {"gpt2", "falcon"}  # PEFT 0.21 cannot load a trained tied head of theirs
LAST_LAYER = r".*\.1\..*"
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "saved": {"modules_to_save": ["lm_head"], "bias": "all"},
    "patterns": {"rank_pattern": {LAST_LAYER: 6}, "alpha_pattern": {LAST_LAYER: 5}},
}


@cache
def _tokenizer() -> Any:
    return make_tokenizer()


def make_base(folder: Path, architecture: str, **changes: Any) -> Path:
    config = AutoConfig.for_model(
        architecture, vocab_size=512, **{**ARCHITECTURES[architecture], **changes}
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def make_adapter(folder: Path, base: Path, **options: Any) -> Path:
    """An adapter with no zero in it, as if trained."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    options = {"target_modules": "all-linear", "init_lora_weights": False, "r": 4, **options}
    is_transposed = model.config.model_type == "gpt2"
    config = LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=is_transposed, **options)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    adapted.save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    adapted = PeftModel.from_pretrained(load(base, dtype="auto"), adapter)
    state: dict[str, torch.Tensor] = adapted.merge_and_unload().state_dict()
    return state


def check_same(output: Path, expected: dict[str, torch.Tensor]) -> None:
    found = load(output, dtype="auto").state_dict()
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def stored(folder: Path) -> list[tuple[str, str, list[int]]]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        slices = [(name, file.get_slice(name)) for name in file.offset_keys()]
        return [(name, part.get_dtype(), part.get_shape()) for name, part in slices]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("bases")
    return cache(lambda architecture: make_base(root / architecture, architecture))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_bit_for_bit_what_peft_merges(
    kind: str, architecture: str, bases: Any, tmp_path: Path
) -> None:
    options = copy.deepcopy(KINDS[kind])  # PEFT adds to the lists it is given
    options["target_modules"] = ATTENTION.get(architecture, "all-linear")
    base = bases(architecture)
    if kind == "saved" and architecture in TIED_IN_VAIN:
        options.update(modules_to_save=["ln_f"], bias="none")
    elif kind == "saved" and load(base).config.tie_word_embeddings:
        options["ensure_weight_tying"] = True
    adapter = make_adapter(tmp_path / "adapter", base, **options)
    report = merge_adapter(adapter, tmp_path / "out")
    assert report.how == "streamed"
    assert stored(tmp_path / "out") == stored(base)
    check_same(tmp_path / "out", merged_by_peft(base, adapter))
    if kind == "saved":
        saved = options["modules_to_save"][0]
        trained = {f"{saved}.weight", "embed_tokens.weight"}  # one of them, where they are tied
        assert any(name.endswith(tuple(trained)) for name in report.targets)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_rounded_once(dtype: torch.dtype, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama")
    load(base).to(dtype).save_pretrained(base)
    adapter = make_adapter(tmp_path / "adapter", base)
    report = merge_adapter(adapter, tmp_path / "out")
    assert report.dtype == str(dtype).removeprefix("torch.")
    before, factors = (
        load_file(base / "model.safetensors"),
        load_file(adapter / "adapter_model.safetensors"),
    )
    scaling = 8 / 4
    ours, theirs = load_file(tmp_path / "out" / "model.safetensors"), merged_by_peft(base, adapter)
    for name, weight in before.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" not in factors:
            assert torch.equal(ours[name], weight)
            continue
        a, b = (factors[f"{key}.lora_{part}.weight"].double() for part in "AB")
        exact = weight.double() + scaling * b @ a
        ulp = torch.finfo(dtype).eps * torch.exp2(torch.floor(torch.log2(exact.abs())))
        ulp = ulp.clamp(min=torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps)
        error = (ours[name].double() - exact).abs()
        assert float((error / ulp).max()) <= 0.51
        assert float(error.sum()) <= float((theirs[name].double() - exact).abs().sum())


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_blocks_of_rows_give_the_same_weights(
    architecture: str, kind: str, bases: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(tmp_path / "adapter", bases(architecture), **KINDS[kind])
    monkeypatch.setattr(weight_files, "_BLOCK_VALUES", 32 * 8)
    merge_adapter(adapter, tmp_path / "out")
    check_same(tmp_path / "out", merged_by_peft(bases(architecture), adapter))


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_embedding_is_merged_too(kind: str, bases: Any, tmp_path: Path) -> None:
    options = {**KINDS[kind], "target_modules": ["embed_tokens", "q_proj"]}
    adapter = make_adapter(tmp_path / "adapter", bases("llama"), **options)
    report = merge_adapter(adapter, tmp_path / "out")
    assert report.how == "streamed"
    assert "model.embed_tokens.weight" in report.targets
    check_same(tmp_path / "out", merged_by_peft(bases("llama"), adapter))


def test_a_sharded_base_keeps_its_shards(bases: Any, tmp_path: Path) -> None:
    base = tmp_path / "base"
    load(bases("llama")).save_pretrained(base, max_shard_size="40KB")
    _tokenizer().save_pretrained(base)
    adapter = make_adapter(tmp_path / "adapter", base)
    merge_adapter(adapter, tmp_path / "out")
    shards = sorted(path.name for path in base.glob("*.safetensors*"))
    assert len(shards) > 3
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors*")) == shards
    check_same(tmp_path / "out", merged_by_peft(base, adapter))


@pytest.mark.parametrize("num_files", [1, 2])
def test_a_base_of_bin_files_is_converted(num_files: int, bases: Any, tmp_path: Path) -> None:
    base = tmp_path / "base"
    model = load(bases("gemma"))
    model.save_pretrained(base)
    _tokenizer().save_pretrained(base)
    (base / "model.safetensors").unlink()
    state = model.state_dict()  # the tied head too: one storage under two names
    assert "lm_head.weight" in state
    if num_files == 1:
        torch.save(state, base / "pytorch_model.bin")
    else:
        names = sorted(state)
        half = names.index("model.layers.1.input_layernorm.weight")
        files = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
        for file, part in zip(files, (names[:half], names[half:]), strict=True):
            torch.save({name: state[name] for name in part}, base / file)
        weight_map = {name: files[names.index(name) >= half] for name in names}
        index = {"metadata": {}, "weight_map": weight_map}
        (base / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    adapter = make_adapter(tmp_path / "adapter", bases("gemma"))
    report = merge_adapter(adapter, tmp_path / "out", MergeOptions(base=str(base)))
    assert report.how == "streamed"
    assert not list((tmp_path / "out").glob("*.bin*"))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == num_files
    check_same(tmp_path / "out", merged_by_peft(bases("gemma"), adapter))


def test_adapted_experts_are_merged_in_memory(
    bases: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_base(tmp_path / "base", "mixtral")
    options = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj"]}
    adapter = make_adapter(tmp_path / "adapter", base, **options)
    report = merge_adapter(adapter, tmp_path / "out")
    assert report.how.startswith("in memory: ")
    assert f"merging {report.how}" in capsys.readouterr().err
    check_same(tmp_path / "out", merged_by_peft(base, adapter))


def test_what_else_belongs_to_a_model_comes_along(bases: Any, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama")
    for name in ("LICENSE.txt", "NOTICE", "USE_POLICY.md", "README.md", "modeling_own.py"):
        (base / name).write_text(name)
    adapter = make_adapter(tmp_path / "adapter", base)
    tokenizer = make_tokenizer(chat_template="{{ messages }} of the adapter")
    tokenizer.save_pretrained(adapter)
    report = merge_adapter(adapter, tmp_path / "out")
    output = tmp_path / "out"
    for name in ("LICENSE.txt", "NOTICE", "USE_POLICY.md", "config.json", "generation_config.json"):
        assert (output / name).read_bytes() == (base / name).read_bytes()
    assert "# base, fine-tuned with LoRA" in (output / "README.md").read_text()
    assert not (output / "modeling_own.py").exists()  # code comes along only where it is trusted
    assert "of the adapter" in (output / "chat_template.jinja").read_text()
    written = json.loads((output / "merge.json").read_text())
    assert written["files"] == {
        file.name: file.stat().st_size
        for file in output.iterdir()
        if file.name not in ("merge.json", "README.md")
    }
    assert written["how"] == "streamed"
    assert written["peak_memory_bytes"] > 2**20
    assert {file.stat().st_mode & 0o777 for file in output.iterdir()} == {0o644}
    assert report == MergeReport(
        **{**written, **{name: tuple(written[name]) for name in ("adapters", "targets", "notes")}}
    )


def test_updates_lost_in_rounding_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_base(tmp_path / "base", "llama")
    load(base).to(torch.bfloat16).save_pretrained(base)
    adapter = make_adapter(tmp_path / "adapter", base)
    path = adapter / "adapter_model.safetensors"
    tensors = {name: tensor * 1e-7 for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    report = merge_adapter(adapter, tmp_path / "out")
    assert math.isclose(report.max_logit_difference, 0, abs_tol=0.1)
    assert "14 of 14 adapted weights stay as they are" in capsys.readouterr().err
