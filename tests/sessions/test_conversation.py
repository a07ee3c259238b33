"""A conversation reads what training showed, keeps what it said, and holds its place as a value."""

from pathlib import Path

import pytest
import torch

from rmat.data.documents import (
    Document,
    code_document,
    dialogue_document,
    encode_documents,
    encode_turns,
    text_document,
)
from rmat.data.tokenizer import Tokenizer, train_bpe
from rmat.generation.reader import read_row as read
from rmat.model import LanguageModel
from rmat.sessions.conversation import FORGETTABLE, Conversation
from rmat.sessions.file import KEPT_DOCUMENTS, KEPT_TURNS, TAIL_TOKENS, Session
from rmat.sessions.store import SessionStore

TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. "


@pytest.fixture
def talk(model: LanguageModel, tokenizer: Tokenizer) -> Conversation:
    return Conversation(model, tokenizer)


@pytest.fixture
def ending(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list; the token put into it is always the likeliest."""
    wanted: list[int] = []

    logits = model.logits

    def bend(hidden: torch.Tensor) -> torch.Tensor:
        found = logits(hidden)
        found[..., wanted] += 1e4
        return found

    monkeypatch.setattr(model, "logits", bend)
    return wanted


def same(one: Session, other: Session) -> None:
    """Equal but for rounding."""
    assert (one.tokens_read, one.tail, one.turns) == (other.tokens_read, other.tail, other.turns)
    torch.testing.assert_close(one.state.tensors(), other.state.tensors(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.next_logits, other.next_logits, atol=1e-3, rtol=1e-4)


def answer(talk: Conversation, text: str = "Why?", **sampling: object) -> str:
    return "".join(talk.say(text, **{"max_new_tokens": 10, "seed": 1, **sampling}))


def read_anew(talk: Conversation, ids: tuple[int, ...]) -> Session:
    """The session that reading these ids from nothing gives, its turns those of `talk`."""
    logits, state = read(talk.model, ids, None)
    return Session(
        state=state, next_logits=logits.float(), tokens_read=len(ids), tail=ids, turns=talk.session.turns
    )


def test_turns_are_those_of_training(tokenizer: Tokenizer) -> None:
    turns = [("system", "Be kind."), ("user", "Hé"), ("assistant", ""), ("Ann", "me too <|user|>")]
    (trained,) = encode_documents(tokenizer, [dialogue_document("x", turns)])
    assert encode_turns(tokenizer, turns) == trained.tokens[1:].tolist()
    assert encode_turns(tokenizer, []) == []
    opened = [tokenizer.special_id("assistant"), *tokenizer.encode("Hm")]
    assert encode_turns(tokenizer, turns, answer=True, begun="Hm") == encode_turns(tokenizer, turns) + opened


def test_a_document_is_opened_as_in_training(talk: Conversation, tokenizer: Tokenizer) -> None:
    (trained,) = encode_documents(tokenizer, [text_document("x", TEXT * 9)])
    assert talk.session.tokens_read == 1
    talk.read(TEXT * 9)
    same(talk.session, read_anew(talk, tuple(trained.tokens.tolist())))


def test_text_may_be_read_in_any_pieces(
    talk: Conversation, model: LanguageModel, tokenizer: Tokenizer
) -> None:
    other = Conversation(model, tokenizer)
    talk.read(TEXT * 120)
    for piece in (TEXT[:7], "", TEXT[7:] + TEXT * 80, TEXT * 39):
        other.read(piece)
    same(talk.session, other.session)


def test_documents_of_one_session(talk: Conversation, tokenizer: Tokenizer) -> None:
    """Code stands behind its name as in training; before text, a blank line, unless it is the first."""
    counts = [
        talk.read_document(document)
        for document in (text_document("a", "one"), text_document("b", "two"), code_document("c.py", "x = 1"))
    ]
    document, file_name = (tokenizer.special_id(name) for name in ("document", "file_name"))
    assert talk.session.tail == (document, *b"one\n\ntwo", file_name, *b"c.py\nx = 1")
    assert counts == [3, 5, 11] and talk.session.tokens_read == 20


def test_progress_counts_bytes(talk: Conversation) -> None:
    told: list[int] = []
    talk.read("ä" * 6000, progress=told.append)
    assert sum(told) == 12_000 and len(told) > 1


def test_an_interrupted_reading_leaves_no_trace(talk: Conversation) -> None:
    before = talk.session

    def interrupt(n_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.read(TEXT * 100, progress=interrupt)
    assert talk.session is before


def interrupted(talk: Conversation, documents: list[Document], after: int) -> None:
    """Read documents, and be interrupted when so many bytes were read."""
    read_bytes = 0

    def progress(n_bytes: int) -> None:
        nonlocal read_bytes
        read_bytes += n_bytes
        if read_bytes >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.read_documents(documents, progress=progress)


@pytest.mark.parametrize("begun", [False, True])
def test_an_interrupted_reading_goes_on_bit_for_bit(
    begun: bool, model: LanguageModel, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Between any two pieces, in another process that took the session up."""
    documents = [
        text_document("a", TEXT * 120),
        code_document("b.py", "x = 1\n" * 900),
        text_document("c", TEXT),
    ]
    whole, store = Conversation(model, tokenizer), SessionStore(tmp_path)
    talk = Conversation(model, tokenizer)
    if begun:
        for each in (whole, talk):
            each.read_document(text_document("before", "earlier"))
    counts, total = whole.read_documents(documents), sum(document.n_bytes for document in documents)
    told: list[int] = []
    for after in (1, 5000, 9000, 12_000):
        interrupted(talk, documents, after)
        assert talk.session.reading == 3
        assert sum(each.bytes_read for each in talk.session.documents[-3:]) < total
        store.save("x", talk.session, model)
        talk = Conversation(model, tokenizer, store.load("x", model))
    assert talk.read_documents(documents, progress=told.append) == counts
    assert total <= sum(told) <= total + 4 and told[0] > 12_000, "what was read before is told first, in one"
    one, other = whole.session, talk.session
    assert (one.tokens_read, one.tail, one.documents) == (other.tokens_read, other.tail, other.documents)
    assert one.reading == other.reading == 0 and all(each.complete for each in one.documents)
    assert torch.equal(one.next_logits, other.next_logits)
    states = one.state.tensors(), other.state.tensors()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_an_interrupted_reading_is_over_once_something_else_is_read(talk: Conversation) -> None:
    documents = [text_document("a", TEXT * 120), text_document("b", TEXT)]
    interrupted(talk, documents, 1)
    begun = talk.session
    assert begun.reading == 2 and [each.tokens for each in begun.documents] == [4095, 0]
    assert len(answer(talk, "What is it about?", max_new_tokens=3)) == 3
    assert talk.session.reading == 0
    assert [(each.name, each.bytes_read, each.complete) for each in talk.session.documents] == [
        ("a", 4095, False)
    ]
    other = Conversation(talk.model, talk.tokenizer, begun)
    assert other.read_documents(documents[::-1]) == [len(TEXT) + 2, len(TEXT) * 120 + 2]
    assert [each.name for each in other.session.documents] == ["a", "b", "a"] and not other.session.reading


def test_a_single_document_is_read_whole_or_not_at_all(talk: Conversation) -> None:
    before = talk.session

    def interrupt(n_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.read_document(text_document("a", TEXT * 120), progress=interrupt)
    assert talk.session is before


def test_the_last_documents_are_named(talk: Conversation) -> None:
    for number in range(KEPT_DOCUMENTS + 5):
        talk.read_document(text_document(str(number), "x"))
    assert [each.name for each in talk.session.documents] == [str(n) for n in range(5, KEPT_DOCUMENTS + 5)]


def test_another_default_device_changes_nothing(talk: Conversation) -> None:
    expected = answer(talk.fork())
    with torch.device("meta"):
        assert answer(Conversation(talk.model, talk.tokenizer)) == expected


def test_the_session_is_a_value_of_one_size(talk: Conversation) -> None:
    before = talk.session
    kept = {name: tensor.clone() for name, tensor in before.state.tensors().items()}
    talk.read(TEXT * 120)
    answer(talk)
    assert talk.session.state.nbytes == before.state.nbytes and before.tokens_read == 1
    assert all(torch.equal(kept[name], tensor) for name, tensor in before.state.tensors().items())
    assert len(talk.session.tail) == TAIL_TOKENS < talk.session.tokens_read


@pytest.mark.parametrize("stop", [(), ("e",)])
def test_both_turns_of_an_exchange_are_closed(
    talk: Conversation, tokenizer: Tokenizer, stop: tuple[str, ...]
) -> None:
    talk.add([("system", "Be brief.")])
    reply = talk.say("Why?", max_new_tokens=40, seed=1, stop=stop)
    text = "".join(reply)
    assert reply.finish == ("stop" if stop else "length") and reply.text == text
    document, turn_end = (tokenizer.special_id(name) for name in ("document", "turn_end"))
    asked = encode_turns(tokenizer, [("system", "Be brief."), ("user", "Why?")], answer=True)
    written = (text + "".join(stop)).encode()  # the stop string was written too, it is only not shown
    assert len(written) == reply.new_tokens
    assert talk.session.tail == (document, *asked, *written, turn_end)
    assert talk.session.turns == (("system", "Be brief."), ("user", "Why?"), ("assistant", text))
    same(talk.session, read_anew(talk, talk.session.tail))


@pytest.mark.parametrize("name", ["turn_end", "document"])
def test_an_answer_that_the_model_ends(
    talk: Conversation, tokenizer: Tokenizer, ending: list[int], name: str
) -> None:
    """One turn end is in the session, whether the model wrote it or a document token, which is left out."""
    ending.append(tokenizer.special_id(name))
    assert answer(talk) == ""
    turn_end = tokenizer.special_id("turn_end")
    assert talk.session.tail[-3:] == (turn_end, tokenizer.special_id("assistant"), turn_end)
    assert tokenizer.special_id("document") not in talk.session.tail[1:]
    same(talk.session, read_anew(talk, talk.session.tail))


def test_nothing_is_said_before_the_answer_is_complete(talk: Conversation) -> None:
    before = talk.session
    reply = talk.say("Why?", max_new_tokens=5)
    next(reply)
    assert talk.session is before and reply.finish is None
    answer(talk)
    with pytest.raises(ValueError, match="take one answer at a time"):
        list(reply)
    with pytest.raises(ValueError, match="temperature=-1"):
        talk.say("Why?", temperature=-1)


def test_an_answer_can_be_cut(talk: Conversation) -> None:
    reply = talk.say("Why?", max_new_tokens=100, seed=1)
    shown = "".join(next(reply) for _ in range(7))
    reply.cut()
    after = talk.session
    assert after.turns == (("user", "Why?"), ("assistant", shown))
    same(after, read_anew(talk, after.tail))
    assert bytes(after.tail[-8:-1]).decode() == shown
    reply.cut()
    assert list(reply) == [] and talk.session is after


@pytest.mark.parametrize("step", [0, 1, 4, 10])
def test_an_answer_interrupted_inside_a_step_can_be_cut(
    talk: Conversation, model: LanguageModel, step: int
) -> None:
    """In the reading of the question, in a step of the writing, in the closing of the turn."""
    reply = talk.say("Why?", max_new_tokens=9, seed=1)
    calls = 0

    def interrupt(module: torch.nn.Module, inputs: object) -> None:
        nonlocal calls
        calls += 1
        if calls == step + 1:
            raise KeyboardInterrupt

    handle = model.embedding.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(reply)
    handle.remove()
    reply.cut()
    assert talk.session.turns[0] == ("user", "Why?") and reply.new_tokens == min(step, 9)
    same(talk.session, read_anew(talk, talk.session.tail))


def test_a_session_goes_on_bit_for_bit(
    talk: Conversation, model: LanguageModel, tokenizer: Tokenizer
) -> None:
    talk.read(TEXT)
    answer(talk)
    taken_up = Conversation(model, tokenizer, talk.session)
    assert answer(taken_up, "And?") == answer(talk, "And?")
    assert torch.equal(taken_up.session.next_logits, talk.session.next_logits)


def test_forks_do_not_hear_each_other(talk: Conversation) -> None:
    talk.read(TEXT)
    before = talk.session
    branches = [talk.fork() for _ in range(3)]
    texts = [answer(branch, question) for branch, question in zip(branches, "xyx", strict=True)]
    assert talk.session is before
    assert texts[0] == texts[2] != texts[1]


def test_exchanges_can_be_forgotten(talk: Conversation) -> None:
    seen = []
    for number in range(FORGETTABLE + 3):
        seen.append(talk.session)
        answer(talk, str(number), max_new_tokens=1)
    fork = talk.fork()
    assert talk.forget() == 1 and talk.session is seen[-1]
    assert talk.forget(4) == 4 and talk.session is seen[-5]
    assert talk.forget(100) == FORGETTABLE - 5 and talk.session is seen[3]
    assert talk.forget() == 0 and talk.session is seen[3]
    assert fork.forget(2) == 2 and fork.session is seen[-2]
    with pytest.raises(ValueError, match="exchanges is 0: forget 1 or more"):
        talk.forget(0)


def test_the_last_turns_are_kept(talk: Conversation) -> None:
    talk.add([("user", str(number)) for number in range(KEPT_TURNS + 5)])
    assert len(talk.session.turns) == KEPT_TURNS and talk.session.turns[-1] == ("user", str(KEPT_TURNS + 4))


def test_another_models_tokenizer_is_refused(model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="use the tokenizer that was saved with the model"):
        Conversation(model, train_bpe([TEXT * 20], 280))
