"""A tiny model behind HTTP: as an app in this process, and on a socket of loopback."""

import functools
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from starlette.testclient import TestClient

from rmat.data.tokenizer import Tokenizer, load_tokenizer
from rmat.engine.engine import Engine
from rmat.model import LanguageModel, ModelConfig
from rmat.serving.app import create_app
from rmat.serving.server import Server, address_of, bind
from rmat.sessions.store import SessionStore

NAME = "tiny"


@functools.cache
def tokenizer() -> Tokenizer:
    return load_tokenizer("bytes")


@functools.cache
def model(seed: int = 0) -> LanguageModel:
    """It writes printable ASCII and never ends a text."""
    torch.manual_seed(seed)
    config = ModelConfig.preset(
        "tiny",
        vocab_size=tokenizer().vocab_size,
        n_layers=2,
        d_model=32,
        n_heads=2,
        segment_len=16,
        n_slots=8,
        tie_embeddings=False,
    )
    model = LanguageModel(config).eval()
    with torch.no_grad():
        model.head.weight.mul_(8)  # the end of a text is drawn once in thirty million tokens
        model.head.weight[:32] = 0
        model.head.weight[127:] = 0
    return model


@contextmanager
def running_app(
    folder: Path,
    *,
    seed: int = 0,
    of: LanguageModel | None = None,
    speaks: Tokenizer | None = None,
    engine: dict[str, Any] | None = None,
    **options: Any,
) -> Iterator[FastAPI]:
    """An app of `model(seed)`, or of a model and its tokenizer, whose sessions are in `folder`, with `options`
    of `create_app` and of the engine."""
    store_of, served = functools.cache(lambda owner: SessionStore(folder / owner)), of or model(seed)
    codec = speaks or tokenizer()
    with Engine(served, codec, **(engine or {})) as running:
        yield create_app(running, store_of, model=served, tokenizer=codec, model_name=NAME, **options)


@contextmanager
def running_client(folder: Path, **options: Any) -> Iterator[TestClient]:
    """A client of such an app."""
    with running_app(folder, **options) as app, TestClient(app) as client:
        yield client


@contextmanager
def running_server(app: FastAPI, grace: float = 5.0) -> Iterator[str]:
    """The address of a real server of the app, on a free port of loopback."""
    with bind("127.0.0.1", 0) as listening:
        server = Server(app, grace=grace)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield address_of(listening)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@contextmanager
def signals_as_before() -> Iterator[None]:
    """Behind a server that ran in this thread, signals are handled as before it."""
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def events(body: str) -> list[Any]:
    """The events of a streamed answer; the last must be [DONE] and is left out."""
    parts = [part.removeprefix("data: ") for part in body.split("\n\n") if part]
    assert parts[-1] == "[DONE]", parts[-1]
    return [json.loads(part) for part in parts[:-1]]


def message(error: dict[str, Any]) -> str:
    """The sentence of an error body, which has OpenAI's shape."""
    assert set(error) == {"error"} and set(error["error"]) == {"message", "type", "param", "code"}, error
    return str(error["error"]["message"])
