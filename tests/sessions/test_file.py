"""What is on the disk: exact, private, and refused where it is not what was saved."""

import errno
import hashlib
import json
import random
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import rmat
from rmat.data.documents import code_document, text_document
from rmat.data.tokenizer import load_tokenizer
from rmat.generation.stream import generate
from rmat.model import LanguageModel, StreamState
from rmat.sessions.conversation import Conversation
from rmat.sessions.file import KEPT_TURNS, TAIL_TOKENS
from rmat.sessions.store import DamagedSession, SessionStore
from rmat.storage import digest, weights_fingerprint
from tests.makers.sessions import make_model, make_session, same

GO_ON = """
import sys, torch, rmat
from rmat.sessions.store import SessionStore
model, tokenizer = rmat.load(sys.argv[1])
session = SessionStore(sys.argv[2]).load("x", model)
text = rmat.generate(model, tokenizer, "", max_new_tokens=30, temperature=0.9, seed=5,
                     state=session.state, next_logits=session.next_logits)
list(text)
print(text.tokens, text.next_logits.numpy().tobytes().hex())
"""


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return make_model()


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore(tmp_path / "sessions")


def file_of(store: SessionStore, name: str = "x") -> Path:
    return store.folder / f"{name}.safetensors"


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]) -> None:
    """Change description and tensors of a file, and have its checksums fit again."""
    with safe_open(str(path), framework="pt") as file:
        fields = json.loads(file.metadata()["rmat"])
    tensors = load_file(path)
    change(fields, tensors)
    fields["sha256"] = digest(tensors)
    text = json.dumps(fields)
    save_file(tensors, path, {"rmat": text, "sha256": hashlib.sha256(text.encode()).hexdigest()})


def test_a_new_process_goes_on_bit_for_bit(model: LanguageModel, store: SessionStore, tmp_path: Path) -> None:
    tokenizer = load_tokenizer("bytes")
    model.save(tmp_path / "model", tokenizer=tokenizer)
    session = make_session(model)
    whole = generate(
        model,
        tokenizer,
        "",
        max_new_tokens=30,
        temperature=0.9,
        seed=5,
        state=session.state,
        next_logits=session.next_logits,
    )
    list(whole)
    assert len(whole.tokens) == 30 and whole.next_logits is not None
    store.save("x", session, model)
    done = subprocess.run(
        [sys.executable, "-c", GO_ON, str(tmp_path / "model"), str(store.folder)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == f"{whole.tokens} {whole.next_logits.numpy().tobytes().hex()}", done.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_comes_back_is_what_was_saved(dtype: torch.dtype, store: SessionStore) -> None:
    model = make_model().to(dtype)
    session = make_session(model)
    session = replace(session, next_logits=session.next_logits.float())
    store.save("x", session, model)
    loaded = store.load("x", model)
    assert same(
        replace(loaded, state=loaded.state.to(torch.float64)),
        replace(session, state=session.state.to(torch.float64)),
    )
    assert loaded.state.dtype == dtype


def test_numbers_that_are_none_are_kept(model: LanguageModel, store: SessionStore) -> None:
    session = make_session(model)
    strange = torch.full_like(session.next_logits, torch.nan)
    strange[0], strange[1] = torch.inf, -0.0
    session = replace(session, next_logits=strange)
    store.save("x", session, model)
    assert same(store.load("x", model), session)


def test_only_the_owner_can_read_and_nothing_runs(model: LanguageModel, store: SessionStore) -> None:
    store.save("x", make_session(model), model)
    store.fork("x", "y")
    for name in ("x", "y"):
        assert stat.S_IMODE(file_of(store, name).stat().st_mode) == 0o600
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    with safe_open(str(file_of(store)), framework="pt") as file:
        fields = json.loads(file.metadata()["rmat"])
    assert fields["format"] == "rmat-session" and fields["version"] == 2
    assert fields["model"] == weights_fingerprint(model) and fields["tokens_read"] == 21


def test_the_newest_of_much_is_kept(model: LanguageModel, store: SessionStore) -> None:
    turns = tuple(("user", f"turn {number}") for number in range(KEPT_TURNS + 5))
    tail = tuple(range(TAIL_TOKENS + 9))
    info = store.save("x", replace(make_session(model), turns=turns, tail=tail), model)
    loaded = store.load("x", model)
    assert loaded.turns == turns[5:] and loaded.tail == tail[9:]
    assert info.turns == KEPT_TURNS and store.turns("x") == turns[5:]


@pytest.mark.parametrize(
    "text", ["", "h\u00e9 \u4f60\u597d \U0001f600", "\0\n\r\x1b[0m", "\ud800 alone", '"}\\', "x" * 300_000]
)
def test_any_text_is_kept(text: str, model: LanguageModel, store: SessionStore) -> None:
    session = replace(make_session(model), turns=(("user", text), (text[:20], "role")), tail=())
    store.save("x", session, model)
    assert same(store.load("x", model), session)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, 0.5, 0.9, -1])
def test_a_shortened_file_is_refused_until_it_is_begun_anew(
    kept: float, model: LanguageModel, store: SessionStore
) -> None:
    """Each time; what begins it anew puts the file aside."""
    store.save("x", make_session(model), model)
    whole = file_of(store).read_bytes()
    file_of(store).write_bytes(whole[: int(kept * len(whole)) if 0 < kept < 1 else int(kept)])
    damaged = file_of(store).read_bytes()
    for use in (store.load, store.find, store.load):
        with pytest.raises(DamagedSession, match="'x' is damaged"):
            use("x", model)
    assert store.damaged == ["x"] and not store.quarantined and file_of(store).read_bytes() == damaged
    store.require_free("x")
    store.save("x", make_session(model, 5), model)
    assert store.load("x", model).tokens_read == 5 and not store.damaged
    assert [path.read_bytes() for path in store.quarantined] == [damaged]


def test_flipped_bits_are_found_wherever_they_are(model: LanguageModel, store: SessionStore) -> None:
    session = make_session(model)
    store.save("x", session, model)
    whole = file_of(store).read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    draw = random.Random(0)
    places = [*range(8), *draw.sample(range(8, end), 90), *draw.sample(range(end, len(whole)), 30)]
    found = 0
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << draw.randrange(8)
        file_of(store).write_bytes(changed)
        try:
            # The header has spaces at its end in which nothing is written; whatever loads is what was saved.
            assert same(store.load("x", model), session), place
        except DamagedSession:
            found += 1
    assert found > 110


@pytest.mark.parametrize("field", ["version", "model", "tokens_read", "turns", "created", "sha256"])
def test_a_changed_description_is_found(field: str, model: LanguageModel, store: SessionStore) -> None:
    """Also by `info`, and also where it claims to be in a newer format or of another model."""
    for use in (lambda: store.info("x"), lambda: store.load("x", model), lambda: store.fork("x", "y")):
        store.save("x", make_session(model), model)
        data = bytearray(file_of(store).read_bytes())
        key = f'\\"{field}\\": '.encode()
        place = data.index(key) + len(key) + (2 if field in ("model", "sha256") else 0)
        data[place] = ord("2" if data[place] == ord("1") else "1")
        file_of(store).write_bytes(data)
        with pytest.raises(DamagedSession):
            use()


def test_wrong_tensors_are_found_though_the_checksums_fit(model: LanguageModel, store: SessionStore) -> None:
    def drop(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        del tensors["layers.1.slot_key"]

    def misshape(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors["next_logits"] = tensors["next_logits"][:-1].clone()

    def no_logits(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        del tensors["next_logits"]

    def two_rows(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors.keys() - {"next_logits", "tail", "turns"}:
            tensors[name] = torch.cat([tensors[name]] * 2)

    def other_turns(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors["turns"] = torch.tensor([1, 2, 3], dtype=torch.uint8)

    def odd_tail(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors["tail"] = tensors["tail"].float()

    def no_count(fields: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
        del fields["tokens_read"]

    def no_session(fields: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
        fields["format"] = "something else"

    changes = (drop, misshape, no_logits, two_rows, other_turns, odd_tail, no_count, no_session)

    def odd_documents(fields: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
        fields["documents"] = [{"name": "x"}]

    changes = (
        drop, misshape, no_logits, two_rows, other_turns, odd_tail, no_count, no_session, odd_documents
    )  # fmt: skip
    for change in changes:
        file_of(store).unlink(missing_ok=True)
        store.save("x", make_session(model), model)
        rewrite(file_of(store), change)
        with pytest.raises(DamagedSession):
            store.load("x", model)


def test_a_plain_state_is_no_session(model: LanguageModel, store: SessionStore) -> None:
    session = make_session(model)
    store.save("x", session, model)
    state: StreamState = session.state
    state.save(file_of(store))
    with pytest.raises(DamagedSession):
        store.load("x", model)


def test_a_newer_format_is_refused_and_stays(model: LanguageModel, store: SessionStore) -> None:
    store.save("x", make_session(model), model)
    rewrite(file_of(store), lambda fields, _: fields.update(version=3, more="unknown"))
    before = file_of(store).read_bytes()
    for use in (store.load, lambda name, model: store.save(name, make_session(model), model)):
        with pytest.raises(ValueError, match="format version 3, this rmat reads 1 to 2"):
            use("x", model)
    with pytest.raises(ValueError, match="format version 3"):
        store.fork("x", "y")
    assert store.list() == [] and not store.quarantined and file_of(store).read_bytes() == before


def test_another_models_session_is_refused_and_stays(model: LanguageModel, store: SessionStore) -> None:
    store.save("x", make_session(model), model)
    other = make_model(seed=1)
    with pytest.raises(ValueError, match=f"{weights_fingerprint(model)}.*{weights_fingerprint(other)}"):
        store.load("x", other)
    with torch.no_grad():
        other.load_state_dict(model.state_dict())
        store.load("x", other)
        next(other.parameters())[0, 0] += 1
    with pytest.raises(ValueError, match="read by the model"):
        store.load("x", other)
    assert not store.quarantined and same(store.load("x", model), make_session(model))


def test_quarantine_keeps_every_file(model: LanguageModel, store: SessionStore) -> None:
    for number in range(3):
        store.save("x", make_session(model), model)
        file_of(store).write_bytes(b"%d" % number)
    store.save("x", make_session(model), model)
    assert [path.read_bytes() for path in store.quarantined] == [b"0", b"1", b"2"]
    assert stat.S_IMODE(store.quarantined[0].parent.stat().st_mode) == 0o700


def test_a_file_of_version_1_is_read(model: LanguageModel, store: SessionStore) -> None:
    """Bit for bit; saved again, it is one of this version."""
    session = make_session(model)
    store.save("x", session, model)

    def as_it_was(fields: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
        fields["version"] = 1
        for name in ("model_name", "documents", "reading"):
            del fields[name]

    rewrite(file_of(store), as_it_was)
    assert same(store.load("x", model), session)
    info = store.info("x")
    assert (info.model_name, info.documents, info.reading) == (None, (), 0)
    store.save("x", store.load("x", model), model)
    assert same(store.load("x", model), session) and store.info("x").created == info.created


def test_what_was_read_and_by_whom_is_kept(model: LanguageModel, store: SessionStore, tmp_path: Path) -> None:
    tokenizer = load_tokenizer("bytes")
    make_model().save(tmp_path / "small" / "model", tokenizer=tokenizer)
    loaded = rmat.load(tmp_path / "small")[0]
    talk = Conversation(loaded, tokenizer)
    talk.read_documents([text_document("\u00e4.txt", "one"), code_document("b.py", "x = 1")])
    talk.add([("user", "more")])
    info = store.save("x", talk.session, loaded)
    assert info.model_name == "small" and info.reading == 0
    expected = [("\u00e4.txt", 3, 3, 3, True), ("b.py", 10, 10, 11, True)]
    for documents in (info.documents, store.load("x", loaded).documents, store.fork("x", "y").documents):
        found = [(each.name, each.bytes, each.bytes_read, each.tokens, each.complete) for each in documents]
        assert found == expected


def test_other_default_devices_change_nothing(model: LanguageModel, store: SessionStore) -> None:
    session = make_session(model)
    with torch.device("meta"):
        store.save("x", session, model)
        loaded = store.load("x", model)
    assert same(loaded, session)


def test_a_full_disk_leaves_the_session_as_it_was(
    model: LanguageModel, store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save("x", make_session(model), model)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="no space left on device"):
            store.save("x", make_session(model, 5), model)
    assert store.load("x", model).tokens_read == 21
    assert [path.name for path in store.folder.rglob("*") if path.is_file()] == ["x.safetensors"]
