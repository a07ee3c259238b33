"""An imported model in every use: chat, read, ask, complete, generate, the server."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

import rmat
from rmat.cli.main import main
from rmat.data.documents import code_document, encode_turns, text_document
from rmat.data.tokenizer import Tokenizer
from rmat.engine.engine import Engine
from rmat.generation import reader
from rmat.model import LanguageModel
from rmat.pretrained.folder import import_model
from rmat.serving.app import create_app
from rmat.sessions.store import SessionStore
from tests.makers.pretrained import source_folder

QUESTIONS = ["Hello?", "What is the name?", "And the thing?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("imported")
    import_model(source_folder(place / "source"), place / "smol", window=64, n_slots=48)
    return place / "smol"


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[LanguageModel, Tokenizer]:
    model, tokenizer = rmat.load(folder)
    assert tokenizer is not None
    return model, tokenizer


def test_a_conversation_reads_what_the_template_writes(loaded: tuple[LanguageModel, Tokenizer]) -> None:
    model, tokenizer = loaded
    talk = rmat.Conversation(model, tokenizer)
    assert talk.session.tokens_read == 0
    for question in QUESTIONS:
        "".join(talk.say(question, max_new_tokens=7, seed=1))
    assert len(talk.session.turns) == 6
    special = tokenizer.special_names
    spelled = "".join(special.get(i) or tokenizer.decode([i]) for i in talk.session.tail)
    expected = "<|im_start|>system\nBe brief<|im_end|>\n"
    for role, text in talk.session.turns:
        expected += f"<|im_start|>{role}\n{text}<|im_end|>\n"
    if "\ufffd" not in expected:  # a random model may write half a character
        assert spelled == expected
    assert spelled.count("Be brief") == 1


def test_documents_and_questions_make_whole_turns(loaded: tuple[LanguageModel, Tokenizer]) -> None:
    """A document is a turn of the system before the question about it, also behind an answer; another one
    stands in the same turn."""
    model, tokenizer = loaded
    talk = rmat.Conversation(model, tokenizer)
    special = tokenizer.special_names

    def written() -> str:
        return "".join(special.get(i) or tokenizer.decode([i]) for i in talk.session.tail)

    counts = talk.read_documents([text_document("a", "the thing is here"), code_document("b.py", "x = 1")])
    assert counts == [len(tokenizer.encode("the thing is here")), len(tokenizer.encode("b.py\nx = 1"))]
    letters: Any = {"max_new_tokens": 3, "logit_bias": {tokenizer.encode("x")[0]: 100.0}}
    opened = "<|im_start|>system\n"
    assert written() == f"{opened}the thing is here\n\nb.py\nx = 1"
    first = "".join(talk.say("Where?", **letters))
    talk.read("more")
    talk.read(" words")
    second = "".join(talk.say("Why?", **letters))
    talk.read_document(text_document("c", "the user"))
    talk.add([("system", "Be kind.")])
    expected = f"{opened}the thing is here\n\nb.py\nx = 1<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n"
    expected += f"<|im_start|>assistant\n{first}<|im_end|>\n"
    expected += "<|im_start|>system\nmore words<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
    expected += f"<|im_start|>assistant\n{second}<|im_end|>\n"
    expected += "<|im_start|>system\nthe user<|im_end|>\n<|im_start|>system\nBe kind.<|im_end|>\n"
    assert first == second == "xxx" and written() == expected
    assert [role for role, _ in talk.session.turns] == ["user", "assistant"] * 2 + ["system"]


def test_an_interrupted_document_goes_on_in_its_turn(
    loaded: tuple[LanguageModel, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "PIECE_TOKENS", 64)
    model, tokenizer = loaded
    whole, talk = rmat.Conversation(model, tokenizer), rmat.Conversation(model, tokenizer)
    documents = [text_document("a", "the user and the assistant " * 60), text_document("b", "hello " * 120)]
    counts = whole.read_documents(documents)

    for after in (1, 500, 1000, 1650):
        told: list[int] = []

        def progress(n_bytes: int, after: int = after, told: list[int] = told) -> None:
            told.append(n_bytes)
            if sum(told) >= after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            talk.read_documents(documents, progress=progress)
        assert talk.session.reading == 2
        talk = rmat.Conversation(model, tokenizer, talk.session)
    assert talk.read_documents(documents) == counts
    assert talk.session.tail == whole.session.tail
    assert torch.equal(talk.session.next_logits, whole.session.next_logits)


def test_a_cut_answer_is_closed(loaded: tuple[LanguageModel, Tokenizer]) -> None:
    model, tokenizer = loaded
    talk = rmat.Conversation(model, tokenizer)
    reply = talk.say("Hello", max_new_tokens=9, seed=2)
    next(reply)
    reply.cut()
    assert talk.session.tail[-2:] == (tokenizer.special_id("turn_end"), *tokenizer.closing)


def test_text_goes_on_as_the_source_reads_it(loaded: tuple[LanguageModel, Tokenizer]) -> None:
    model, tokenizer = loaded
    writing = rmat.generate(model, tokenizer, "the user", max_new_tokens=2, temperature=0)
    "".join(writing)
    assert writing.prompt_tokens == len(tokenizer.encode("the user"))
    empty = rmat.generate(model, tokenizer, max_new_tokens=2, seed=0)
    "".join(empty)
    assert empty.prompt_tokens == 1  # something must be read first: what separates documents


def test_a_completion_at_a_cursor(loaded: tuple[LanguageModel, Tokenizer]) -> None:
    model, tokenizer = loaded
    writing = rmat.complete(
        model,
        tokenizer,
        "def f(x):\n    ret",
        file_name="a.py",
        context=[("b.py", "x = 1\n")],
        max_new_tokens=5,
    )
    "".join(writing)
    assert writing.mode == "plain" and writing.finish is not None
    with pytest.raises(ValueError, match="no token for 'fim_suffix'"):
        rmat.complete(model, tokenizer, "a", "b", mode="fim")


def test_the_commands(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "book.txt").write_text("the user and the assistant say hello. " * 20)
    (tmp_path / "code.py").write_text("x = 1\ny = \n")
    sessions = ["--sessions", str(tmp_path / "sessions"), "--session", "b"]
    short = ["--max-new-tokens", "4", "--seed", "1", "--json"]

    def told(*words: str) -> dict[str, Any]:
        assert main([*words]) == 0
        result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return result

    model = str(folder)
    card = told("read", model, str(tmp_path / "book.txt"), *sessions, "--json")
    answer = told("ask", model, "What?", *sessions, *short)
    assert answer["new_tokens"] <= 4 and answer["tokens_read"] > card["documents"][0]["tokens"]
    assert told("generate", model, "the user", *short)["prompt_tokens"] > 0
    told("complete", model, f"{tmp_path / 'code.py'}:2", "--context", str(tmp_path), *short)
    typed = io.TextIOWrapper(io.BytesIO(b"Hello\nAnd you?\n"))
    monkeypatch.setattr(sys, "stdin", typed)
    chat = told("chat", model, "--sessions", str(tmp_path / "sessions"), "--session", "c", *short)
    assert chat["exchanges"] == 2
    monkeypatch.undo()
    assert told("sessions", "list", "--sessions", str(tmp_path / "sessions"), "--json")["sessions"]


def test_the_server_reads_what_the_template_writes(
    loaded: tuple[LanguageModel, Tokenizer], tmp_path: Path
) -> None:
    model, tokenizer = loaded
    store = SessionStore(tmp_path)
    with Engine(model, tokenizer) as engine:
        app = create_app(engine, lambda _: store, model=model, tokenizer=tokenizer, model_name="smol")
        with TestClient(app) as client:

            def chat(*turns: tuple[str, str], **body: Any) -> dict[str, Any]:
                messages = [{"role": role, "content": text} for role, text in turns]
                body = {"messages": messages, "max_tokens": 5, "seed": 5, **body}
                answer = client.post("/v1/chat/completions", json=body)
                assert answer.status_code == 200, answer.text
                return dict(answer.json())

            turns = [("user", "Hello"), ("assistant", "Yes."), ("user", "Why?")]
            asked = encode_turns(tokenizer, turns, answer=True)
            assert chat(*turns)["usage"]["prompt_tokens"] == len(asked)
            messages = [{"role": role, "content": text} for role, text in turns]
            listed = client.post("/tokenize", json={"messages": messages}).json()
            assert listed["tokens"] == asked
            for question in ("Hello", "Why?"):
                chat(("user", question), session="kept")
            kept = store.load("kept", model)
            talk = rmat.Conversation(model, tokenizer)
            for question in ("Hello", "Why?"):
                "".join(talk.say(question, max_new_tokens=5, seed=5, temperature=1.0))
            assert kept.tail == talk.session.tail
            assert kept.turns == talk.session.turns
