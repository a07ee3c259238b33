"""What a SPEC reads, what it leaves out and says so, and what it refuses."""

import bz2
import gzip
import lzma
import os
import sys
from pathlib import Path

import pytest

from rmat.data import files, sources
from rmat.data.documents import Special
from rmat.data.extraction import read_file
from rmat.data.sources import Source
from tests.makers.texts import write_files, write_jsonl, write_pdf


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
    opened = Path.open

    def guarded(path: Path, *how: str, **more: str):
        if path.name == "b.txt":
            raise PermissionError(13, "Permission denied")
        return opened(path, *how, **more)

    monkeypatch.setattr(Path, "open", guarded)
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


def test_a_spec_that_names_nothing_lists_the_forms(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"nothing at '/no/such'.*python-stdlib.*glob.*hf:"):
        list(Source("/no/such"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"nothing at 'data' \(looked for {tmp_path}/data\)"):
        list(Source("data"))


def test_every_file_is_read_once_however_many_links_lead_to_it(tmp_path):
    write_files(tmp_path, {"b.txt": "b", "sub/c.txt": "c"})
    (tmp_path / "a.txt").symlink_to("b.txt")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "sub" / "loop").symlink_to("..")
    (tmp_path / "dangling.txt").symlink_to("nothing")
    folder, pattern = Source(str(tmp_path)), Source(str(tmp_path / "**" / "*.txt"))
    assert names(folder) == names(pattern) == ["b.txt", "sub/c.txt"]
    assert counts(folder) == {
        "links to files that are read": 1,
        "links to folders": 2,
        "not a regular file": 1,
    }
    assert names(Source(str(tmp_path / "*" / "b.txt"))) == ["loop/b.txt"], "a link that is named is followed"
    assert names(Source(str(tmp_path / "*" / "*" / "b.txt"))) == ["loop/loop/b.txt"]


def test_two_links_to_a_file_elsewhere_are_one_document(tmp_path):
    write_files(tmp_path, {"far.txt": "far"})
    (tmp_path / "data").mkdir()
    for name in ("x.txt", "y.txt"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "far.txt")
    assert names(Source(str(tmp_path / "data"))) == ["x.txt"]


def test_the_parts_of_a_glob(tmp_path):
    write_files(tmp_path, {"a/b/x.py": "1", "a/.h/y.py": "2", "a/.z.py": "3", "w.py": "4"})
    assert (
        names(Source(str(tmp_path / "**")))
        == names(Source(str(tmp_path / "**" / "*.py")))
        == ["a/b/x.py", "w.py"]
    )
    assert names(Source(str(tmp_path / "a" / ".*.py"))) == [".z.py"]
    assert names(Source(str(tmp_path / "*" / ".h" / "*.py"))) == ["a/.h/y.py"]
    assert names(Source(str(tmp_path / "*" / "[b]" / ".." / ".." / "w.p?"))) == ["a/b/../../w.py"]


def test_a_name_that_is_not_utf8_is_told_by_its_bytes(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.py")).write_text("x = 1\n")
    for spec in (str(tmp_path), str(tmp_path / "*.py"), str(tmp_path / os.fsdecode(b"caf\xe9.py"))):
        ((_, document),) = Source(spec)
        assert document.name == "caf\\xe9.py" and document.parts[1] == "caf\\xe9.py\n"
        assert document.digest


def test_a_byte_order_mark_is_no_text(tmp_path):
    write_files(
        tmp_path,
        {"a.txt": "\ufefftext", "b.jsonl": '\ufeff{"text": "record"}\n', "c.csv": "\ufefftext\nrow\n"},
    )
    assert [document.parts for _, document in Source(str(tmp_path))] == [("text",), ("record",), ("row",)]


def test_pages_and_papers_are_read_for_their_text(tmp_path):
    write_files(tmp_path, {"a.html": "<title>no</title><p>shown", "b.htm.gz": gzip.compress(b"<p>packed")})
    write_pdf(tmp_path / "c.pdf", "printed")
    source = Source(str(tmp_path))
    assert [(d.name, d.parts) for _, d in source] == [
        ("a.html", ("shown",)),
        ("b.htm.gz", ("packed",)),
        ("c.pdf", ("printed",)),
    ]


@pytest.mark.parametrize("package", ["bs4", "pypdf"])
def test_a_folder_counts_the_documents_that_need_an_absent_package(tmp_path, monkeypatch, package):
    write_files(tmp_path, {"a.txt": "a", "b.html": "<p>b"})
    write_pdf(tmp_path / "c.pdf", "c")
    monkeypatch.setitem(sys.modules, package, None)
    source = Source(str(tmp_path))
    assert len(names(source)) == 2 and any("which needs" in reason for reason in counts(source))


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("gz", gzip.compress), ("xz", lzma.compress), ("bz2", bz2.compress), ("zst", "pyarrow")],
)
def test_compressed_files_are_unpacked(tmp_path, suffix, pack):
    if pack == "pyarrow":
        pyarrow = pytest.importorskip("pyarrow")
        pack = lambda raw: pyarrow.compress(raw, codec="zstd", asbytes=True)  # noqa: E731
    write_files(
        tmp_path,
        {
            f"a.py.{suffix}": pack(b"x = 1\n"),
            f"b.jsonl.{suffix}": pack(b'{"text": "1"}\n{"text": "2"}\n'),
            f"c.txt.{suffix}": pack(b"a\0b"),
            f"d.{suffix}": pack(b"what is it"),
        },
    )
    source = Source(str(tmp_path))
    assert names(source) == [f"a.py.{suffix}", f"b.jsonl.{suffix}:1", f"b.jsonl.{suffix}:2"]
    assert counts(source) == {"binary": 1, "neither text nor code by suffix": 1}
    assert names(Source(str(tmp_path / f"d.{suffix}"))) == [f"d.{suffix}"]
    damaged = write_files(tmp_path, {f"e.txt.{suffix}": pack(b"text" * 1000)[:-9]}) / f"e.txt.{suffix}"
    with pytest.raises(ValueError, match=rf"e.txt.{suffix} is damaged .*fetch it anew"):
        list(Source(str(damaged)))
    assert counts(source)["damaged"] == 1


def test_a_packed_file_of_any_size_takes_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_DOCUMENT_BYTES", 1000)
    write_files(
        tmp_path, {"bomb.txt.gz": gzip.compress(b"a" * 10**6), "fits.txt.gz": gzip.compress(b"a" * 1000)}
    )
    source = Source(str(tmp_path))
    assert names(source) == ["fits.txt.gz"] and counts(source) == {"too large": 1}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.zip", "an archive: unpack it"),
        ("a.tar.gz", "an archive: unpack it"),
        ("a.docx", "a word processor's: save it as text, HTML or PDF"),
        ("a.xlsx", "a spreadsheet: save it as CSV"),
    ],
)
def test_files_of_other_kinds_are_refused_by_the_right_word(tmp_path, name, message):
    write_files(tmp_path, {name: b"PK\0\0"})
    for read in (lambda path: list(Source(str(path))), read_file):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)
