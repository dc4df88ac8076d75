"""Targets, precision, attention, tokenizer and loading errors, and the start-up proof."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.tiny import ARCHITECTURES, make_model_folder, make_tokenizer
from tests.unit.test_model_training import BATCH, CPU, SIZES, make_config
from trainer import attention as attention_module
from trainer import model as model_module
from trainer.attention import choose_attention
from trainer.config import ModelConfig
from trainer.data.chat import CHATML
from trainer.data.tokenizer import chosen_template, load_tokenizer_facts, tokenizer_files
from trainer.errors import ConfigError, EnvironmentProblem, RankZeroError
from trainer.model import build_model, check_model_fits, parameter_line
from trainer.model_source import explaining_load
from trainer.packing_proof import packing_is_exact
from trainer.precision import choose_precision
from trainer.tokenizer import load_tokenizer, load_training_tokenizer

Q_K_V_O = ["q_proj", "k_proj", "v_proj", "o_proj"]
OTHERS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2},
    "gpt_neox": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
}
ARCHITECTURES_BEFORE = tuple(ARCHITECTURES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {name: make_model_folder(root / name, name, **SIZES) for name in ARCHITECTURES_BEFORE}
    with pytest.MonkeyPatch.context() as patch:
        for name, sizes in OTHERS.items():
            patch.setitem(ARCHITECTURES, name, sizes)
            made[name] = make_model_folder(root / name, name)
    return made


def build(folder: Path, precision: Any = "fp32", **sections: dict[str, Any]) -> Any:
    return build_model(make_config(folder, **sections), device=CPU, precision=precision)


def adapted_layers(model: Any) -> set[str]:
    return {name.rpartition(".")[2] for name in model.base_model.targeted_module_names}


@pytest.mark.parametrize(
    ("architecture", "requested", "adapted"),
    [
        ("llama", "conservative", {"q_proj", "v_proj"}),
        ("llama", "balanced", {"q_proj", "k_proj", "v_proj"}),
        ("llama", "aggressive", {*Q_K_V_O, "gate_proj", "up_proj", "down_proj"}),
        ("llama", "all-linear", {*Q_K_V_O, "gate_proj", "up_proj", "down_proj"}),
        ("llama", ["down_proj"], {"down_proj"}),
        ("phi3", Q_K_V_O, {"qkv_proj", "o_proj"}),
        ("phi3", "conservative", {"qkv_proj"}),
        ("phi3", "aggressive", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("phi3", "all-linear", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("gpt2", "balanced", {"c_attn"}),
        ("gpt2", "aggressive", {"c_attn", "c_proj", "c_fc"}),
        ("gpt_neox", "aggressive", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
        ("falcon", "aggressive", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
    ],
)
def test_targets(
    architecture: str, requested: Any, adapted: set[str], folders: dict[str, Path]
) -> None:
    built = build(folders[architecture], lora={"target_modules": requested})
    assert adapted_layers(built.model) == adapted
    said = any("lora.target_modules" in note for note in built.notes)
    assert said == (architecture != "llama" and requested != "all-linear")


def test_phi3_attention_really_trains(folders: dict[str, Path]) -> None:
    built = build(folders["phi3"], lora={"target_modules": Q_K_V_O})
    assert any("q_proj, k_proj, v_proj -> qkv_proj" in note for note in built.notes)
    built.model(input_ids=BATCH, labels=BATCH, use_cache=False).loss.backward()
    fused = {
        name: parameter.grad
        for name, parameter in built.model.named_parameters()
        if "qkv_proj.lora_B" in name
    }
    assert len(fused) == 2
    assert all(float(grad.abs().max()) > 0 for grad in fused.values())


@pytest.mark.parametrize(
    ("lora", "field", "says"),
    [
        ({"target_modules": ["q_porj"]}, "target_modules", "did you mean q_proj?"),
        ({"target_modules": ["q_proj", "xyz"]}, "target_modules", "down_proj, gate_proj, k_proj"),
        ({"rank_pattern": {"q_prj": 8}}, "rank_pattern", "did you mean q_proj?"),
        ({"alpha_pattern": {"(": 8}}, "alpha_pattern", "regular expression"),
        ({"modules_to_save": ["lm_haed"]}, "modules_to_save", "did you mean lm_head?"),
        (
            {"target_modules": ["v_proj"], "rank_pattern": {"q_proj": 8}},
            "rank_pattern",
            "none of the adapted layers",
        ),
    ],
)
def test_names_that_match_nothing(
    lora: dict[str, Any], field: str, says: str, folders: dict[str, Path]
) -> None:
    with pytest.raises(ConfigError) as caught:
        build(folders["llama"], lora=lora)
    assert f"lora.{field}" in str(caught.value)
    assert says in str(caught.value)


def test_rank_pattern_changes_that_layer(folders: dict[str, Path]) -> None:
    model = build(folders["llama"], lora={"r": 4, "rank_pattern": {"q_proj": 2}}).model
    attention = model.get_base_model().model.layers[0].self_attn
    assert attention.q_proj.lora_A["default"].out_features == 2
    assert attention.k_proj.lora_A["default"].out_features == 4


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_parameter_line_is_pefts(quantization: str, folders: dict[str, Path]) -> None:
    model = build(folders["llama"], "bf16", model={"quantization": quantization}).model
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        model.print_trainable_parameters()
    assert parameter_line(model) == printed.getvalue().strip()


def test_parameter_line_counts_true_numbers(folders: dict[str, Path]) -> None:
    plain = build(folders["llama"], lora={"enabled": False}).model
    count = sum(p.numel() for p in plain.parameters())
    line = f"trainable params: {count:,} || all params: {count:,} || trainable%: 100.0000"
    assert parameter_line(plain) == line
    packed = build(folders["llama"], model={"quantization": "nf4"}).model
    adapters = sum(p.numel() for p in packed.parameters() if p.requires_grad)
    assert f"all params: {count + adapters:,} " in parameter_line(packed)


@pytest.mark.parametrize(
    ("requested", "device", "native", "expected"),
    [
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda", False, "fp16"),
        ("auto", "mps", True, "fp32"),
        ("auto", "cpu", True, "bf16"),
        ("auto", "cpu", False, "fp32"),
        ("bf16", "cpu", False, "bf16"),
        ("bf16", "cuda", True, "bf16"),
        ("fp16", "cuda", True, "fp16"),
        ("fp32", "cuda", True, "fp32"),
    ],
)
def test_precision_table(requested: Any, device: str, native: bool, expected: str) -> None:
    choice = choose_precision(requested, device, native_bf16=native)
    assert choice.precision == expected
    assert choice.reason


@pytest.mark.parametrize(
    ("requested", "device"), [("fp16", "cpu"), ("bf16", "cuda"), ("bf16", "mps")]
)
def test_precision_the_machine_lacks(requested: Any, device: str) -> None:
    with pytest.raises(EnvironmentProblem, match=r"training\.precision") as caught:
        choose_precision(requested, device, native_bf16=False)
    assert "training.precision" in caught.value.fix


def test_attention_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(
        attention: str, device: str, precision: Any = "bf16", architecture: str = "llama"
    ) -> Any:
        config = ModelConfig.model_validate({"name": "m", "attention": attention})
        return choose_attention(config, device, precision, AutoConfig.for_model(architecture))[0]

    monkeypatch.setattr(attention_module, "is_flash_attn_2_available", lambda: True)
    assert choose("auto", "cuda") == "flash_attention_2"
    assert choose("auto", "cuda", "fp32") is None
    assert choose("auto", "cuda", architecture="bloom") is None
    assert choose("auto", "cpu") == "packed"
    assert choose("auto", "cpu", architecture="gemma2") is None  # caps its scores
    assert choose("auto", "cpu", architecture="bloom") is None
    assert choose("eager", "cpu") == "eager"
    assert choose("flash_attention_2", "cuda") == "flash_attention_2"
    for device, precision in (("cpu", "bf16"), ("cuda", "fp32")):
        with pytest.raises(EnvironmentProblem, match=r"model\.attention"):
            choose("flash_attention_2", device, precision)
    monkeypatch.setattr(attention_module, "is_flash_attn_2_available", lambda: False)
    assert choose("auto", "cuda") == "packed"
    with pytest.raises(EnvironmentProblem, match=r"packed cannot be used: .*plain attention"):
        choose("packed", "cpu", architecture="gemma2")
    capped = AutoConfig.for_model("gemma3_text", attn_logit_softcapping=30.0)
    packed = ModelConfig.model_validate({"name": "m", "attention": "packed"})
    with pytest.raises(EnvironmentProblem, match=r"packed cannot be used: .*scores are capped"):
        choose_attention(packed, "cpu", "bf16", capped)
    with pytest.raises(EnvironmentProblem, match="not installed"):
        choose("flash_attention_2", "cuda")


def test_quantization_without_bitsandbytes(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(EnvironmentProblem, match="bitsandbytes"):
        build(folders["llama"], model={"quantization": "nf4"})
    notes = build(folders["llama"], model={"quantization": "auto"}).notes
    assert any(note.startswith("quantization: none") for note in notes)


def test_quantized_full_fine_tuning_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="full fine-tuning"):
        build(folders["llama"], model={"quantization": "int8"}, lora={"enabled": False})


@pytest.mark.parametrize(
    ("tokens", "pad", "note"),
    [
        ({}, "<pad>", None),
        ({"pad_token": None}, "<|im_end|>", "EOS"),
    ],
)
def test_pad_token(tokens: dict[str, Any], pad: str, note: str | None, tmp_path: Path) -> None:
    make_model_folder(tmp_path, tokenizer=make_tokenizer(**tokens))
    loaded = load_tokenizer(ModelConfig(name=str(tmp_path)))
    assert loaded.tokenizer.pad_token == pad
    assert len(loaded.tokenizer) <= 512
    assert [note in text for text in loaded.notes] == ([True] if note else [])


def test_pad_token_falls_back_to_unknown_then_fails(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(pad_token=None)
    tokenizer.eos_token = None
    make_model_folder(tmp_path, tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="no pad, end-of-sequence or unknown token"):
        load_tokenizer(ModelConfig(name=str(tmp_path)))
    tokenizer.unk_token = "<|im_start|>"
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(ModelConfig(name=str(tmp_path))).tokenizer.pad_token == "<|im_start|>"


def test_tokens_beyond_the_embeddings(folders: dict[str, Path]) -> None:
    for lora in ({}, {"modules_to_save": ["embed_tokens"]}):
        model = build(folders["llama"], lora=lora).model
        rows = model.get_input_embeddings().weight.shape[0]
        assert check_model_fits(model, largest_token_id=rows - 1, longest_tokens=512) == ()
        with pytest.raises(ConfigError, match=f"token {rows}, the model {rows} rows"):
            check_model_fits(model, largest_token_id=rows, longest_tokens=1)


def test_texts_beyond_the_positions(folders: dict[str, Path]) -> None:
    rotary = build(folders["llama"]).model
    (note,) = check_model_fits(rotary, largest_token_id=1, longest_tokens=513)
    assert "513 tokens" in note
    assert "512" in note
    learned = {
        "gpt2": OTHERS["gpt2"],
        "gpt_neo": {
            "hidden_size": 32,
            "num_layers": 1,
            "num_heads": 2,
            "attention_types": [[["global"], 1]],
        },
        "opt": {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 32}
        | {"num_hidden_layers": 1, "num_attention_heads": 2},
    }
    for architecture, sizes in learned.items():
        config = AutoConfig.for_model(
            architecture, vocab_size=64, max_position_embeddings=128, **sizes
        )
        model = AutoModelForCausalLM.from_config(config)
        assert check_model_fits(model, largest_token_id=1, longest_tokens=128) == ()
        with pytest.raises(ConfigError, match="128 positions") as caught:
            check_model_fits(model, largest_token_id=1, longest_tokens=129)
        assert "data.max_length to 128" in caught.value.fix


def test_flex_attention_needs_cuda() -> None:
    config = ModelConfig(name="m", attention="flex_attention")
    llama = AutoConfig.for_model("llama")
    assert choose_attention(config, "cuda", "bf16", llama)[0] == "flex_attention"
    with pytest.raises(EnvironmentProblem, match="flex_attention needs CUDA"):
        choose_attention(config, "cpu", "fp32", llama)


def test_revision_of_a_local_folder(folders: dict[str, Path]) -> None:
    source = {"revision": "v1"}
    config = make_config(folders["llama"], model=source)
    for load in (
        lambda: build(folders["llama"], model=source),
        lambda: load_tokenizer(config.model),
        lambda: tokenizer_files(config.model),
    ):
        with pytest.raises(ConfigError, match=r"model\.revision: v1 .* local folder"):
            load()


def test_adapter_records_an_absolute_base(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders["llama"].parent)
    build(Path("llama")).model.save_pretrained(tmp_path)
    recorded = json.loads((tmp_path / "adapter_config.json").read_text())
    assert recorded["base_model_name_or_path"] == str(folders["llama"])


@pytest.mark.parametrize("wanted", [None, "chatml", "file"])
def test_training_tokenizer_has_the_template_of_the_data(
    wanted: str | None, tmp_path: Path
) -> None:
    jinja = tmp_path / "mine.jinja"
    jinja.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    make_model_folder(tmp_path / "base", tokenizer=make_tokenizer(chat_template="the model's own"))
    config = make_config(tmp_path / "base")
    data = config.data.model_copy(
        update={"chat_template": str(jinja) if wanted == "file" else wanted}
    )
    config = config.model_copy(update={"data": data})
    load_training_tokenizer(config).tokenizer.save_pretrained(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template
    facts = load_tokenizer_facts(config)
    assert saved == chosen_template(config, facts)[0]
    expected = {None: "the model's own", "chatml": CHATML, "file": jinja.read_text()}
    assert saved == expected[wanted]


@pytest.mark.parametrize("load", [lambda name: load_tokenizer(ModelConfig(name=name)), build])
def test_missing_model_folder_suggests_a_sibling(load: Any, folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"model\.name.*no folder") as caught:
        load(str(folders["llama"]).replace("llama", "lama"))
    assert f"did you mean {folders['llama']}?" in str(caught.value)


def test_folder_that_is_no_model(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        build(tmp_path)
    build(folders["llama"]).model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a LoRA adapter") as caught:
        build(tmp_path)
    assert str(folders["llama"]) in caught.value.fix


def test_unreadable_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    make_model_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(ConfigError, match="could not be loaded"):
        build(tmp_path)


def hub_error(kind: type[Exception]) -> Exception:
    """Make one without the HTTP response its constructor asks for (the client library varies)."""
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("raised", "kind", "says"),
    [
        (hub_error(GatedRepoError), EnvironmentProblem, "hf auth login"),
        (hub_error(RepositoryNotFoundError), ConfigError, "neither a folder here nor"),
        (hub_error(RevisionNotFoundError), ConfigError, "model.revision"),
        (LocalEntryNotFoundError("offline"), EnvironmentProblem, "hf download owner/name"),
        (ValueError("set trust_remote_code=True"), ConfigError, "model.trust_remote_code"),
        (ImportError("needs einops"), EnvironmentProblem, "einops"),
        (ValueError("unknown model type"), ConfigError, "unknown model type"),
    ],
)
def test_hub_errors(raised: Exception, kind: type[RankZeroError], says: str) -> None:
    with pytest.raises(RankZeroError) as caught, explaining_load("owner/name", "main"):
        try:
            raise raised
        except OSError as error:
            raise OSError("as transformers wraps it") from error
    assert type(caught.value) is kind
    assert says in str(caught.value)
    assert caught.value.fix


def test_hub_id_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentProblem, match="not on this machine"):
        load_tokenizer(ModelConfig(name="owner-that-is-not/model-that-is-not"))


def test_unknown_hub_model_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = make_config(Path("owner-that-is-not/model-that-is-not"))
    for load in (lambda: tokenizer_files(config.model), lambda: load_tokenizer_facts(config)):
        with pytest.raises(EnvironmentProblem, match="not on this machine") as caught:
            load()
        assert len(caught.value.what) < 120
    advice = "Can't load tokenizer for 'x'. If you were trying to load it from the Hub, make sure"
    with pytest.raises(ConfigError) as wrong, explaining_load("x"):
        raise OSError(advice)
    assert wrong.value.what.endswith("could not be loaded: Can't load tokenizer for 'x'")


@pytest.mark.parametrize("lora", [{"modules_to_save": ["lm_head"]}, {"enabled": False}])
@pytest.mark.parametrize("is_tied", [True, False])
def test_packing_proof_of_weights_of_two_types(
    lora: dict[str, Any], is_tied: bool, tmp_path: Path
) -> None:
    """Trained weights are float32 over a base of 16 bits: mixed precision, as training has it."""
    folder = make_model_folder(tmp_path / "model", tie_word_embeddings=is_tied)
    built = build(folder, "bf16", lora=lora)
    assert packing_is_exact(built.model, 512, precision="bf16").exact


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral", "phi3"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_packing_proof(architecture: str, precision: str, folders: dict[str, Path]) -> None:
    model = build(folders[architecture], precision).model.train()
    proof = packing_is_exact(model, 512)
    assert proof.exact
    assert proof.leak == 0
    assert proof.mixing > 10 * proof.difference
    assert model.training

    plain_forward = model.forward
    model.forward = lambda position_ids, **inputs: plain_forward(**inputs)
    deaf = packing_is_exact(model, 512)
    assert not deaf.exact
    assert deaf.leak > 0
