"""Files become the text that they show, or one sentence that says why not."""

import sys
from pathlib import Path

import pypdf
import pytest
from pypdf.errors import DependencyError

from rmat.data.documents import Special
from rmat.data.extraction import read_file
from tests.makers.texts import write_pdf

PAGE = """<!DOCTYPE html><html><head><title>Not this</title><style>p {}</style></head><body>
<!-- nor this --><h1>Snow &amp;
  ice</h1><script>var hidden = 1</script><noscript>none</noscript>
<p>One <b>bold</b>  word<i> here</i>.</p>
<p>Two<br>lines,<br><br>a gap.</p>
<ul><li>first</li>
		<li>second <a href="x">link</a></li></ul>
<table><tr><th>k</th><th>v</th></tr><tr><td>1</td><td>2</td></tr></table>
<pre>
def f():
    return  1

 x</pre><div><div>in</div>side</div></body></html>"""

SHOWN = """Snow & ice

One bold word here.

Two
lines,

a gap.

first
second link

k	v
1	2

def f():
    return  1

 x

in

side"""


def text_of(path: Path) -> str:
    """The text of a file that is read as plain text."""
    document = read_file(path)
    assert document.name == path.name and document.n_header == 0
    (text,) = document.parts
    assert isinstance(text, str)
    return text


def refused(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        read_file(path)
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence
    return sentence


@pytest.mark.parametrize("name", ["notes.txt", "notes.md", "notes", "notes.log"])
def test_text_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    text = "# Höhe\r\n\r\n* a <b> *c*\n\n\n"
    (tmp_path / name).write_bytes(text.encode())
    assert text_of(tmp_path / name) == text


def test_code_stands_behind_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    assert read_file(tmp_path / "a.py").parts == (Special("file_name"), "a.py\n", "x = 1\n")


@pytest.mark.parametrize("name", ["page.html", "page.HTM", "page.xhtml"])
def test_a_page_is_what_it_shows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(PAGE)
    assert text_of(tmp_path / name) == SHOWN


def test_a_page_declares_its_encoding(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_bytes('<meta charset="iso-8859-1"><p>Öl'.encode("latin-1"))
    assert text_of(page) == "Öl"


def test_a_broken_page_still_has_text(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<p>a" + "<div>" * 3000 + "b</p><table><p>c")
    assert text_of(page).split() == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["two.pdf", "two.PDF", "without-suffix"])
def test_the_pages_of_a_pdf(tmp_path: Path, name: str) -> None:
    assert text_of(write_pdf(tmp_path / name, "Hello there", "", "Good bye")) == "Hello there\n\nGood bye"


def test_a_pdf_locked_with_an_empty_password_is_read(tmp_path: Path) -> None:
    assert text_of(write_pdf(tmp_path / "a.pdf", "Not for printing", password="")) == "Not for printing"


def test_what_a_font_without_a_table_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pypdf.PageObject, "extract_text", lambda page: "a\0b\ud800c")
    assert text_of(write_pdf(tmp_path / "a.pdf", "x")) == "ab?c"


def test_a_pdf_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "needs a password: save a copy" in refused(write_pdf(tmp_path / "a.pdf", "x", password="p"))
    assert "has no text layer, as a scan" in refused(write_pdf(tmp_path / "b.pdf", "", ""))
    raw = write_pdf(tmp_path / "c.pdf", "x").read_bytes()
    for damaged in (b"", b"%PDF-1.7\n", raw[: len(raw) // 3], b"no pdf at all"):
        (tmp_path / "d.pdf").write_bytes(damaged)
        assert "is no PDF, or a damaged one" in refused(tmp_path / "d.pdf")

    def needs_another_package(reader: pypdf.PdfReader, password: str) -> None:
        raise DependencyError("cryptography is required")

    monkeypatch.setattr(pypdf.PdfReader, "decrypt", needs_another_package)
    assert "is encrypted: save a copy" in refused(tmp_path / "a.pdf")


def test_other_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(b"PK\0\0")
    assert "is binary, not UTF-8 text: give text, Markdown" in refused(tmp_path / "a.dat")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    assert "not valid UTF-8 at byte offset 3" in refused(tmp_path / "b.txt")
    (tmp_path / "c.txt").write_text(" \n")
    assert "is empty" in refused(tmp_path / "c.txt")
    (tmp_path / "d.html").write_text("<script>1</script>")
    assert "shows no text" in refused(tmp_path / "d.html")
    assert "is a folder: give the files in it" in refused(tmp_path)
    assert "no file at" in refused(tmp_path / "nothing.txt")


@pytest.mark.parametrize(("name", "package"), [("a.pdf", "pypdf"), ("a.html", "bs4")])
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    write_pdf(tmp_path / name, "x")
    (tmp_path / "a.html").write_text("<p>x")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"is not installed: pip install 'rmat\[documents\]'"):
        read_file(tmp_path / name)
