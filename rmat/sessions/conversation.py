"""A conversation with a model: documents and turns are read into one session, answers are written out of
it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rmat.data.documents import (
    Document,
    Turn,
    encode_documents,
    encode_lead,
    encode_turns,
    text_document,
)
from rmat.data.template import Before
from rmat.data.tokenizer import Tokenizer
from rmat.generation.reader import read_row, spans
from rmat.generation.stream import check_tokenizer, generate
from rmat.model import LanguageModel, StreamState
from rmat.sessions.file import ReadDocument, Session, session_after
from rmat.settings import string

FORGETTABLE = 16
"""Exchanges that can be taken back: so many earlier sessions are held in memory, each as large as a state."""


def read_before(session: Session | None, tokenizer: Tokenizer) -> Before:
    """What a text or a turn follows that is read into the session; a chat template asks."""
    if session is None or not session.tokens_read:
        return "nothing"
    if session.tail == (tokenizer.special_id("document"),):
        return "opened"
    if not session.turns:
        return "text"
    said = session.turns[-1][0].lower()
    role: Before = "system" if said == "system" else "assistant" if said == "assistant" else "user"
    chat = tokenizer.chat
    if chat is not None and chat.template is not None:
        ids = tokenizer.encode_special(chat.behind(role))
        if ids != list(session.tail[len(session.tail) - len(ids) :]):  # a text was read since
            return "text"
    return role


class Conversation:
    """What a model has read and said, in a state of one size. Text is read once and never again.

    Args:
        model: on any device.
        tokenizer: the one the model was trained with.
        session: where to go on, such as `SessionStore.load` gives; None begins a new document.

    Raises ValueError if the tokenizer does not fit the model.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, session: Session | None = None) -> None:
        check_tokenizer(tokenizer, model.config)
        self.model = model
        self.tokenizer = tokenizer
        self._earlier: deque[Session] = deque(maxlen=FORGETTABLE)
        self._session = session or _opened(model, tokenizer)

    @property
    def session(self) -> Session:
        """Where the conversation is: an immutable value on the CPU, replaced by another one after each
        step."""
        return self._session

    def read(self, text: str, *, progress: Callable[[int], None] | None = None) -> None:
        """Read text of any length on from where the conversation is.

        Two calls equal one with both texts, but for tokens that the cut between them splits.

        Args:
            text: taken as it is. A model that chats reads it in a turn, which it opens and what is said next
                closes (`rmat.data.template`).
            progress: told of every piece read, in UTF-8 bytes.

        Interrupted, it leaves the session as it was.
        """
        ids = _content(self.tokenizer, text_document("", text))
        lead = encode_lead(self.tokenizer, self._before) if len(ids) else []
        self._read(np.concatenate((np.array(lead, dtype=ids.dtype), ids)), progress)

    def read_documents(
        self, documents: Sequence[Document], *, progress: Callable[[int], None] | None = None
    ) -> list[int]:
        """Read documents, one behind the other, as `read_document` does; an interrupted reading can go on.

        Args:
            documents: of text or code.
            progress: told of every piece read, in UTF-8 bytes, once the session holds it; of what an
                interrupted reading had read at first, in one.

        Returns: tokens of each, without those by which a chat template opens a turn. Interrupted, the session
        holds what was read until then. Where nothing else was read since, a call with the same documents goes
        on from there, also in another process that took the session up; what it comes to is, bit for bit,
        what an uninterrupted reading comes to.
        """
        progress = progress or (lambda n_bytes: None)
        entries, before = self._begun(documents)
        if any(entry.bytes_read for entry in entries):
            progress(sum(entry.bytes_read for entry in entries))
        for number, document in enumerate(documents):
            if entries[number].complete:
                continue
            ids, done, lead = _content(self.tokenizer, document), entries[number].tokens, list[int]()
            if self.tokenizer.chat is not None:
                if not done and len(ids):
                    apart = self.tokenizer.encode("\n\n") if self._before == "text" else []
                    lead = [*apart, *encode_lead(self.tokenizer, self._before)]
            elif self.session.tokens_read - done > 1 and not document.n_header:
                ids = np.concatenate((self.tokenizer.encode("\n\n"), ids))
            if not len(ids):
                entries[number] = replace(entries[number], complete=True)
            ahead = len(lead)
            for part, logits, state in self._pieces(np.concatenate((lead, ids[done:])).astype(ids.dtype)):
                own, ahead = part[ahead:], max(0, ahead - len(part))
                n_bytes = int(self.tokenizer.byte_counts(own).sum())
                entry, done = entries[number], done + len(own)
                entries[number] = replace(
                    entry,
                    tokens=done,
                    bytes_read=min(
                        entry.bytes, entry.bytes_read + n_bytes
                    ),  # a blank line before is none of it
                    complete=done == len(ids),
                )
                reading = 0 if all(entry.complete for entry in entries) else len(entries)
                self._session = session_after(
                    self.session, state, logits, part, (), (*before, *entries), reading
                )
                progress(n_bytes)
        return [entry.tokens for entry in entries]

    def read_document(self, document: Document, *, progress: Callable[[int], None] | None = None) -> int:
        """Read a document as in training, code behind its name; a blank line separates text from what was
        read before.

        Args:
            document: of text or code, such as `read_file` of `rmat/data/extraction.py` gives.
            progress: told of every piece read, in UTF-8 bytes.

        Returns: tokens read. Interrupted, it leaves the session as it was.
        """
        before = self.session
        try:
            return self.read_documents([document], progress=progress)[0]
        except BaseException:
            self._session = before
            raise

    def add(self, turns: Sequence[Turn]) -> None:
        """Read finished (role, text) turns, such as a system turn, without answering."""
        ids = encode_turns(self.tokenizer, turns, self._before)
        self._read(np.array(ids), None, turns)

    def say(self, text: str, *, role: str = "user", **sampling: Any) -> Reply:
        """Say something and have the answer written, piece by piece, while the reply is iterated over.

        Args:
            text: the turn that is answered.
            role: who says it.
            sampling: `max_new_tokens`, `temperature`, `top_k`, `top_p`, `repetition_penalty`, `stop` and
                `seed` of `rmat.generate`.

        Once the reply is exhausted or cut, the session holds both turns, closed; before that it is as it was.
        Raises ValueError, at the call, for a setting out of range.
        """
        return Reply(self, (role, string("text", text)), sampling)

    def fork(self) -> Conversation:
        """Another conversation that goes on from here; neither sees what the other reads or says."""
        branch = Conversation(self.model, self.tokenizer, self.session)
        branch._earlier = self._earlier.copy()
        return branch

    def forget(self, exchanges: int = 1) -> int:
        """Go back to before the last `exchanges` questions and answers; what was read since goes with them.

        Returns: how many were forgotten; fewer where fewer are held, which are the last 16 of this object.
        """
        if exchanges < 1:
            raise ValueError(f"exchanges is {exchanges}: forget 1 or more")
        forgotten = min(exchanges, len(self._earlier))
        for _ in range(forgotten):
            self._session = self._earlier.pop()
        return forgotten

    def _begun(self, documents: Sequence[Document]) -> tuple[list[ReadDocument], tuple[ReadDocument, ...]]:
        """How far the reading of `documents` is, which may have been interrupted, and the documents before
        it."""
        entries = [ReadDocument.unread(document) for document in documents]
        n_before = len(self.session.documents) - self.session.reading
        earlier, begun = self.session.documents[:n_before], self.session.documents[n_before:]
        if begun and [entry.sha256 for entry in begun] == [entry.sha256 for entry in entries]:
            return list(begun), earlier
        return entries, self.session.settled_documents

    def _read(
        self, ids: NDArray[Any], progress: Callable[[int], None] | None, turns: Sequence[Turn] = ()
    ) -> None:
        state, logits = self.session.state, self.session.next_logits
        for part, logits, state in self._pieces(ids):  # noqa: B007 (the last ones are used)
            if progress is not None:
                progress(int(self.tokenizer.byte_counts(part).sum()))
        self._session = session_after(self.session, state, logits, ids, turns)

    def _pieces(self, ids: NDArray[Any]) -> Iterator[tuple[NDArray[Any], Tensor, StreamState]]:
        """Read `ids` from the session on: each piece with the logits (V,) and the state behind it."""
        state = self._state()
        for span in spans(self.model, len(ids), int(state.position_on_cpu()[0])):
            logits, state = read_row(self.model, ids[span], state)
            yield ids[span], logits, state

    @property
    def _before(self) -> Before:
        return read_before(self.session, self.tokenizer)

    def _state(self) -> StreamState:
        """The session's state on the model's device."""
        return self.session.state.to(next(self.model.parameters()).device)

    def _answered(self, before: Session, after: Session) -> None:
        if self.session is not before:
            raise ValueError(
                "the conversation went on while this answer was written: take one answer at a time"
            )
        self._earlier.append(before)
        self._session = after


class Reply(Iterator[str]):
    """An answer as it is written: iterate over pieces of text, never an empty one, never half a character."""

    def __init__(self, conversation: Conversation, question: Turn, sampling: dict[str, Any]) -> None:
        self._conversation = conversation
        self._question = question
        self._before = conversation.session
        tokenizer = conversation.tokenizer
        self._turn_end = tokenizer.special_id("turn_end")
        self._prompt = encode_turns(tokenizer, [question], conversation._before, answer=True)
        self._writing = generate(
            conversation.model, tokenizer, self._prompt, state=conversation._state(), **sampling
        )
        self._done = False

    @property
    def text(self) -> str:
        """The pieces so far."""
        return self._writing.text

    @property
    def new_tokens(self) -> int:
        """Tokens written so far, a closing turn_end among them."""
        return len(self._writing.tokens)

    @property
    def finish(self) -> str | None:
        """`length`, `stop` or `end` as in `rmat.generate`; None before the end and for an answer that was
        cut."""
        return self._writing.finish

    def __next__(self) -> str:
        if self._done:
            raise StopIteration
        try:
            return next(self._writing)
        except StopIteration:
            state, logits = self._writing.state, self._writing.next_logits
            assert state is not None and logits is not None
            self._close(state, logits)
            raise

    def cut(self) -> None:
        """End the answer here, also after an exception such as KeyboardInterrupt came out of the iteration:
        both turns enter the session, the answer with the tokens that were written. Nothing happens to a
        complete answer."""
        if not self._done:
            # An interrupted step leaves no state behind, so the exchange is read from the state before it.
            ids = self._prompt + self._writing.tokens
            logits, state = read_row(self._conversation.model, ids, self._conversation._state())
            self._close(state, logits)

    def _close(self, state: StreamState, logits: Tensor) -> None:
        ids = self._prompt + self._writing.tokens
        rest = [] if ids[-1] == self._turn_end else [self._turn_end]
        if rest := [*rest, *self._conversation.tokenizer.closing]:
            logits, state = read_row(self._conversation.model, rest, state)
            ids = [*ids, *rest]
        turns = (self._question, ("assistant", self.text))
        self._conversation._answered(self._before, session_after(self._before, state, logits, ids, turns))
        self._done = True


def _opened(model: LanguageModel, tokenizer: Tokenizer) -> Session:
    """The session of a document in which only its opening token has been read; of a pretrained model nothing,
    since its chat template writes the opening."""
    if tokenizer.chat is not None:
        logits = torch.zeros(model.config.vocab_size)
        return Session(state=model.initial_state(1, device="cpu"), next_logits=logits, tokens_read=0)
    opening = generate(model, tokenizer, max_new_tokens=0)
    for _ in opening:
        pass
    assert opening.state is not None and opening.next_logits is not None
    ids = (tokenizer.special_id("document"),)
    return Session(
        state=opening.state.to("cpu"), next_logits=opening.next_logits, tokens_read=len(ids), tail=ids
    )


def _content(tokenizer: Tokenizer, document: Document) -> NDArray[np.int32]:
    """Ids of a document without the token that opens one."""
    return encode_documents(tokenizer, [document])[0].tokens[1:]
