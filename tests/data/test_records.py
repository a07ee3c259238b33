"""Records: JSONL texts and dialogues, Parquet columns, Hugging Face data sets."""

import sys
import tracemalloc
import types

import pytest

from rmat.data.documents import Special
from rmat.data.records import Query, read_conversations
from rmat.data.sources import Source
from tests.makers.texts import write_jsonl


def read(path, column="text"):
    source = Source(str(path), column=column)
    return [document for _, document in source], source


def test_texts_are_named_by_their_line(tmp_path):
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": "a"}, {"text": ""}, {"text": "ü\n<|user|>", "id": 3}])
    found, source = read(path)
    assert [(d.name, d.parts) for d in found] == [("t.jsonl:1", ("a",)), ("t.jsonl:3", ("ü\n<|user|>",))]
    assert source.skipped.to_dict() == {"empty record": {"count": 1, "first": "t.jsonl:2"}}


def test_the_text_field_can_be_named(tmp_path):
    found, _ = read(write_jsonl(tmp_path / "t.ndjson", [{"body": "b", "text": "a"}]), column="body")
    assert found[0].parts == ("b",)


def test_blank_lines_and_a_missing_last_newline_do_not_matter(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('\n{"text": "a"}\n\n{"text": "b"}')
    assert [d.name for d in read(path)[0]] == ["t.jsonl:2", "t.jsonl:4"]


def test_dialogues_are_rendered_with_role_tokens(tmp_path):
    turns = [{"role": "user", "text": "hi"}, {"role": "Marketing", "text": "hello"}]
    (document,), _ = read(write_jsonl(tmp_path / "d.jsonl", [{"turns": turns}]))
    end = Special("turn_end")
    assert document.parts == (Special("user"), "hi", end, Special("user"), "Marketing: hello", end)


TALK = {
    "turns": [{"role": "Ann", "text": "red"}, {"role": "assistant", "text": "ok"}],
    "queries": [
        {"query": "what?", "answer": "red", "spans": [[0, 0], [0, 1]]},
        {"query": "so?", "answer": "ok", "spans": []},
    ],
}


def test_questions_and_answers_stand_behind_the_turns(tmp_path):
    (document,), _ = read(write_jsonl(tmp_path / "d.jsonl", [TALK]))
    user, assistant, end = Special("user"), Special("assistant"), Special("turn_end")
    talk = (user, "Ann: red", end, assistant, "ok", end)
    assert document.parts == (
        *talk,
        user,
        "what?",
        end,
        assistant,
        "red",
        end,
        user,
        "so?",
        end,
        assistant,
        "ok",
        end,
    )


@pytest.mark.parametrize("none", [[], None])
def test_a_dialogue_may_have_no_questions(tmp_path, none):
    without, _ = read(write_jsonl(tmp_path / "d.jsonl", [{"turns": TALK["turns"]}]))
    empty, _ = read(write_jsonl(tmp_path / "d.jsonl", [{"turns": TALK["turns"], "queries": none}]))
    assert empty == without


def test_conversations_with_questions(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [{"text": "a"}, {"turns": TALK["turns"]}, TALK])
    (found,) = read_conversations(path)
    assert found.name == "d.jsonl:3"
    assert found.turns == (("Ann", "red"), ("assistant", "ok"))
    assert found.queries == (Query("what?", "red", ((0, 0), (0, 1))), Query("so?", "ok", ()))
    assert found.document() == read(path, column="text")[0][-1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "t.jsonl is empty"),
        (b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        (b"[1, 2]\n", "line 1 is not a JSON object"),
        (b'{"body": "a"}\n', r"line 1 has no text in 'text' \(it has 'body'\).*data.column"),
        (b'{"text": 3}\n', "line 1 has no text in 'text'"),
        (b'{"text": "ok"}\n{"text": "\xff"}\n', "t.jsonl is not valid UTF-8 at byte offset 25"),
        (b'{"text": "\\ud800"}\n', "line 1 holds a lone surrogate"),
        (b'{"turns": [{"role": "user"}]}\n', "line 1: 'turns' must be a list of objects"),
        (b'{"turns": "no"}\n', "line 1: 'turns' must be"),
        (b'{"turns": ["no"]}\n', "line 1: 'turns' must be"),
        (b'{"turns": [], "queries": "no"}\n', "line 1: 'queries' must be a list of objects"),
        (b'{"turns": [], "queries": [{"query": "a"}]}\n', "line 1: 'queries' must be"),
        (b'{"turns": [], "queries": [{"query": "a", "answer": ""}]}\n', "line 1: 'queries' must be"),
        (
            b'{"turns": [], "queries": [{"query": "a", "answer": "\\ud800"}]}\n',
            "line 1 holds a lone surrogate",
        ),
        (
            b'{"turns": [], "queries": [{"query": "a", "answer": "b", "spans": [[0, 0]]}]}\n',
            "line 1: 'spans' must be",
        ),
        (
            b'{"turns": [], "queries": [{"query": "a", "answer": "b", "spans": [3]}]}\n',
            "line 1: 'spans' must be",
        ),
        (b"[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, message):
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_a_bad_line_in_the_middle_of_a_folders_file_is_not_passed_over(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\nnonsense\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        list(Source(str(tmp_path)))


def test_an_endless_line_is_refused_in_bounded_memory(tmp_path):
    """The file is sparse; only the allowed 128 MiB of the line are read."""
    path = tmp_path / "t.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "ok"}\n{"text": "')
        file.truncate(2 * 2**30)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"line 2 is longer than the 128 MiB.*split it"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 3 * 128 * 2**20
    finally:
        tracemalloc.stop()


def test_parquet_columns(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"text": ["a", None, "", "d"], "n": [1, 2, 3, 4]}), path)
    found, source = read(path)
    assert [(d.name, d.parts) for d in found] == [("t.parquet:1", ("a",)), ("t.parquet:4", ("d",))]
    assert source.skipped.to_dict()["empty record"]["count"] == 2
    with pytest.raises(ValueError, match=r"no column 'body' \(it has 'text', 'n'\)"):
        read(path, column="body")
    with pytest.raises(ValueError, match="'n' is no text but int"):
        read(path, column="n")
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"t.parquet is not a Parquet file"):
        read(path)


@pytest.mark.parametrize(
    ("package", "spec"), [("pyarrow", "t.parquet"), ("datasets", "hf:owner/name:train:text")]
)
def test_an_absent_package_is_named(tmp_path, monkeypatch, package, spec):
    monkeypatch.setitem(sys.modules, package, None)
    if not spec.startswith("hf:"):
        (tmp_path / spec).write_bytes(b"PAR1")
        spec = str(tmp_path / spec)
    with pytest.raises(ValueError, match=f"needs the {package} package.*pip install {package}"):
        list(Source(spec))


class Rows(list):
    """What `datasets` gives back, as far as it is used."""

    column_names = ("text", "label")

    def select_columns(self, columns):
        return [{c: row[c] for c in columns} for row in self]


@pytest.fixture
def hub(monkeypatch):
    """A `datasets` package with one data set; records how it was asked."""
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        if name == "owner/none":
            raise FileNotFoundError("no such data set")
        return Rows([{"text": "a", "label": 0}, {"text": None, "label": 1}, {"text": "c", "label": 1}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_a_hub_data_set_is_read(hub):
    found, source = read("hf:owner/name:dev:text")
    assert hub == [("owner/name", "dev")]
    assert [(d.name, d.parts) for d in found] == [("owner/name/dev:1", ("a",)), ("owner/name/dev:3", ("c",))]
    assert source.skipped.to_dict()["empty record"]["count"] == 1
    read("hf:owner/name")
    assert hub[-1] == ("owner/name", "train")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf:", "not of the form hf:owner/name:split:column"),
        ("hf:a/b:train:text:more", "not of the form"),
        ("hf:owner/none:train:text", "cannot be loaded.*no such data set"),
        ("hf:a/b:train:body", r"no column 'body' \(it has 'text', 'label'\)"),
        ("hf:a/b:train:label", "'label' is no text but int"),
    ],
)
def test_a_wrong_hub_spec_gets_one_sentence(hub, spec, message):
    with pytest.raises(ValueError, match=message):
        read(spec)
