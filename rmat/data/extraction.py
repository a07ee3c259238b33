"""A file as a document to read: the text of PDF and HTML, other files as they are."""

from __future__ import annotations

import io
import logging
import re
import warnings
from pathlib import Path

from rmat.data.documents import MAX_DOCUMENT_BYTES, Document, code_document, text_document
from rmat.data.files import (
    DOCUMENT_SUFFIXES,
    READ_ERRORS,
    Unusable,
    inner_suffix,
    is_code,
    open_file,
    read_raw,
    read_text,
    refuse_binary,
    refuse_by_suffix,
    shown,
    too_large,
    unreadable,
)

_UNSEEN = ("head", "title", "script", "style", "noscript", "template", "svg", "iframe", "object")
"""Elements that show no text of their own."""

_PARAGRAPHS = (
    *("address", "article", "aside", "blockquote", "body", "details", "dialog", "div", "dl", "fieldset"),
    *("figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "main"),
    *("nav", "ol", "p", "pre", "section", "summary", "table", "ul"),
)
"""Elements with a blank line around them."""

_LINES = ("caption", "dd", "dt", "li", "option", "tr")
"""Elements on lines of their own."""

# Unicode's noncharacters are for internal use: no text holds them.
_PARAGRAPH, _LINE, _BREAK = "\ufdd0\ufdd1\ufdd2"
_KEPT = {ord(" "): "\ufdd3", ord("\n"): "\ufdd4", ord("\t"): "\ufdd5"}
"""White space of preformatted text, which stays as it is."""

_AROUND_ENDS = _PARAGRAPH + _LINE + _BREAK + _KEPT[ord("\n")] + r"\s"

_AROUND = {
    **dict.fromkeys(_PARAGRAPHS, (_PARAGRAPH, _PARAGRAPH)),
    **dict.fromkeys(_LINES, (_LINE, _LINE)),
    **dict.fromkeys(("td", "th"), ("", "\t")),
    "br": (_BREAK, ""),
}
"""Element -> what stands before and after its content."""


def read_file(path: Path) -> Document:
    """The document in a file: the text of PDF and HTML (by suffix, or by how a PDF begins), any other file as
    UTF-8 text.

    Code carries its name in front, as in training (`rmat.data.files.is_code`).

    Raises ValueError, one sentence naming the file and what to do, for one that is missing, binary, empty,
    damaged, encrypted, too large or without text, and where an optional package is not installed.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the files in it, such as {path}/*.md")
    if not path.is_file():
        raise ValueError(f"no file at {path}: give a document that exists")
    refuse_by_suffix(path)
    if not _is_pdf(path):
        refuse_binary(path)
    return file_document(path, shown(path.name))


def file_document(path: Path, name: str) -> Document:
    """The document of one file of text, code, HTML or PDF, called `name`. Raises Unusable."""
    refuse_by_suffix(path)
    if _is_pdf(path):
        return _document(
            path, name, _pdf_text(path), "has no text layer, as a scan: recognise its text first (OCR)"
        )
    if inner_suffix(path) in DOCUMENT_SUFFIXES:
        return _document(path, name, _html_text(path), "shows no text: give a page whose text is in the file")
    text = read_text(path)
    return code_document(name, text) if is_code(path) else text_document(name, text)


def _is_pdf(path: Path) -> bool:
    try:
        with open_file(path) as file:
            return inner_suffix(path) == ".pdf" or file.read(5) == b"%PDF-"
    except READ_ERRORS as error:
        raise unreadable(path, error) from None


def _document(path: Path, name: str, text: str, without: str) -> Document:
    if not text:
        raise Unusable("empty", f"{path} {without}")
    if len(text) > MAX_DOCUMENT_BYTES:
        raise Unusable("too large", too_large(str(path)))
    return text_document(name, text)


def _html_text(path: Path) -> str:
    """What a page shows: a blank line between paragraphs, a tab between cells, preformatted text as it is."""
    try:
        from bs4 import BeautifulSoup
        from bs4.element import NavigableString, PageElement, Tag
    except ImportError:
        raise _needs("HTML", "beautifulsoup4") from None
    logging.getLogger("bs4.dammit").setLevel(logging.ERROR)  # it tells of characters that it replaces
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as that XHTML is also XML
        soup = BeautifulSoup(read_raw(path), "html.parser")  # it finds the encoding that the page declares
    pieces: list[str] = []
    todo: list[tuple[PageElement | str, bool]] = [(soup, False)]
    while todo:  # no recursion: a page may be nested deeper than Python calls
        node, kept = todo.pop()
        if isinstance(node, Tag):
            if node.name not in _UNSEEN:
                before, after = _AROUND.get(node.name, ("", ""))
                pieces.append(before)
                todo.append((after, False))
                kept = kept or node.name == "pre"
                todo += [(child, kept) for child in reversed(node.contents)]
        elif type(node) is NavigableString:  # its subclasses are comments and declarations
            pieces.append(node.translate(_KEPT) if kept else re.sub(r"\s+", " ", node))
        elif type(node) is str:
            pieces.append(node)
    text = re.sub(" +", " ", "".join(pieces))
    text = text.encode("utf-8", "replace").decode()  # a page may spell halves of characters
    text = re.sub(f"[{_AROUND_ENDS}]+", _line_ends, text).strip()
    return text.translate({ord(mark): chr(place) for place, mark in _KEPT.items()})


def _line_ends(around: re.Match[str]) -> str:
    """The line ends that white space and ends of lines and paragraphs, one behind the other, come to."""
    if _PARAGRAPH in around[0] or around[0].count(_BREAK) > 1:
        return "\n\n"
    return "\n" if _LINE in around[0] or _BREAK in around[0] else around[0]


def _pdf_text(path: Path) -> str:
    """The text of all pages, a blank line between two."""
    try:
        import pypdf
        from pypdf.errors import DependencyError
    except ImportError:
        raise _needs("PDF", "pypdf") from None
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it tells of every oddity that it works around
    try:
        reader = pypdf.PdfReader(io.BytesIO(read_raw(path)))
        # Many are encrypted with an empty password, only to forbid printing.
        locked = reader.is_encrypted and not reader.decrypt("")
        pages = [] if locked else [page.extract_text() for page in reader.pages]
    except Unusable:
        raise
    except DependencyError:
        raise Unusable("encrypted", f"{path} is encrypted: {_UNLOCK}") from None
    except Exception as error:  # a damaged file makes the package fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Unusable(
            "damaged", f"{path} is no PDF, or a damaged one ({reason}): make or fetch it anew"
        ) from None
    if locked:
        raise Unusable("encrypted", f"{path} needs a password: {_UNLOCK}")
    text = "\n\n".join(page.strip() for page in pages if page.strip())
    # Fonts without a proper table give NUL and halves of characters, which are no text.
    return text.replace("\0", "").encode("utf-8", "replace").decode()


_UNLOCK = "save a copy without protection and read that"


def _needs(kind: str, package: str) -> Unusable:
    return Unusable(
        f"{kind}, which needs {package}",
        f"reading {kind} needs the package {package}, which is not installed: pip install 'rmat[documents]'",
    )
