"""A small model, sessions of it, and work on sessions for processes that are killed or compete."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from rmat.model import LanguageModel, ModelConfig
from rmat.sessions.file import Session
from rmat.sessions.store import SessionStore


def make_model(seed: int = 0, vocab_size: int = 265) -> LanguageModel:
    """The same model in every process."""
    torch.manual_seed(seed)
    config = ModelConfig.preset(
        "tiny", vocab_size=vocab_size, n_layers=2, d_model=16, n_heads=2, segment_len=8, n_slots=4
    )
    return LanguageModel(config).eval()


@torch.no_grad()
def make_session(model: LanguageModel, n_tokens: int = 21) -> Session:
    """What `model` is left with after reading some tokens."""
    tokens = torch.arange(n_tokens)[None] * 7 % model.config.vocab_size
    logits, state = model(tokens)
    return Session(
        state=state,
        next_logits=logits[0, -1],
        tokens_read=n_tokens,
        tail=tuple(tokens[0].tolist()),
        turns=(("user", "How are you?"), ("assistant", "Well.")),
    )


def same(one: Session, other: Session) -> bool:
    """Whether two sessions hold the same bits, whatever their times."""
    ours, theirs = one.state.tensors(), other.state.tensors()
    return (
        ours.keys() == theirs.keys()
        and all(ours[name].dtype == theirs[name].dtype for name in ours)
        and all(ours[name].numpy().tobytes() == theirs[name].numpy().tobytes() for name in ours)
        and one.next_logits.numpy().tobytes() == other.next_logits.numpy().tobytes()
        and (one.tokens_read, one.tail, one.turns) == (other.tokens_read, other.tail, other.turns)
    )


def save_for_ever(folder: Path, log: Path) -> None:
    """Go on with session `x` of `folder`: count `tokens_read` up and save, and note in `log`, which survives the
    process, `<` before and `>` behind each save."""
    model = make_model()
    store = SessionStore(folder)
    session = store.load("x", model)
    notes = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while True:
        number = session.tokens_read + 1
        session = replace(
            session, tokens_read=number, next_logits=torch.full_like(session.next_logits, number)
        )
        os.write(notes, f"<{number}".encode())
        store.save("x", session, model)
        os.write(notes, f">{number}".encode())


def count_up(folder: Path, times: int, model: LanguageModel | None = None) -> None:
    """Count `tokens_read` of session `x` up so many times, each from what is on the disk. Threads share a `model`,
    because random numbers are the whole process's."""
    model = model or make_model()
    store = SessionStore(folder)
    for _ in range(times):
        with store.lock("x"):
            session = store.load("x", model)
            store.save("x", replace(session, tokens_read=session.tokens_read + 1), model)


def hold_for_ever(folder: Path, told: Path) -> None:
    """Hold the lock of session `x`; the file `told` appears when it is held."""
    with SessionStore(folder).lock("x"):
        told.touch()
        while True:
            os.read(os.pipe()[0], 1)
