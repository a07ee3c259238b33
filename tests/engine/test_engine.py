"""Limits, ends, failures and fairness of the engine."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from rmat.data.tokenizer import Tokenizer
from rmat.engine.engine import Engine, has_room
from rmat.engine.request import Full, Piece, Stopped, Stream
from rmat.model import LanguageModel
from tests.makers.engines import WAIT, alone, ask, calls_of, text_of

ENDLESS = 10**9
"""More tokens than any test waits for."""


@pytest.fixture
def engine(model: LanguageModel, tokenizer: Tokenizer) -> Iterator[Engine]:
    with Engine(model, tokenizer, max_rows=4, prefill_tokens=32) as engine:
        yield engine


def first_piece(stream: Stream) -> Stream:
    """The stream, once it is being written."""
    assert stream.get(WAIT) is not None
    return stream


class TestPieces:
    def test_they_hold_all_tokens_and_end_once(self, engine: Engine, tokenizer: Tokenizer) -> None:
        stream = engine.submit(ask(tokenizer, "abc", stop=("zzzz", "~~~~")))
        pieces = list(stream)
        assert [token for piece in pieces for token in piece.tokens] == stream.tokens
        assert len(stream.tokens) == stream.completion_tokens == 20
        assert stream.finish == "length"
        assert all(piece.text for piece in pieces) and all(piece.logprobs is None for piece in pieces)
        assert stream.get(0) is None and list(stream) == []

    def test_a_stop_string_is_in_the_tokens_not_in_the_text(
        self, engine: Engine, tokenizer: Tokenizer
    ) -> None:
        whole = text_of(engine.submit(ask(tokenizer, "abc")))
        stream = engine.submit(ask(tokenizer, "abc", stop=(whole[7:9],)))
        pieces: list[Piece] = list(stream)
        assert "".join(piece.text for piece in pieces) == whole[:7]
        assert stream.finish == "stop" and bytes(stream.tokens).decode() == whole[:9]
        assert [token for piece in pieces for token in piece.tokens] == stream.tokens

    def test_nothing_within_the_time(self, engine: Engine, tokenizer: Tokenizer) -> None:
        stream = engine.submit(ask(tokenizer, "x" * 4000))
        with pytest.raises(TimeoutError):
            stream.get(0)

    def test_the_listener_is_told_of_everything(self, engine: Engine, tokenizer: Tokenizer) -> None:
        over = threading.Event()
        seen: list[Piece | None] = []
        mine: list[Stream] = []
        ready = threading.Event()

        def listen() -> None:
            ready.wait(WAIT)
            seen.append(mine[0].get(0))
            if seen[-1] is None:
                over.set()

        mine.append(engine.submit(ask(tokenizer, "abc"), listen))
        ready.set()
        assert over.wait(WAIT)
        assert sum(len(piece.tokens) for piece in seen if piece is not None) == 20

    def test_a_listener_that_fails_ends_its_own_stream(self, engine: Engine, tokenizer: Tokenizer) -> None:
        def fail() -> None:
            raise RuntimeError("the loop is closed")

        broken = engine.submit(ask(tokenizer, "abc", max_new_tokens=ENDLESS), fail)
        text_of(broken)
        assert broken.finish == "cancelled"
        assert engine.alive and len(text_of(engine.submit(ask(tokenizer, "abc")))) == 20

    def test_logprobs_are_those_of_the_model(
        self, engine: Engine, model: LanguageModel, tokenizer: Tokenizer
    ) -> None:
        request = ask(tokenizer, "abc", logprobs=3, temperature=1.7, top_k=5)
        stream = engine.submit(request)
        found = [entry for piece in stream for entry in piece.logprobs or ()]
        with torch.no_grad():
            logits, _ = model(torch.tensor([[*request.ids, *stream.tokens]]))
        expected = logits[0, len(request.ids) - 1 : -1].log_softmax(-1)
        assert [entry.token for entry in found] == stream.tokens
        for entry, row in zip(found, expected, strict=True):
            assert entry.logprob == pytest.approx(float(row[entry.token]), abs=1e-3)
            best = row.topk(3)
            assert [token for token, _ in entry.top] == best.indices.tolist()
            assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=1e-3)

    def test_logprobs_without_alternatives(self, engine: Engine, tokenizer: Tokenizer) -> None:
        stream = engine.submit(ask(tokenizer, "abc", logprobs=0))
        assert all(entry.top == () for piece in stream for entry in piece.logprobs or ())


class TestClosedTurns:
    @pytest.mark.parametrize("options", [{}, {"stop": ("e", "a", "o", "t", " ")}, {"max_new_tokens": 0}])
    def test_a_cut_answer_is_closed_in_the_state(
        self, engine: Engine, model: LanguageModel, tokenizer: Tokenizer, options: dict[str, Any]
    ) -> None:
        request = ask(tokenizer, "abc", close_turn=True, **options)
        stream = engine.submit(request)
        text = text_of(stream)
        lone = alone(model, tokenizer, request)
        assert stream.closed and (text, stream.tokens, stream.finish) == (lone.text, lone.tokens, lone.finish)
        with torch.no_grad():
            logits, state = model(torch.tensor([[tokenizer.special_id("turn_end")]]), lone.state)
        assert stream.state is not None and torch.equal(stream.state.position, state.position)
        assert stream.next_logits is not None
        torch.testing.assert_close(stream.next_logits, logits[0, 0], rtol=1e-3, atol=1e-3)

    def test_an_answer_that_the_model_closed_is_not_closed_twice(
        self, engine: Engine, model: LanguageModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        turn_end = tokenizer.special_id("turn_end")
        monkeypatch.setattr("rmat.generation.sampling.Sampler.draw", lambda sampler, logits: turn_end)
        stream = engine.submit(ask(tokenizer, "abc", close_turn=True))
        pieces = list(stream)
        assert stream.finish == "end" and not stream.closed and stream.tokens == [turn_end]
        assert [(piece.text, piece.tokens) for piece in pieces] == [("", (turn_end,))]
        assert stream.state is not None and stream.state.position.tolist() == [4 + 1]


class TestFairness:
    def test_a_long_prompt_does_not_stall_a_text(
        self, engine: Engine, model: LanguageModel, tokenizer: Tokenizer
    ) -> None:
        """Between two tokens of the text, at most one slice of the long prompt is read."""
        with calls_of(model) as calls:
            text = first_piece(engine.submit(ask(tokenizer, "abc", max_new_tokens=ENDLESS)))
            calls.clear()
            long = engine.submit(ask(tokenizer, "x" * 3000, max_new_tokens=1))
            text_of(long)
            text.cancel()
        last = max(place for place, (_, length) in enumerate(calls) if length > 1)
        first = min(place for place, (_, length) in enumerate(calls) if length > 1)
        while_reading = [length for _, length in calls[first : last + 1]]
        assert sum(length for length in while_reading if length > 1) > 2900
        between = "".join("." if length == 1 else f"{length} " for length in while_reading).split(".")
        assert max(sum(map(int, slice_.split())) for slice_ in between) <= 32
        assert while_reading.count(1) >= 3000 // 32 - 1

    def test_a_short_prompt_does_not_wait_for_long_ones(self, engine: Engine, tokenizer: Tokenizer) -> None:
        long = [engine.submit(ask(tokenizer, letter * 20_000)) for letter in "xy"]
        assert len(text_of(engine.submit(ask(tokenizer, "abc")))) == 20
        assert all(stream.finish is None for stream in long)

    def test_no_more_rows_than_allowed(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        with Engine(model, tokenizer, max_rows=3) as engine, calls_of(model) as calls:
            streams = [engine.submit(ask(tokenizer, f"{n}", seed=n)) for n in range(8)]
            assert all(len(text_of(stream)) == 20 for stream in streams)
        assert max(rows for rows, _ in calls) == 3


class TestOwners:
    """One owner cannot make another wait, whatever it asks for."""

    def test_rows_are_given_up_for_another_owner(
        self, exact_model: LanguageModel, tokenizer: Tokenizer
    ) -> None:
        """What is parked goes on where it was: its text is the one that it would get alone."""
        long = [ask(tokenizer, f"{n}", seed=n, max_new_tokens=150, owner="one") for n in range(6)]
        with Engine(exact_model, tokenizer, max_rows=4) as engine, calls_of(exact_model) as calls:
            many = [engine.submit(request) for request in long]
            for stream in many[:4]:
                first_piece(stream)
            few = [engine.submit(ask(tokenizer, "abc", seed=n, owner="other")) for n in range(3)]
            assert all(len(text_of(stream)) == 20 for stream in few)
            assert all(stream.finish is None for stream in many)
            for stream, request in zip(many, long, strict=True):
                text_of(stream)
                lone = alone(exact_model, tokenizer, request)
                assert (stream.tokens, stream.finish) == (lone.tokens, lone.finish)
                assert stream.state is not None and torch.equal(stream.state.position, lone.state.position)
        assert max(rows for rows, _ in calls) == 4

    def test_rows_are_shared_evenly(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        with Engine(model, tokenizer, max_rows=6) as engine:
            streams: list[Stream] = []
            for owner in ("one", "two", "three"):
                request = ask(tokenizer, "abc", max_new_tokens=ENDLESS, owner=owner)
                streams += [engine.submit(request) for _ in range(6)]
            for first in (12, 13, 6, 7, 0, 1):
                first_piece(streams[first])
            before = [len(stream.tokens) for stream in streams]
            first_piece(streams[0]), first_piece(streams[12])
            steps = engine.stats()["steps"]
            while engine.stats()["steps"] < steps + 5:
                time.sleep(0.01)
            grown = [len(stream.tokens) > length for stream, length in zip(streams, before, strict=True)]
            assert [sum(grown[start : start + 6]) for start in (0, 6, 12)] == [2, 2, 2]

    @pytest.mark.parametrize("end", ["cancelled", "timeout", "stopped"])
    def test_a_parked_text_can_end(self, model: LanguageModel, tokenizer: Tokenizer, end: str) -> None:
        endless = ask(tokenizer, "abc", max_new_tokens=ENDLESS, close_turn=True, owner="one")
        engine = Engine(model, tokenizer, max_rows=2)
        try:
            soon = time.monotonic() + 1.0
            deadline = soon if end == "timeout" else None
            one = [first_piece(engine.submit(replace(endless, deadline=deadline))) for _ in range(2)]
            other = first_piece(engine.submit(replace(endless, owner="other")))
            assert engine.stats()["waiting"] == 1
            if end == "cancelled":
                one[1].cancel()
            elif end == "stopped":
                engine.stop(0.0)
            text_of(one[1])
            assert one[1].finish == end and one[1].closed and one[1].state is not None
            read = one[1].prompt_tokens + one[1].completion_tokens + 1
            assert one[1].state.position.tolist() == [read], "a session can be saved"
            other.cancel()
        finally:
            engine.stop()

    def test_prompts_are_read_in_turn_of_their_owners(self, engine: Engine, tokenizer: Tokenizer) -> None:
        long = [engine.submit(ask(tokenizer, letter * 20_000, owner="one")) for letter in "xyz"]
        short = engine.submit(ask(tokenizer, "a" * 300, owner="other", max_new_tokens=1))
        text_of(short)
        read = engine.stats()["tokens_read"]
        assert read < 301 * 2 + 3 * 32 * 4 and all(stream.finish is None for stream in long)

    def test_the_queue_is_shared(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        endless = ask(tokenizer, "abc", max_new_tokens=ENDLESS, owner="one")
        with Engine(model, tokenizer, max_rows=2, max_waiting=4) as engine:
            for _ in range(2):
                first_piece(engine.submit(endless))
            for _ in range(4):
                engine.submit(endless)
            with pytest.raises(Full):
                engine.submit(endless)
            assert len(text_of(engine.submit(replace(endless, owner="other", max_new_tokens=20)))) == 20

    def test_shares(self) -> None:
        assert has_room({}, "a", 1) and not has_room({"a": 1}, "a", 1)
        assert has_room({"a": 4}, "b", 4) and has_room({"a": 4, "b": 1}, "b", 4)
        assert not has_room({"a": 4, "b": 2}, "b", 4) and not has_room({"a": 4, "b": 2}, "a", 4)


class TestEnds:
    def test_full(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        endless = ask(tokenizer, "abc", max_new_tokens=ENDLESS)
        with Engine(model, tokenizer, max_rows=2, max_waiting=3) as engine:
            rows = [first_piece(engine.submit(endless)) for _ in range(2)]
            waiting = [engine.submit(endless) for _ in range(3)]
            with pytest.raises(Full, match="3 requests wait"):
                engine.submit(endless)
            stats = engine.stats()
            assert (stats["rows"], stats["waiting"], stats["refused"]) == (2, 3, 1)
            rows[0].cancel()
            first_piece(waiting[0])
            engine.submit(endless)

    def test_what_was_cancelled_while_it_waited_keeps_nobody_out(
        self, model: LanguageModel, tokenizer: Tokenizer
    ) -> None:
        endless = ask(tokenizer, "abc", max_new_tokens=ENDLESS)
        with Engine(model, tokenizer, max_rows=1, max_waiting=3) as engine:
            first_piece(engine.submit(endless))
            for _ in range(50):
                for stream in [engine.submit(endless) for _ in range(3)]:
                    stream.cancel()
            assert engine.stats()["refused"] == 0

    def test_cancel_frees_the_row_at_once(
        self, engine: Engine, model: LanguageModel, tokenizer: Tokenizer
    ) -> None:
        stream = first_piece(engine.submit(ask(tokenizer, "abc", max_new_tokens=ENDLESS)))
        with calls_of(model) as calls:
            stream.cancel()
            text_of(stream)
        assert stream.finish == "cancelled" and len(calls) <= 2
        assert stream.state is not None
        assert stream.state.position.tolist() == [stream.prompt_tokens + stream.completion_tokens]
        assert engine.stats()["rows"] == 0

    def test_cancel_before_the_prompt_is_read(self, engine: Engine, tokenizer: Tokenizer) -> None:
        rows = [engine.submit(ask(tokenizer, "x" * 100_000)) for _ in range(6)]
        for stream in rows:
            stream.cancel()
        for stream in rows:
            assert text_of(stream) == "" and stream.finish == "cancelled" and stream.state is None
        assert engine.stats()["finished_cancelled"] == 6

    def test_a_deadline_ends_it_wherever_it_is(self, engine: Engine, tokenizer: Tokenizer) -> None:
        soon = time.monotonic() + 0.3
        reading = [engine.submit(ask(tokenizer, "x" * 300_000, deadline=soon)) for _ in range(3)]
        writing = engine.submit(ask(tokenizer, "abc", max_new_tokens=ENDLESS, deadline=soon))
        waiting = engine.submit(ask(tokenizer, "abc", max_new_tokens=ENDLESS, deadline=soon))
        text = text_of(writing)
        assert writing.finish == "timeout" and len(text) == writing.completion_tokens
        for stream in (*reading, waiting):
            text_of(stream)
            assert stream.finish == "timeout"

    def test_stop_lets_running_texts_finish(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        engine = Engine(model, tokenizer)
        streams = [engine.submit(ask(tokenizer, "abc", seed=n)) for n in range(3)]
        engine.stop(grace=WAIT)
        assert [stream.finish for stream in streams] == ["length"] * 3
        assert not engine.alive
        with pytest.raises(Stopped):
            engine.submit(ask(tokenizer, "abc"))
        engine.stop()

    def test_stop_ends_what_is_not_done_in_time(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        engine = Engine(model, tokenizer, max_rows=1)
        written = first_piece(engine.submit(ask(tokenizer, "abc", max_new_tokens=ENDLESS, close_turn=True)))
        waiting = engine.submit(ask(tokenizer, "abc"))
        engine.stop(grace=0.05)
        assert written.finish == waiting.finish == "stopped"
        assert written.state is not None and written.closed, "a session can be saved"
        assert waiting.state is None

    def test_the_model_is_left_as_it_was(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        """Texts are written without dropout and noise, also of a model that another thread trains."""
        request = ask(tokenizer, "abc")
        expected = alone(model, tokenizer, request).text
        model.train()
        try:
            with Engine(model, tokenizer) as engine:
                assert text_of(engine.submit(request)) == expected
                assert model.training
        finally:
            model.eval()

    def test_another_default_device_does_not_matter(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        expected = alone(model, tokenizer, ask(tokenizer, "abc")).text
        with torch.device("meta"), Engine(model, tokenizer) as engine:
            assert text_of(engine.submit(ask(tokenizer, "abc"))) == expected
