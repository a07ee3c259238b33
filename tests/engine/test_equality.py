"""Whoever else is written, and whatever was read before: a request gets the text that it would get alone."""

import random
import threading
from dataclasses import replace

import pytest
import torch

from rmat.data.tokenizer import Tokenizer
from rmat.engine.engine import Engine
from rmat.engine.request import Request, Stream
from rmat.model import LanguageModel
from tests.makers.engines import WAIT, alone, ask, same, small_model, text_of

SYSTEM = "You are a friend that says little and knows less. " * 8


class TestPrefixReuse:
    """Prompts alone in the engine: a warm start must equal a cold one bit for bit."""

    @pytest.mark.parametrize(
        ("variant", "slice_tokens"),
        [("recommended", 512), ("recommended", 48), ("paper", 512), ("local", 512), ("full", 512)],
    )
    def test_warm_equals_cold_bit_for_bit(
        self, variant: str, slice_tokens: int, tokenizer: Tokenizer
    ) -> None:
        model = small_model(variant, tokenizer)
        prompts = {
            "first": SYSTEM + "What is one?",
            "again": SYSTEM + "What is one?",
            "other question": SYSTEM + "And what, if you please, is two? " * 5,
            "edited": SYSTEM[:200] + "X" + SYSTEM[201:] + "What is one?",
            "longer": (SYSTEM + "What is one?") * 2,
            "shorter": SYSTEM[:300],
            "exactly to a cut": SYSTEM[: 2 * 128 - 1],
        }
        cached = {}
        with (
            Engine(model, tokenizer, prefill_tokens=slice_tokens) as warm,
            Engine(model, tokenizer, prefill_tokens=slice_tokens, cache_bytes=0) as cold,
        ):
            for name, prompt in prompts.items():
                request = ask(tokenizer, prompt, max_new_tokens=8)
                first, second = cold.submit(request), warm.submit(request)
                assert text_of(first) == text_of(second)
                assert first.tokens == second.tokens and same(first.state, second.state)
                assert first.next_logits is not None and second.next_logits is not None
                assert torch.equal(first.next_logits, second.next_logits)
                assert first.cached_tokens == 0
                cached[name] = second.cached_tokens
            read = warm.stats()["tokens_read"]
            assert read + warm.stats()["cache_tokens"] == cold.stats()["tokens_read"]
        if slice_tokens == 512:
            assert cached == {
                "first": 0,
                "again": 384,
                "other question": 384,
                "edited": 128,
                "longer": 384,
                "shorter": 256,
                "exactly to a cut": 128,
            }

    def test_a_scope_sees_nothing_of_another(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        request = ask(tokenizer, SYSTEM)
        with Engine(model, tokenizer) as engine:
            for scope, hit in (("a", False), ("b", False), ("a", True), ("", False)):
                stream = engine.submit(replace(request, owner=scope))
                text_of(stream)
                assert (stream.cached_tokens > 0) == hit

    def test_prompts_read_at_the_same_time_share_the_work(
        self, model: LanguageModel, tokenizer: Tokenizer
    ) -> None:
        request = ask(tokenizer, SYSTEM * 4)
        with Engine(model, tokenizer, prefill_tokens=16) as engine:
            streams = [engine.submit(replace(request, owner="x")) for _ in range(4)]
            texts = {text_of(stream) for stream in streams}
            assert len(texts) == 1
            assert engine.stats()["tokens_read"] < 2 * len(request.ids)

    def test_a_cache_too_small_for_all_changes_no_text(
        self, model: LanguageModel, tokenizer: Tokenizer
    ) -> None:
        size = model.initial_state(batch_size=1).nbytes
        with Engine(model, tokenizer, cache_bytes=5 * size, prefill_tokens=32) as engine:
            for number in range(6):
                request = ask(tokenizer, SYSTEM[: 60 * number] + str(number % 3) * 90)
                stream = engine.submit(request)
                assert text_of(stream) == alone(model, tokenizer, request).text
                assert engine.stats()["cache_bytes"] <= 5 * size


class TestBatching:
    @staticmethod
    def random_request(draws: random.Random, tokenizer: Tokenizer, **options: object) -> Request:
        return ask(
            tokenizer,
            SYSTEM[draws.randrange(50) :][: draws.choice([1, 5, 20, 100, 300])],
            max_new_tokens=draws.randrange(1, 30),
            temperature=draws.choice([0, 0.7, 1.3]),
            top_k=draws.choice([None, 20]),
            top_p=draws.choice([None, 0.9]),
            repetition_penalty=draws.choice([1.0, 1.2]),
            grammar=draws.choice([None, "start: /[a-q ]{3,40}/", 'start: "(" start? ")"']),
            seed=draws.randrange(1000),
            stop=draws.choice([(), ("e", "ab"), ("qu",)]),
            **options,
        )

    @pytest.mark.parametrize("round_", range(2))
    def test_rows_join_and_leave_at_any_step(
        self, round_: int, exact_model: LanguageModel, tokenizer: Tokenizer
    ) -> None:
        """Each request is sent when some other one has written a random number of pieces."""
        draws = random.Random(round_)
        requests = [self.random_request(draws, tokenizer) for _ in range(24)]
        streams: list[Stream] = []
        all_sent = threading.Event()
        with Engine(exact_model, tokenizer, max_rows=draws.choice([3, 8, 16]), prefill_tokens=48) as engine:

            def send() -> None:
                streams.append(engine.submit(requests[len(streams)], join))
                if len(streams) == len(requests):
                    all_sent.set()

            def join() -> None:
                """Called after every piece and every end, in the engine's thread."""
                running = [stream for stream in streams if stream.finish is None]
                if not all_sent.is_set() and (draws.random() < 0.3 or not running):
                    send()

            send()
            assert all_sent.wait(WAIT)
            texts = [text_of(stream) for stream in streams]
            steps, written = engine.stats()["steps"], engine.stats()["tokens_written"]
        for request, stream, text in zip(requests, streams, texts, strict=True):
            lone = alone(exact_model, tokenizer, request)
            assert (text, stream.tokens, stream.finish) == (lone.text, lone.tokens, lone.finish)
            assert stream.prompt_tokens == lone.prompt_tokens
            assert stream.state is not None and lone.state is not None
            assert torch.equal(stream.state.position, lone.state.position)
            assert stream.next_logits is not None and lone.next_logits is not None
            torch.testing.assert_close(stream.next_logits, lone.next_logits, rtol=1e-5, atol=1e-5)
        assert written > 1.5 * steps, "rows were written together"

    def test_in_float32_texts_are_the_same_here(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        """Rounding differs between batches of different sizes, by less than what draws hang on but for rare
        ties."""
        draws = random.Random(9)
        requests = [self.random_request(draws, tokenizer) for _ in range(12)]
        with Engine(model, tokenizer) as engine:
            streams = [engine.submit(request) for request in requests]
            texts = [text_of(stream) for stream in streams]
        assert texts == [alone(model, tokenizer, request).text for request in requests]

    def test_a_text_in_two_requests_is_one_text(
        self, exact_model: LanguageModel, tokenizer: Tokenizer
    ) -> None:
        whole = alone(exact_model, tokenizer, ask(tokenizer, "once upon", max_new_tokens=30, temperature=0))
        with Engine(exact_model, tokenizer) as engine:
            first = engine.submit(ask(tokenizer, "once upon", max_new_tokens=11, temperature=0))
            start = text_of(first)
            rest = ask(tokenizer, "", max_new_tokens=19, temperature=0)
            going_on = replace(rest, ids=(), state=first.state, next_logits=first.next_logits)
            second = engine.submit(going_on)
            assert start + text_of(second) == whole.text
            assert second.prompt_tokens == 0

    def test_returned_states_can_be_trained_on(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        with Engine(model, tokenizer) as engine:
            stream = engine.submit(ask(tokenizer, "abc"))
            text_of(stream)
        assert stream.state is not None
        logits, _ = model(torch.tensor([[65, 66]]), stream.state)
        logits.sum().backward()
        model.zero_grad()

    def test_a_session_is_no_beginning_of_other_prompts(
        self, model: LanguageModel, tokenizer: Tokenizer
    ) -> None:
        """The same ids after a state are another text than at the start."""
        with Engine(model, tokenizer) as engine:
            start = engine.submit(ask(tokenizer, "before", max_new_tokens=0))
            text_of(start)
            request = ask(tokenizer, SYSTEM)
            for state in (start.state, None, start.state):
                stream = engine.submit(replace(request, state=state))
                text_of(stream)
                assert stream.cached_tokens == 0
                assert stream.get(WAIT) is None
