"""What goes wrong for one request must not touch another; what cannot be contained is noticed."""

import gc
import logging
import time
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rmat.data.tokenizer import Tokenizer
from rmat.engine.engine import Engine
from rmat.engine.job import Batch
from rmat.engine.request import Stopped, Stream
from rmat.generation.reader import NotFiniteError
from rmat.generation.sampling import SamplingConfig
from rmat.model import LanguageModel, StreamState
from tests.makers.engines import alone, ask, calls_of, text_of


class Broken(Exception):
    """Raised in place of what a device or an operator raises."""


def broken_state(model: LanguageModel) -> StreamState:
    """A state full of NaN, after which no token can be drawn."""
    tensors = model.initial_state(batch_size=1).tensors()
    broken = {k: torch.full_like(t, torch.nan) if t.is_floating_point() else t for k, t in tensors.items()}
    return StreamState.from_tensors(model.config, broken)


class TestOneRequest:
    @pytest.mark.parametrize("place", [25, 40])
    def test_an_error_ends_its_own_row_alone(
        self, place: int, model: LanguageModel, tokenizer: Tokenizer
    ) -> None:
        """Reading position `place` fails: that is in the long prompt, or in the text behind it; others do not
        come there."""

        def fail(tokens: Tensor, state: StreamState) -> None:
            if bool(((state.position <= place) & (place < state.position + tokens.shape[1])).any()):
                raise Broken("no such kernel")

        good = [ask(tokenizer, f"text {n}", seed=n, max_new_tokens=12) for n in range(4)]
        with Engine(model, tokenizer) as engine, calls_of(model, fail):
            streams = [engine.submit(request) for request in good]
            bad = engine.submit(ask(tokenizer, "x" * 30))
            bad_text = text_of(bad)
            texts = [text_of(stream) for stream in streams]
            late = text_of(engine.submit(good[0]))
            assert engine.alive and engine.stats()["finished_error"] == 1
        assert [*texts, late] == [alone(model, tokenizer, request).text for request in (*good, good[0])]
        assert bad.finish == "error" and isinstance(bad.error, Broken) and bad.state is None
        assert bad.error.__traceback__ is None, "its frames would hold tensors"
        assert len(bad_text) == len(bad.tokens) == max(0, place - 30)

    @pytest.mark.parametrize(
        "options", [{}, {"max_new_tokens": 0}, {"sampling": SamplingConfig(temperature=0)}]
    )
    def test_numbers_that_are_none(
        self, model: LanguageModel, tokenizer: Tokenizer, options: dict[str, Any]
    ) -> None:
        """They end the text, also where it is only read: nobody gets a state to go on from."""
        good = ask(tokenizer, "abc", max_new_tokens=30)
        with Engine(model, tokenizer) as engine:
            stream = engine.submit(good)
            bad = engine.submit(replace(good, state=broken_state(model), **options))
            text_of(bad)
            assert text_of(stream) == alone(model, tokenizer, good).text
        assert bad.finish == "error" and bad.state is None and isinstance(bad.error, NotFiniteError)

    def test_a_failed_step_is_tried_again_for_each_row(
        self, model: LanguageModel, tokenizer: Tokenizer
    ) -> None:
        """As when memory is short for all rows at once but not for one."""

        def fail(tokens: Tensor, state: StreamState) -> None:
            if tokens.shape[0] > 1:
                raise Broken("out of memory")

        requests = [ask(tokenizer, f"text {n}", seed=n, max_new_tokens=9) for n in range(3)]
        with Engine(model, tokenizer) as engine, calls_of(model, fail):
            streams = [engine.submit(request) for request in requests]
            assert [text_of(stream) for stream in streams] == [
                alone(model, tokenizer, request).text for request in requests
            ]


def test_an_engine_that_dies_is_noticed(
    model: LanguageModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(batch: Batch) -> None:
        raise Broken("a mistake in the engine itself")

    with Engine(model, tokenizer, max_rows=1) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(Batch, "step", die)
            streams = [engine.submit(ask(tokenizer, letter * 2_000)) for letter in "abc"]
            for stream in streams:
                text_of(stream)
        assert [stream.finish for stream in streams] == ["error"] * 3
        assert all(isinstance(stream.error, Broken) for stream in streams)
        engine.stop()
        assert not engine.alive and engine.stats()["rows"] == engine.stats()["waiting"] == 0
        with pytest.raises(Stopped):
            engine.submit(ask(tokenizer, "abc"))


def gone(ends: list[weakref.ref[Stream]]) -> bool:
    """Whether nothing holds these streams any more, after at most 10 seconds."""
    for _ in range(200):
        gc.collect()
        if all(end() is None for end in ends):
            return True
        time.sleep(0.05)
    return False


def test_finished_requests_leave_nothing_behind(
    model: LanguageModel, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)  # a kept log record would hold the frames of its error

    def left(waves: int) -> int:
        """Tensors in this process after so many waves of requests, while the engine that answered them is
        still held."""
        with Engine(model, tokenizer, cache_bytes=0) as engine:
            for _ in range(waves):
                streams = [engine.submit(ask(tokenizer, f"{n}" * 200, seed=n, logprobs=2)) for n in range(4)]
                streams.append(engine.submit(ask(tokenizer, "z" * 10_000)))
                streams[-1].cancel()
                streams.append(engine.submit(ask(tokenizer, "", state=broken_state(model))))
                ends = [weakref.ref(stream) for stream in streams]
                for stream in streams:
                    text_of(stream)
                del stream, streams
                assert gone(ends), "the engine holds a finished request"
        # Objects are listed only now: a tuple that the engine's thread is making cannot be finished while a
        # list holds it.
        gc.collect()
        count = sum(type(thing) is Tensor for thing in gc.get_objects())
        assert not engine.alive
        return count

    assert left(1) == left(2) == left(4)


class TestRefusals:
    def test_requests(self, model: LanguageModel, other_model: LanguageModel, tokenizer: Tokenizer) -> None:
        good = ask(tokenizer, "abc")
        rows = model.initial_state(batch_size=2)
        other = other_model.initial_state(batch_size=1)
        double = model.initial_state(batch_size=1).to(torch.float64)
        cases: list[tuple[dict[str, Any], str]] = [
            ({"ids": ()}, "prompt is empty"),
            ({"ids": (1, 265)}, "token 265"),
            ({"ids": (-1, 2)}, "token -1"),
            ({"ids": (1.5,)}, "whole numbers"),
            ({"ids": ("a",)}, "whole numbers"),
            ({"ids": (2**70,)}, "whole numbers"),
            ({"max_new_tokens": -1}, "max_new_tokens"),
            ({"stop": ("",)}, "empty string"),
            ({"stop": "text"}, "stop is the string"),
            ({"logprobs": -1}, "logprobs is -1"),
            ({"logprobs": 266}, "logprobs is 266"),
            ({"state": rows}, "state has 2 rows"),
            ({"state": other}, "another configuration"),
            ({"state": double}, "float64"),
            ({"next_logits": torch.zeros(3)}, "next_logits has shape"),
        ]
        with Engine(model, tokenizer) as engine:
            for change, sentence in cases:
                with pytest.raises(ValueError, match=sentence):
                    engine.submit(replace(good, **change))
            assert engine.stats()["requests"] == 0

    def test_settings(self, model: LanguageModel, other_model: LanguageModel, tokenizer: Tokenizer) -> None:
        for options in (
            {"max_rows": 0},
            {"prefill_tokens": 0},
            {"max_waiting": -1},
            {"cache_bytes": -1},
            {"max_rows": 2.0},
        ):
            with pytest.raises(ValueError, match=f"{next(iter(options))}=.*: give a whole number"):
                Engine(model, tokenizer, **options)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="tokenizer is None"):
            Engine(model, None)  # type: ignore[arg-type]
