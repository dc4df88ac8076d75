"""Files to prepared splits: bad rows, sources, splits, order, and the cache."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tiny import EXAMPLE_DATA, make_tokenizer
from trainer import prepare as prepare_module
from trainer.config import Config
from trainer.data import cache, parallel
from trainer.data.sources import find_files
from trainer.data.split import split_rows, weighted_indices
from trainer.data.store import PreparedData, load_prepared
from trainer.errors import ConfigError, DataError, EnvironmentProblem
from trainer.prepare import find_prepared, prepare


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_tokenizer().save_pretrained(folder)
    return folder


class Prepare:
    """Prepares with settings, and keeps the last config."""

    def __init__(self, model: Path, root: Path) -> None:
        self.model, self.root = model, root

    def config(self, seed: int = 1, **data: Any) -> Config:
        return Config.model_validate(
            {
                "model": {"name": str(self.model)},
                "data": {"cache_dir": str(self.root / "cache"), "workers": 1, **data},
                "seed": seed,
                "output_dir": str(self.root / "run"),
            }
        )

    def __call__(self, **settings: Any) -> PreparedData:
        return load_prepared(prepare(self.config(**settings)))

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.root / "run/data_report.json").read_text())
        return report

    def write(self, name: str, rows: list[Any]) -> str:
        path = self.root / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)


@pytest.fixture
def data(model: Path, tmp_path: Path) -> Prepare:
    return Prepare(model, tmp_path)


def questions(count: int, tag: str = "q") -> list[dict[str, str]]:
    return [{"instruction": f"{tag} {i}", "response": f"answer {i}"} for i in range(count)]


def texts(prepared: PreparedData, split: Any = "train") -> list[str]:
    tokenizer, rows = make_tokenizer(), prepared.split(split)
    return [] if rows is None else [tokenizer.decode(rows.row(i)[0]) for i in range(len(rows))]


# --- bad rows ---------------------------------------------------------------------------------

GOOD = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}


def chat(*pairs: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


BAD_LINES: list[tuple[bytes, str, str]] = [  # line, reason, part of the message
    (b'{"messages": [', "malformed JSON", "malformed JSON"),
    (b"[1, 2]", "not an object", "JSON array"),
    (b'{"other": 1}', "missing field", "messages: missing; the row has: other"),
    (json.dumps(chat(("user", "x"), ("assistant", 7))).encode(), "not a string", "is int"),
    (
        json.dumps(chat(("user", "x"), ("assistant", " \n"))).encode(),
        "empty answer",
        "messages[1].content: is empty",
    ),
    (b'{"messages": "\xff"}', "bad UTF-8", "byte 0xff at byte 14 of the line"),
    (
        json.dumps(chat(("user", "long " * 90), ("assistant", "y"))).encode(),
        "everything truncated away",
        "tokens of prompt, max_length 60",
    ),
    (
        json.dumps(chat(("wizard", "x"), ("assistant", "y"))).encode(),
        "unknown role",
        "unknown role 'wizard'",
    ),
    (json.dumps(chat(("user", "x"))).encode(), "no assistant turn", "no assistant turn"),
    (b'{"messages": []}', "not a conversation", "an empty list"),
    (
        json.dumps(chat(("user", "\ud83d"), ("assistant", "y"))).encode(),
        "bad Unicode",
        "half a surrogate",
    ),
]


@pytest.fixture
def mixed(data: Prepare) -> str:
    path = data.root / "mixed.jsonl"
    good = json.dumps(GOOD).encode()
    path.write_bytes(b"\n".join([good, *(line for line, _, _ in BAD_LINES), good]) + b"\n")
    return str(path)


def test_every_kind_of_bad_row_is_named_with_file_and_line(data: Prepare, mixed: str) -> None:
    with pytest.raises(DataError) as caught:
        data(train=mixed, max_length=60)
    message = str(caught.value)
    assert f"{len(BAD_LINES)} bad rows of {len(BAD_LINES) + 2}" in message
    for number, (_, reason, part) in enumerate(BAD_LINES, 2):
        (line,) = [line for line in message.splitlines() if f"mixed.jsonl:{number}:" in line]
        assert part in line, reason
    assert find_prepared(data.config(train=mixed, max_length=60)) is None


def test_skipped_rows_are_counted_listed_and_kept(data: Prepare, mixed: str) -> None:
    prepared = data(train=mixed, max_length=60, on_bad_row="skip")
    train = prepared.split("train")
    assert train is not None
    assert len(train) == 2
    skipped = data.report["skipped"]
    assert skipped["by_reason"] == {reason: 1 for _, reason, _ in BAD_LINES}
    assert [row["where"] for row in skipped["listed"]] == [
        f"{mixed}:{number}" for number in range(2, len(BAD_LINES) + 2)
    ]
    kept = (prepared.entry / "skipped_rows.jsonl").read_text().splitlines()
    assert json.loads(kept[2])["row"] == {"other": 1}
    assert len(kept) == len(BAD_LINES)


def test_nothing_but_bad_rows_is_an_error_even_when_skipping(data: Prepare) -> None:
    path = data.write("bad.jsonl", [chat(("user", "x"))] * 3)
    with pytest.raises(DataError, match="3 bad rows of 3"):
        data(train=path, on_bad_row="skip")


def test_only_the_first_twenty_are_shown_with_the_total(data: Prepare) -> None:
    rows = [*questions(1), *({"instruction": "x", "response": ""} for _ in range(25))]
    with pytest.raises(DataError, match="and 5 more") as caught:
        data(train=data.write("many.jsonl", rows))
    assert "25 bad rows of 26" in str(caught.value)
    assert str(caught.value).count("many.jsonl:") == 20


def test_a_wrong_mapping_is_one_problem_with_a_suggestion(data: Prepare) -> None:
    rows = [{"question": f"q{i}", "output": "a"} for i in range(50)]
    path = data.write("alpaca.jsonl", rows)
    with pytest.raises(DataError) as caught:
        data(train=path, shape="instruction", columns={"instruction": "question"})
    assert str(caught.value).count("alpaca.jsonl") == 1
    assert "did you mean data.columns.response: output?" in str(caught.value)
    assert "the columns are: question, output" in str(caught.value)


def test_a_missing_file_suggests_the_one_that_is_there(data: Prepare) -> None:
    data.write("medical.jsonl", questions(1))
    with pytest.raises(DataError, match=r"did you mean .*medical\.jsonl\?"):
        data(train=str(data.root / "medcal.jsonl"))


def test_a_setting_that_would_be_ignored_is_refused(data: Prepare) -> None:
    path = data.write("plain.jsonl", [{"text": "printer"}])
    with pytest.raises(DataError, match="system_prompt would be ignored"):
        data(train=path, system_prompt="Be kind.")


# --- sources ----------------------------------------------------------------------------------


def test_every_format_gives_the_same_rows(data: Prepare) -> None:
    rows = [{"instruction": 'two\nlines "quoted"', "response": "é"}, *questions(2)]
    expected = texts(data(train=data.write("a.jsonl", rows), order="given"))
    files = [data.root / name for name in ("a.json", "b.json", "c.json", "a.csv", "a.parquet")]
    files[0].write_text(json.dumps(rows, indent=1))
    files[1].write_text(json.dumps({"version": 1, "rows": rows}))
    files[2].write_text("\n".join(map(json.dumps, rows)))
    quoted = [
        ",".join('"' + row[c].replace('"', '""') + '"' for c in ("instruction", "response"))
        for row in rows
    ]
    files[3].write_text("instruction,response\n" + "\n".join(quoted) + "\n")
    pq.write_table(pa.Table.from_pylist(rows), files[4])
    for file in files:
        assert texts(data(train=str(file), order="given")) == expected, file.name


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.json", '[\n {"text": "x"},\n {"text": ""}]', "a.json:3: text"),
        ("a.csv", 'text,n\n"x\ny",1\n"",2\n', "a.csv:4: text"),
        ("b.csv", "text,n\nx,1\ny\n", "b.csv:3: 1 fields, but the header names 2"),
    ],
)
def test_bad_rows_of_other_formats_have_their_line(
    data: Prepare, name: str, content: str, place: str
) -> None:
    (data.root / name).write_text(content)
    with pytest.raises(DataError) as caught:
        data(train=str(data.root / name))
    assert place in str(caught.value)


def test_a_folder_is_read_in_name_order_and_may_be_mixed(data: Prepare) -> None:
    data.write("folder/b.jsonl", [{"text": "second"}])
    (data.root / "folder/a.txt").write_text("first\n\nalso first\n")
    prepared = data(train=str(data.root / "folder"), order="given")
    assert texts(prepared) == [f"{t}<|im_end|>" for t in ("first", "also first", "second")]


def test_sharegpt_system_column_input_and_prefix(data: Prepare) -> None:
    sharegpt = {
        "system": "Brief.",
        "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}],
    }
    alpaca = {"instruction": "do", "input": "this", "response": "ok"}
    sources = [
        {"path": data.write("s.jsonl", [sharegpt]), "prefix": "[CHAT] "},
        {"path": data.write("a.jsonl", [alpaca]), "prefix": "[DO] "},
    ]
    got = texts(data(train=sources, order="given", system_prompt="Default."))
    assert got[0].startswith("<|im_start|>system\nBrief.<|im_end|>\n<|im_start|>user\n[CHAT] hi<")
    assert got[1].startswith(
        "<|im_start|>system\nDefault.<|im_end|>\n<|im_start|>user\n[DO] do\n\nthis<"
    )


@pytest.mark.parametrize("name", ["medical_qa.jsonl", "support_chats.jsonl"])
def test_the_example_data_prepares(data: Prepare, name: str) -> None:
    path = EXAMPLE_DATA / name
    count = len(path.read_text(encoding="utf-8").splitlines())
    prepared = data(train=str(path), validation_size=0.1, test_size=20)
    sizes = {s: len(texts(prepared, s)) for s in ("train", "validation", "test")}
    validation = round(0.1 * count)
    assert sizes == {"train": count - validation - 20, "validation": validation, "test": 20}
    train = prepared.split("train")
    assert train is not None
    for index in range(0, len(train), 37):
        ids, mask = train.row(index)
        assert len(ids) == len(mask) == train.lengths[index]
        assert mask[1:].sum() == train.num_labels[index] > 0
    preview = data.report["preview"]
    assert preview["learned"][0].removesuffix("<|im_end|>") in preview["text"]


# --- split, weights, order ----------------------------------------------------------------------


def test_split_takes_the_same_share_of_every_source_and_repeats_itself() -> None:
    sources = np.repeat(np.array([0, 1], np.int32), [300, 100])
    assigned = split_rows(sources, 0.1, 20, seed=3)
    for code, shares in ((1, [30, 10]), (2, [15, 5])):
        assert [int((assigned[sources == s] == code).sum()) for s in (0, 1)] == shares
    assert (assigned == split_rows(sources, 0.1, 20, seed=3)).all()
    assert (assigned != split_rows(sources, 0.1, 20, seed=4)).any()


def test_split_that_leaves_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(DataError, match="take 10 of the 10 rows"):
        split_rows(np.zeros(10, np.int32), 5, 5, seed=0)


def test_weights_repeat_and_thin_out() -> None:
    sources = np.repeat(np.array([0, 1, 2], np.int32), 100)
    index = weighted_indices(sources, [1, 2.5, 0.25], seed=0)
    assert [int((sources[index] == s).sum()) for s in (0, 1, 2)] == [100, 250, 25]
    counts = np.bincount(index, minlength=300)
    assert set(counts[100:200]) == {2, 3}
    assert set(counts[200:]) == {0, 1}
    assert (index != weighted_indices(sources, [1, 2.5, 0.25], seed=1)).any()


def test_given_splits_are_used_as_given(data: Prepare) -> None:
    train, held = data.write("t.jsonl", questions(5)), data.write("v.jsonl", questions(3, "held"))
    prepared = data(train=train, validation=held, validation_size=0.4)
    assert ["held" in text for text in texts(prepared, "validation")] == [True] * 3
    assert len(texts(prepared)) == 5
    assert prepared.split("test") is None


def test_pieces_of_one_row_stay_in_one_split(data: Prepare) -> None:
    rows = [{"text": f"{'abc'[i % 3] * 3} " * 40} for i in range(20)]
    path = data.write("long.jsonl", rows)
    prepared = data(train=path, max_length=16, too_long="split", test_size=0.3)
    splits = [prepared.split(name) for name in ("train", "test")]
    train, test = (set(prepared.table.rows[s.positions]) for s in splits if s is not None)
    assert not train & test
    assert len(train) + len(test) == 20


def test_order_keys(data: Prepare) -> None:
    rows = [{"text": "w " * n, "hard": 10 - n} for n in (3, 1, 2)]
    path = data.write("o.jsonl", rows)
    keys = {}
    for order in (
        "shuffle",
        "given",
        "length",
        "column:hard",
        "function:tests.unit.order_keys.words",
    ):
        train = data(train=path, order=order).split("train")
        assert train is not None
        keys[order] = None if train.order_keys is None else train.order_keys.tolist()
        if order == "length":
            assert keys[order] == train.lengths.tolist()
    assert keys["shuffle"] is None
    assert keys["given"] == [0, 1, 2]
    assert keys["column:hard"] == [7, 9, 8]
    assert keys["function:tests.unit.order_keys.words"] == [3, 1, 2]


def test_order_that_cannot_be_had_is_an_error(data: Prepare) -> None:
    path = data.write("o.jsonl", [{"text": "w", "hard": "very"}, {"text": "v", "hard": 1}])
    with pytest.raises(DataError, match=r"o\.jsonl:1: hard: .*must be a number"):
        data(train=path, order="column:hard")
    with pytest.raises(ConfigError, match="cannot be imported"):
        data(train=path, order="function:no_such_module.f")


def test_duplicates_are_counted(data: Prepare) -> None:
    train = data.write("t.jsonl", questions(4) + questions(2))
    data(train=train, test=data.write("v.jsonl", questions(1) + questions(1, "new")))
    duplicates = data.report["duplicates"]
    assert duplicates == {"inside_train": 2, "validation_also_in_train": 0, "test_also_in_train": 1}
    assert len(data.report["warnings"]) == 2


# --- cache --------------------------------------------------------------------------------------


def test_the_second_call_encodes_nothing(data: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    config = data.config(train=data.write("t.jsonl", questions(5)))
    assert find_prepared(config) is None
    entry = prepare(config)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("prepared again")

    monkeypatch.setattr(prepare_module, "build_entry", refuse)
    monkeypatch.setattr(prepare_module, "load_tokenizer_facts", refuse)
    assert prepare(config) == entry == find_prepared(config)
    assert data.report["cache_entry"] == str(entry)
    with pytest.raises(AssertionError, match="prepared again"):
        prepare(config.model_copy(update={"seed": 99}))


def test_what_matters_changes_the_key_and_nothing_else_does(data: Prepare) -> None:
    path = data.write("t.jsonl", questions(5))

    def key(**settings: Any) -> Path:
        config = data.config(**{"train": path, **settings})
        return cache.entry_path(config, find_files(config.data))

    first = key()
    moved = str(data.root / "moved.jsonl")
    shutil.copy(path, moved)
    assert key(train=moved) == key(workers=2) == first
    template = data.root / "t.jinja"
    template.write_text("{{ messages }}")
    others = [
        key(seed=2),
        key(max_length=7),
        key(chat_template="chatml"),
        key(chat_template=str(template)),
        key(train=[{"path": path, "prefix": "x"}]),
        key(test_size=1),
    ]
    template.write_text("{{ messages }} ")
    others.append(key(chat_template=str(template)))
    data.write("t.jsonl", questions(6))
    others.append(key())
    assert len({first, *others}) == len(others) + 1


def test_the_tokenizer_is_part_of_the_key(data: Prepare, tmp_path: Path) -> None:
    path = data.write("t.jsonl", questions(2))
    before = prepare(data.config(train=path))
    data.model = tmp_path / "other"
    make_tokenizer(chat_template="{{ messages[0]['content'] }}").save_pretrained(data.model)
    config = data.config(train=path)
    assert cache.entry_path(config, find_files(config.data)) != before


def test_a_killed_writer_leaves_nothing_that_counts(
    data: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = data.config(train=data.write("t.jsonl", questions(5)))

    def killed(staging: Path, entry: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_publish", killed)
        patch.setattr(
            "trainer.data.cache.shutil.rmtree", lambda *_, **__: None
        )  # killed: no cleaning up
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    leftovers = list((data.root / "cache/prepared").iterdir())
    assert len(leftovers) == 1
    assert find_prepared(config) is None
    assert len(load_prepared(prepare(config)).split("train") or ()) == 5


def test_of_two_writers_the_first_wins(data: Prepare) -> None:
    entry = data.root / "cache/prepared/abc"

    def fast_writer(folder: Path) -> None:
        (folder / "by").write_text("first")

    def slow_writer(folder: Path) -> None:
        cache.write_entry(entry, fast_writer)
        (folder / "by").write_text("second")

    cache.write_entry(entry, slow_writer)
    assert (entry / "by").read_text() == "first"
    assert [path.name for path in entry.parent.iterdir()] == ["abc"]


def test_a_cache_that_cannot_be_written_is_the_machines_problem(data: Prepare) -> None:
    blocked = data.root / "file"
    blocked.write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        data(train=data.write("t.jsonl", questions(2)), cache_dir=str(blocked / "x"))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_two_processes_give_what_one_gives(
    method: str, data: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "_start_method", lambda: method)
    monkeypatch.setattr("trainer.data.lines.BYTES_PER_CHUNK", 300)
    rows: list[Any] = [*questions(40), {"instruction": "x", "response": ""}]
    path = data.write("t.jsonl", rows)
    one = data(train=path, on_bad_row="skip", test_size=5)
    two = data(
        train=path, on_bad_row="skip", test_size=5, workers=2, cache_dir=str(data.root / "two")
    )
    for name in ("rows.arrow", "train.npy", "test.npy", "report.json", "skipped_rows.jsonl"):
        assert (one.entry / name).read_bytes() == (two.entry / name).read_bytes(), name


def test_a_split_pickles_as_its_place(data: Prepare) -> None:
    train = data(train=data.write("t.jsonl", questions(50))).split("train")
    assert train is not None
    pickled = pickle.dumps(train)
    assert len(pickled) < 500
    assert pickle.loads(pickled).row(3)[0].tolist() == train.row(3)[0].tolist()


# --- command line -------------------------------------------------------------------------------


def test_the_command_prints_counts_and_writes_the_report(
    data: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    config = data.config(train=data.write("t.jsonl", questions(10)), validation_size=2)
    path = data.root / "config.json"
    path.write_text(config.model_dump_json(exclude_unset=True))
    prepare_module.main(["--config", str(path)])
    assert "8 train / 2 validation / 0 test rows" in capsys.readouterr().out
    assert data.report["fingerprint"] == Path(data.report["cache_entry"]).name
