"""What a SPEC reads, what it leaves out and says so, and what it refuses."""

import os
from pathlib import Path

import pytest

from rmat.data import files, sources
from rmat.data.documents import Special
from rmat.data.sources import Source
from tests.makers.texts import write_files, write_jsonl


def names(source: Source) -> list[str]:
    return [document.name for _, document in source]


def counts(source: Source) -> dict[str, int]:
    list(source)
    return {reason: entry["count"] for reason, entry in source.skipped.to_dict().items()}


def test_a_folder_gives_text_and_code_in_the_order_of_their_paths(tmp_path):
    write_files(tmp_path, {"b.txt": "text", "a/x.py": "x = 1\n", "Makefile": "all:\n", "c.MD": "# title"})
    documents = {document.name: document for _, document in Source(str(tmp_path))}
    assert list(documents) == ["Makefile", "a/x.py", "b.txt", "c.MD"]
    assert documents["a/x.py"].parts == (Special("file_name"), "a/x.py\n", "x = 1\n")
    assert documents["b.txt"].parts == ("text",)


def test_a_folder_counts_what_it_leaves_out(tmp_path):
    write_files(
        tmp_path,
        {
            "good.txt": "good",
            "picture.png": b"\x89PNG",
            "binary.txt": b"ab\0cd",
            "latin.txt": "café".encode("latin-1"),
            "empty.py": "\n",
            ".hidden.txt": "x",
            ".git/config.txt": "x",
            "data.jsonl": '{"question": "?"}\n',
        },
    )
    source = Source(str(tmp_path))
    assert names(source) == ["good.txt"]
    assert counts(source) == {
        "neither text nor code by suffix": 1,
        "binary": 1,
        "not UTF-8": 1,
        "empty": 1,
        "hidden": 2,
        "records without text": 1,
    }
    assert "byte offset 3" in source.skipped.to_dict()["not UTF-8"]["first"]
    assert "1 binary (first: binary.txt)" in str(source.skipped)


def test_a_folder_honours_gitignore_at_every_level(tmp_path):
    write_files(
        tmp_path,
        {
            ".gitignore": "build/\n*.log\n!kept.log\n/top.txt\n",
            "a.txt": "a",
            "top.txt": "x",
            "build/b.txt": "x",
            "run.log": "x",
            "kept.log": "kept",
            "sub/top.txt": "kept",
            "sub/.gitignore": "*.txt\n!top.txt\n!run.log\n",
            "sub/c.txt": "x",
            "sub/run.log": "kept",
        },
    )
    source = Source(str(tmp_path))
    assert names(source) == ["a.txt", "kept.log", "sub/run.log", "sub/top.txt"]
    assert counts(source)["ignored by .gitignore"] == 4


def test_the_rules_of_the_enclosing_repository_hold_unless_the_folder_itself_is_ignored(tmp_path):
    write_files(
        tmp_path,
        {
            ".git/HEAD": "x",
            ".gitignore": "*.log\ndata/\n",
            "src/a.txt": "a",
            "src/b.log": "x",
            "data/c.txt": "c",
        },
    )
    assert names(Source(str(tmp_path / "src"))) == ["a.txt"]
    assert names(Source(str(tmp_path / "data"))) == ["c.txt"]


def test_a_glob_takes_any_suffix_but_no_binaries_and_nothing_ignored(tmp_path):
    write_files(
        tmp_path,
        {
            ".gitignore": "no/\n",
            "a/x.dat": "text",
            "a/y.dat": b"\0",
            "no/z.dat": "x",
            "b/w.txt": "x",
            "a/v.py": "v",
        },
    )
    source = Source(str(tmp_path / "**" / "*.dat"))
    assert names(source) == ["a/x.dat"]
    assert counts(source) == {"binary": 1, "ignored by .gitignore": 1}
    assert names(Source(str(tmp_path / "a" / "*.py"))) == ["v.py"]


def test_a_relative_spec_works(tmp_path, monkeypatch):
    write_files(tmp_path, {"a/x.txt": "x", "a/y.txt": "y"})
    monkeypatch.chdir(tmp_path)
    assert names(Source("a")) == names(Source("a/*.txt")) == ["x.txt", "y.txt"]
    assert names(Source("*/x.txt")) == ["a/x.txt"]


def test_a_named_file_may_have_any_suffix(tmp_path):
    write_files(tmp_path, {"notes.xyz": "with NUL \0 inside", "m.py": "x = 1\r\n"})
    assert names(Source(str(tmp_path / "notes.xyz"))) == ["notes.xyz"]
    ((_, code),) = Source(str(tmp_path / "m.py"))
    assert code.parts == (Special("file_name"), "m.py\n", "x = 1\r\n")


@pytest.mark.parametrize("kind", ["folders", "files"])
def test_a_folder_may_declare_its_splits(tmp_path, kind):
    if kind == "folders":
        write_files(
            tmp_path,
            {
                "train/a.txt": "a",
                "train/b.txt": "b",
                "validation/c.txt": "c",
                "test/d.txt": "d",
                "index.md": "x",
            },
        )
    else:
        for name, n in (("train", 2), ("dev", 1), ("test", 1), ("index", 1)):
            write_jsonl(tmp_path / f"{name}.jsonl", [{"text": name}] * n)
    source = Source(str(tmp_path))
    assert sorted(split for split, _ in source) == ["test", "train", "train", "valid"]
    assert counts(source) == {"beside the train, valid and test parts": 1}


def test_python_stdlib_leaves_out_tests_and_packages(tmp_path, monkeypatch):
    write_files(
        tmp_path,
        {
            "json/decoder.py": "d",
            "os.py": "o",
            "test/test_os.py": "x",
            "idlelib/idle_test/a.py": "x",
            "site-packages/p/a.py": "x",
            "latin.py": b"# \xe9\n",
            "data.txt": "x",
        },
    )
    monkeypatch.setattr(sources, "stdlib_root", lambda: tmp_path)
    source = Source("python-stdlib")
    assert names(source) == ["json/decoder.py", "os.py"]
    assert counts(source) == {"tests": 2, "not UTF-8": 1}
    assert set(source.details) == {"python"}


def test_python_stdlib_is_on_this_machine():
    found = [name for _, name in sources._stdlib_files(files.Skipped())]
    assert {"json/decoder.py", "os.py", "asyncio/events.py"} <= set(found) and len(found) > 300
    assert not any(name.startswith(("test/", "site-packages/")) for name in found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.txt is empty; give a file"),
        (b" \n", "x.txt is empty"),
        (b"abc\xff\xfe", "x.txt is not valid UTF-8 at byte offset 3; convert"),
    ],
)
def test_a_named_file_must_be_good(tmp_path, content, message):
    write_files(tmp_path, {"x.txt": content})
    with pytest.raises(ValueError, match=message):
        list(Source(str(tmp_path / "x.txt")))


def test_a_file_of_two_gigabytes_is_refused_unread(tmp_path):
    path = tmp_path / "huge.txt"
    with path.open("wb") as file:
        file.truncate(2 * 2**30)
    with pytest.raises(ValueError, match=r"huge.txt is longer than the 128 MiB.*split it"):
        list(Source(str(path)))


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    write_files(tmp_path, {"a.txt": "a", "b.txt": "b"})
    read_bytes = Path.read_bytes

    def guarded(path: Path) -> bytes:
        if path.name == "b.txt":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    with pytest.raises(ValueError, match=r"b.txt cannot be read: Permission denied; check"):
        list(Source(str(tmp_path / "b.txt")))
    source = Source(str(tmp_path))
    assert names(source) == ["a.txt"] and counts(source) == {"unreadable": 1}


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(ValueError, match="not a regular file"):
        list(Source(str(tmp_path / "pipe.txt")))


def test_a_pipe_in_a_folder_is_left_out_unopened(tmp_path):
    """Probing a pipe for binary content would wait for a writer for ever."""
    write_files(tmp_path, {"a.txt": "a"})
    os.mkfifo(tmp_path / "pipe.txt")
    source = Source(str(tmp_path))
    assert names(source) == ["a.txt"] and counts(source) == {"not a regular file": 1}


def test_a_spec_that_names_nothing_lists_the_forms():
    with pytest.raises(ValueError, match=r"nothing at '/no/such'.*python-stdlib.*glob.*hf:"):
        list(Source("/no/such"))
