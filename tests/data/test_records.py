"""Records: JSONL texts and dialogues, Parquet columns, Hugging Face data sets."""

import gzip
import json
import subprocess
import sys
import tracemalloc
import types

import numpy as np
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
        (b'{"n": 12345}\n{"text": "\xff"}\n', "line 1 has no text"),
        (b'\n\n{"text": "\xff"}\n', "t.jsonl is not valid UTF-8 at byte offset 12"),
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


def turns(document) -> list[str]:
    """Roles and texts of a dialogue without its turn ends."""
    return [
        part.name if isinstance(part, Special) else part
        for part in document.parts
        if part != Special("turn_end")
    ]


HI = ["system", "Be kind.", "user", "hi", "assistant", "hello"]

CHATS = [
    {"messages": [{"role": r, "content": c} for r, c in zip(HI[::2], HI[1::2], strict=True)]},
    {
        "conversations": [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "hi"},
            {"from": "gpt", "value": "hello"},
        ]
    },
    {
        "system": "Be kind.",
        "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}],
    },
    {
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
            {"role": "User", "content": [{"type": "text", "text": "hi"}]},
            {"role": "model", "content": [{"type": "text", "text": "hello"}]},
        ]
    },
    {"system": "Be kind.", "prompt": "hi", "completion": "hello"},
    {"system": "Be kind.", "instruction": "hi", "input": "", "output": "hello"},
    {
        "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}],
        "completion": [{"role": "assistant", "content": "hello"}],
    },
    {"text": [{"role": r, "content": c} for r, c in zip(HI[::2], HI[1::2], strict=True)]},
]


@pytest.mark.parametrize("form", ["jsonl", "json", "jsonl.gz", "parquet"])
def test_chats_of_every_form_are_dialogues(tmp_path, form):
    path = tmp_path / f"chats.{form}"
    for chat in CHATS:
        if form == "parquet":
            pa = pytest.importorskip("pyarrow")
            from pyarrow import parquet

            parquet.write_table(pa.Table.from_pylist([chat]), path)
        else:
            text = json.dumps([chat], indent=1) if form == "json" else json.dumps(chat) + "\n"
            path.write_bytes(gzip.compress(text.encode()) if form == "jsonl.gz" else text.encode())
        (document,), source = read(path)
        assert turns(document) == HI, chat
        assert document.name == f"chats.{form}:1" and not source.skipped.to_dict()


def test_an_instruction_stands_before_its_input(tmp_path):
    record = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    (document,), _ = read(write_jsonl(tmp_path / "a.jsonl", [record]))
    assert turns(document) == ["user", "Add.\n\n1 and 2", "assistant", "3"]


def test_a_dialogue_goes_before_the_text_field_unless_that_is_named(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{**CHATS[0], "text": "rendered", "body": "named"}])
    assert turns(read(path)[0][0]) == HI
    assert read(path, column="body")[0][0].parts == ("named",)
    path = write_jsonl(tmp_path / "b.jsonl", [{"text": "told", "prompt": "no", "response": "dialogue"}])
    assert read(path)[0][0].parts == ("told",)


def test_an_array_of_any_size_is_read_record_by_record(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    texts = [f"number {n} " + "é😀" * (n % 300) for n in range(900)]
    for ascii_only in (True, False):
        path.write_text(
            "\n" + json.dumps([{"text": text, "n": [1, {}]} for text in texts], ensure_ascii=ascii_only)
        )
        found, _ = read(path)
        assert [d.parts for d in found] == [(text,) for text in texts]
    path.write_text('{"text": "alone"}')
    assert [d.name for d in read(path)[0]] == ["a.json:1"]


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.csv", 'id,text\n1,"two\nlines, ""quoted"""\n2,b\n', ['two\nlines, "quoted"', "b"]),
        ("a.csv", "id;text\r\n1;semicolons, too\r\n", ["semicolons, too"]),
        ("a.tsv", "text\tlabel\na, b\t0\n\nc\t1\n", ["a, b", "c"]),
        ("a.csv", "text\n" + "x" * 200_000 + "\n", ["x" * 200_000]),
    ],
)
def test_tables_of_text(tmp_path, name, content, texts):
    (tmp_path / name).write_bytes(content.encode())
    assert [d.parts[0] for d in read(tmp_path / name)[0]] == texts


def test_a_table_of_questions_and_answers(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,completion\nhi,hello\n")
    (document,), _ = read(tmp_path / "a.csv")
    assert turns(document) == ["user", "hi", "assistant", "hello"] and document.name == "a.csv:2"


BAD = [
    b'{"text": 3}',
    b'{"text": {"a": 1}}',
    b'{"other": "a"}',
    b'{"text": "a\\ud800b"}',
    b'{"text": "\xff\xfe"}',
    b'{"messages": [{"role": "user", "content": null}]}',
    b'{"messages": [{"role": "user", "content": [{"type": "image"}]}]}',
    b'{"messages": [{"content": "who?"}]}',
    b'{"messages": "hello"}',
    b'{"messages": [1]}',
    b'{"prompt": 1, "completion": "a"}',
    b'{"turns": [], "queries": [{"query": "a", "answer": "b", "spans": [[0, ' + b"9" * 5000 + b"]]}]}",
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_record_that_cannot_be_used_is_left_out_and_counted(tmp_path, bad):
    """Alone in its file it refuses the file; neither ends the reading of a folder."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "before"}\n' + bad + b'\n{"text": "after"}\n')
    found, source = read(path)
    assert [d.parts for d in found] == [("before",), ("after",)]
    ((_, entry),) = source.skipped.to_dict().items()
    assert entry == {"count": 1, "first": "a.jsonl:2"}
    path.write_bytes(bad + b"\n")
    with pytest.raises(ValueError, match=r"a.jsonl"):
        read(path)
    (tmp_path / "b.txt").write_text("b")
    assert [d.name for d in read(tmp_path)[0]] == ["b.txt"]


def test_a_lone_surrogate_is_left_out_also_without_asserts(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a\ud800b"}, {"text": "good"}])
    found, source = read(tmp_path)
    told = f"{[d.n_bytes for d in found]} {source.skipped}\n"
    assert told == "[4] 1 not UTF-8 (first: a.jsonl:1)\n"
    program = (
        "import sys; from rmat.data.sources import Source; s = Source(sys.argv[1]); "
        "print([d.n_bytes for _, d in s], s.skipped)"
    )
    done = subprocess.run(
        [sys.executable, "-O", "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == told


def test_numbers_of_any_length_do_not_matter_where_they_are_not_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "n": ' + "9" * 5000 + "}\n" + '{"text": null}\n')
    found, source = read(path)
    assert [d.parts for d in found] == [("a",)]
    assert source.skipped.to_dict() == {"empty record": {"count": 1, "first": "a.jsonl:2"}}


def test_a_row_of_parquet_that_is_no_text_is_left_out(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    offsets = pa.py_buffer(np.array([0, 1, 3, 4], dtype=np.int32).tobytes())
    texts = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"a\xff\xfeb")])
    parquet.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    found, source = read(tmp_path / "a.parquet")
    assert [d.parts for d in found] == [("a",), ("b",)]
    assert source.skipped.to_dict() == {"not UTF-8": {"count": 1, "first": "a.parquet:2"}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "", "a.json is empty"),
        (
            "a.json",
            '{"name": "package", "version": 1}',
            r"record 1 has no text in 'text' \(it has 'name', 'version'\)",
        ),
        ("a.json", '["a", "b"]', "record 1 is not a JSON object"),
        ("a.json", "17", "record 1 is not a JSON object"),
        ("a.json", '[{"text": "a"} {"text": "b"}]', "is not JSON .*must follow record 1"),
        ("a.json", '[{"text": "a"}', "is not JSON .*must follow record 1"),
        ("a.json", '[{"text": "a"}] more', "more text follows"),
        ("a.json", '[{"text": "a"}, {"text": ]', "is not JSON"),
        ("a.json", '[{"text": "a', "is not JSON .*Unterminated"),
        ("a.csv", "\n", "a.csv is empty"),
        ("a.csv", "a,b\n1,2\n", r"no column 'text' \(it has 'a', 'b'\).*data.column"),
    ],
)
def test_a_file_that_is_not_what_its_suffix_says(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


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


def test_a_folder_of_save_to_disk_is_read(tmp_path, monkeypatch):
    table = Rows([{"text": "a", "label": 0}, {"text": None, "label": 1}])
    talk = Rows([{"messages": [{"role": "user", "content": "Who?"}], "label": 0}])
    talk.column_names = ("messages", "label")
    saved = {"one": table, "more": {"train": table, "validation": talk, "odd": table}, "two": {"a": table}}

    def load_from_disk(path):
        if path.endswith("broken"):
            raise FileNotFoundError("no state.json")
        return saved[path.rpartition("/")[2]]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_from_disk=load_from_disk))
    for name in (*saved, "broken"):
        (tmp_path / name).mkdir()
        files = ["state.json", "dataset_info.json"] if name == "one" else ["dataset_dict.json"]
        for file in files:
            (tmp_path / name / file).touch()
    found, source = read(tmp_path / "one")
    assert [(d.name, d.parts) for d in found] == [("one:1", ("a",))]
    assert source.skipped.to_dict()["empty record"]["count"] == 1
    source = Source(str(tmp_path / "more"))
    assert [(split, d.name) for split, d in source] == [
        ("train", "more/train:1"),
        ("valid", "more/validation:1"),
    ]
    assert source.skipped.to_dict()["beside the train, valid and test parts"]["first"] == "odd"
    assert [(split, d.name) for split, d in Source(str(tmp_path / "two"))] == [(None, "two/a:1")]
    with pytest.raises(ValueError, match=r"broken cannot be loaded \(FileNotFoundError"):
        read(tmp_path / "broken")
    with pytest.raises(ValueError, match=r"one has no column 'body'"):
        read(tmp_path / "one", column="body")


def test_a_value_that_is_no_object_is_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n5\nnull\n{"text": "b"}\n')
    (tmp_path / "b.json").write_text('[{"text": "c"}, 5, {"text": "d"}]')
    found, source = read(tmp_path)
    assert [d.name for d in found] == ["a.jsonl:1", "a.jsonl:4", "b.json:1", "b.json:3"]
    assert source.skipped.to_dict() == {"not JSON objects": {"count": 3, "first": "a.jsonl:2"}}


def test_json_lines_are_read_whatever_their_suffix(tmp_path):
    (tmp_path / "c.json").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert [d.parts for d in read(tmp_path / "c.json")[0]] == [("a",), ("b",)]


def test_fields_that_are_null_are_none(tmp_path):
    part = [{"type": None, "text": "hi"}]
    path = write_jsonl(
        tmp_path / "t.jsonl",
        [
            {"turns": None, "messages": [{"role": "user", "from": None, "content": part}]},
            {"turns": None, "messages": None, "text": "a"},
        ],
    )
    found, source = read(path)
    assert [turns(d) if len(d.parts) > 1 else d.parts for d in found] == [["user", "hi"], ("a",)]
    assert not source.skipped.to_dict()


def test_a_header_of_csv_has_blank_lines_above_and_line_ends_within(tmp_path):
    (tmp_path / "a.csv").write_text('\n\ntext,"my\nnote"\nhello,1\n"a\nb",2\n')
    found, _ = read(tmp_path / "a.csv")
    assert [(d.name, d.parts) for d in found] == [("a.csv:5", ("hello",)), ("a.csv:7", ("a\nb",))]


def test_a_value_of_parquet_that_python_has_not_is_left_out(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    # Months and years beyond those of datetime.
    dates = pa.array([0, 10**8], pa.int32()).cast(pa.date32())
    parquet.write_table(pa.table({"text": ["a", "b"], "context": dates}), tmp_path / "a.parquet")
    found, source = read(tmp_path / "a.parquet")
    assert [d.parts for d in found] == [("a",)]
    assert source.skipped.to_dict() == {"not readable": {"count": 1, "first": "a.parquet:2"}}


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.py"])
def test_a_named_file_that_is_binary_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes("text\nhello\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=f"{name} is binary"):
        read(tmp_path / name)


def test_a_tool_call_is_called_by_its_name(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": "?"}, call]}])
    with pytest.raises(ValueError, match=r"line 1: a message in 'messages' is a tool call.*or leave it out"):
        read(path)
