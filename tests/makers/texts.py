"""Small stores and files for the tests of the data package."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rmat.data.documents import Document, encode_documents, text_document
from rmat.data.store import StoreWriter, TokenStore
from rmat.data.tokenizer import Tokenizer, load_tokenizer


def make_store(
    folder: Path,
    documents: Sequence[Document | str],
    tokenizer: Tokenizer | None = None,
    parts: Sequence[int] | None = None,
) -> TokenStore:
    """A store of these documents; strings become documents named by their number."""
    tokenizer = tokenizer or load_tokenizer("bytes")
    made = [text_document(str(n), d) if isinstance(d, str) else d for n, d in enumerate(documents)]
    writer = StoreWriter(folder, tokenizer)
    for number, (document, encoded) in enumerate(zip(made, encode_documents(tokenizer, made), strict=True)):
        writer.add(document.name, encoded, document.n_bytes, parts[number] if parts else 0)
    return writer.close()


def write_jsonl(path: Path, records: Sequence[Any]) -> Path:
    """A JSONL file of these records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def write_files(root: Path, files: dict[str, str | bytes]) -> Path:
    """Files of these contents below `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def write_pdf(path: Path, *pages: str, password: str | None = None) -> Path:
    """A PDF with a line of text on each page; without text where it is empty."""
    import pypdf
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = pypdf.PdfWriter()
    font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    for text in pages:
        page = writer.add_blank_page(200, 200)
        fonts = DictionaryObject({NameObject(k): NameObject(v) for k, v in font.items()})
        named = DictionaryObject({NameObject("/F"): fonts})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): named})
        content = DecodedStreamObject()
        content.set_data(f"BT /F 12 Tf 20 100 Td ({text}) Tj ET".encode() if text else b"")
        page[NameObject("/Contents")] = writer._add_object(content)
    if password is not None:
        writer.encrypt(password, owner_password="owner", algorithm="RC4-128")
    writer.write(path)
    return path
