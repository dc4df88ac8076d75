"""Answers: JSON, side by side, chat, and where the system prompt comes from."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from tests.templates import FAMILIES, family_tokenizer
from tests.tiny import CHATML, make_model_folder, make_tokenizer
from tests.unit.test_merge import make_adapter
from trainer.answers import Asker, end_tokens, learned_template
from trainer.entry import run_entry
from trainer.errors import ConfigError
from trainer.generation import main
from trainer.merge.merging import merge_adapter
from trainer.speaker import Answer, Speaker, load_speaker, show
from trainer.trained_model import find_trained_model

SYSTEM = "You answer briefly."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_adapter(tmp_path_factory.mktemp("generation"))
    (run / "resolved.json").write_text(json.dumps({"data": {"system_prompt": SYSTEM}}))
    return run


def answers(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert run_entry(main, [*arguments, "--max-new-tokens", "6", "--json"]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


def test_json_of_a_run_and_its_base(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = str(run.parent / "base")
    rows = answers(capsys, str(run), base, "--prompt", "Hello")
    assert [row["model"] for row in rows] == [str(run), base]
    assert all(set(row) == {"model", "prompt", "answer", "num_tokens"} for row in rows)
    assert all(row["prompt"] == "Hello" and 0 < row["num_tokens"] <= 6 for row in rows)
    assert rows == answers(capsys, str(run), base, "--prompt", "Hello")


def test_merged_answers_twenty_prompts_as_base_and_adapter_do(run: Path, tmp_path: Path) -> None:
    merge_adapter(run / "adapter", tmp_path / "merged")
    models = [find_trained_model(str(place)) for place in (run / "adapter", tmp_path / "merged")]
    speakers = [load_speaker(model, None, torch.device("cpu"), "fp32") for model in models]
    given = set()
    for number in range(20):
        for speaker in speakers:
            speaker.forget()
        unmerged, merged = (speaker.answer(f"Question {number}?", 8) for speaker in speakers)
        assert (unmerged.answer, unmerged.num_tokens) == (merged.answer, merged.num_tokens)
        given.add(merged.answer)
    assert len(given) > 5


def test_what_a_run_is_loaded_from(tmp_path: Path) -> None:
    (tmp_path / "resolved.json").write_text("{}")
    with pytest.raises(ConfigError, match="no trained model yet"):
        find_trained_model(str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert find_trained_model(str(tmp_path)).base == str(tmp_path / "model")
    (tmp_path / "adapter").mkdir()
    adapter = {"base_model_name_or_path": "owner/base", "revision": "v1"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    found = find_trained_model(str(tmp_path))
    assert (found.base, found.adapter, found.revision) == (
        "owner/base",
        tmp_path / "adapter",
        "v1",
    )
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "config.json").write_text("{}")
    assert find_trained_model(str(tmp_path)).adapter is None
    assert find_trained_model("owner/name").base == "owner/name"


def test_greedy_answer_is_the_argmax(run: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(run.parent / "base")
    model.generation_config.do_sample = True
    model.generation_config.temperature = 5.0
    model.generation_config.repetition_penalty = 9.0
    tokenizer = make_tokenizer()
    answer = Speaker("m", model, tokenizer, SYSTEM).answer("Hello", 4)
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Hello"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, return_tensors="pt").input_ids
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(4):
            following = model(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, following], dim=1)
    expected = tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()
    assert answer.answer == expected
    assert model.generation_config.temperature == 5.0


def test_system_prompt_of_the_run_is_said_and_used(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    plain = Asker.prompt_ids

    def recording(asker: Asker, messages: list[dict[str, str]]) -> list[int]:
        used.extend(m["content"] for m in messages if m["role"] == "system")
        return plain(asker, messages)

    monkeypatch.setattr(Asker, "prompt_ids", recording)
    arguments = [str(run), str(run.parent / "base"), "--prompt", "Hi", "--max-new-tokens", "1"]
    assert run_entry(main, arguments) == 0
    assert SYSTEM in capsys.readouterr().err
    assert used == [SYSTEM, SYSTEM]
    used.clear()
    assert run_entry(main, [*arguments, "--system", "Other."]) == 0
    assert SYSTEM not in capsys.readouterr().err
    assert used == ["Other.", "Other."]


def test_chat_reads_lines_and_remembers(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n\nAnd now?\n"))
    rows = answers(capsys, str(run.parent / "base"))
    assert [row["prompt"] for row in rows] == ["Hello", "And now?"]
    alone = answers(capsys, str(run.parent / "base"), "--prompt", "And now?")
    model = AutoModelForCausalLM.from_pretrained(run.parent / "base")
    speaker = Speaker("m", model, make_tokenizer(), None)
    speaker.answer("Hello", 6)
    assert speaker.answer("And now?", 6).answer == rows[1]["answer"]
    assert len(speaker.messages) == 4
    assert alone[0]["prompt"] == "And now?"


def test_plain_prompt_without_a_template(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model_folder(tmp_path, tokenizer=make_tokenizer(chat_template=None))
    assert answers(capsys, str(tmp_path), "--prompt", "Hello")[0]["num_tokens"] > 0


def test_system_prompt_is_folded_as_in_training(run: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(run.parent / "base")
    silent = CHATML.replace("<|im_start|>{{", "{% if message['role'] != 'system' %}<|im_start|>{{")
    silent = silent.replace("<|im_end|>\n", "<|im_end|>\n{% endif %}")
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    for template in (silent, refusing + CHATML):
        tokenizer = make_tokenizer(chat_template=template)
        speaker = Speaker("m", model, tokenizer, SYSTEM)
        speaker.answer("Hello", 2)
        speaker.messages.append({"role": "user", "content": "More?"})
        text = tokenizer.decode(speaker.asker.prompt_ids(speaker.messages))
        assert text.startswith(f"<|im_start|>user\n{SYSTEM}\n\nHello<|im_end|>")
        assert text.count(SYSTEM) == 1


@pytest.mark.parametrize("family", ["gemma", "phi3", "chatml on a base model"])
def test_stops_at_the_end_of_turn_of_the_template(
    family: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = {"gemma": "<end_of_turn>", "phi3": "<|end|>"}.get(family, "<|im_end|>")
    if family in FAMILIES:
        tokenizer = family_tokenizer(family)
    else:
        special = ("<|im_start|>", "<|im_end|>")
        tokenizer = make_tokenizer(eos_token="</s>", special_tokens=special)
    end = tokenizer.convert_tokens_to_ids(marker)
    assert end != tokenizer.eos_token_id
    model = AutoModelForCausalLM.from_pretrained(run.parent / "base")
    model.generation_config.eos_token_id = None
    plain = model.forward

    def always_ending(**inputs: Any) -> Any:
        output = plain(**inputs)
        output.logits[..., end] = 1e4
        return output

    monkeypatch.setattr(model, "forward", always_ending)
    assert Speaker("m", model, tokenizer, None).answer("Hello", 5).num_tokens == 0


def test_side_by_side() -> None:
    pair = [Answer("one", "p", "first [answer]", 2), Answer("two", "p", "second", 1)]
    plain, terminal = io.StringIO(), io.StringIO()
    show(pair, Console(file=plain))
    assert plain.getvalue() == "== one\nfirst [answer]\n\n== two\nsecond\n\n"
    show(pair, Console(file=terminal, force_terminal=True, width=60))
    row = next(line for line in terminal.getvalue().splitlines() if "first [answer]" in line)
    assert "second" in row


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["./nowhere", "--prompt", "Hi"], "no folder ./nowhere"),
        (["--prompt", "Hi"], "MODEL"),
    ],
)
def test_mistakes_end_with_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_entry(main, arguments) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.out == ""


REFUSES_SYSTEM = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_system_prompt_goes_where_training_put_it(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(chat_template=REFUSES_SYSTEM)
    folder = make_model_folder(tmp_path / "model", tokenizer=tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder)
    speaker = Speaker("m", model, tokenizer, "Be brief.")
    speaker.answer("Hello", 1)
    speaker.messages.pop()  # its answer
    asked = tokenizer.decode(speaker.asker.prompt_ids(speaker.messages))
    assert asked.startswith("<|im_start|>user\nBe brief.\n\nHello<|im_end|>")


def test_an_answer_ends_where_the_chat_format_ends_a_turn(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(eos_token="<eos>", special_tokens=("<|im_start|>", "<|im_end|>"))
    folder = make_model_folder(tmp_path / "model", tokenizer=tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ends = end_tokens(model, tokenizer, learned_template(tokenizer))
    assert set(tokenizer.convert_ids_to_tokens(ends)) == {"<eos>", "<|im_end|>"}
