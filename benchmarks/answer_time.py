"""Time to answer after documents of very different lengths: it should be one time, because nothing is read
again.

Documents of seeded words, or of a text file repeated, are each read once into a session of a store. Then
every round asks the same question of each session, the order turned round by round, so that a slow minute of
the machine hits all lengths. Three times are taken: taking the session up (load and move to the device), from
the question to the first piece of text (its tokens are read, one is drawn), and each further token. Reported
are medians, and medians over rounds of the ratio to the shortest document in the same round: 1.0 means that
length does not matter. For comparison, the time to read each document is reported too.

    python benchmarks/answer_time.py [--model starter] [--lengths 1000 100000 1000000 10000000] [--text FILE] [--quick]

The last line printed is one JSON object, which is also written to results/answer_time.json.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import rmat
from rmat.data.tokenizer import Tokenizer
from rmat.machine import describe_environment
from rmat.model import LanguageModel
from rmat.sessions.conversation import Conversation
from rmat.sessions.store import SessionStore

MEASURES = ("take_up", "first_piece", "per_token")
QUESTION = "What is said about the river and the town?"


def document(length: int, text: str | None, seed: int) -> str:
    """Text of `length` characters: `text` over and over, or lines of made-up words."""
    if text is None:
        draw = random.Random(seed)
        letters = "etaoinshrdlu"
        words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(2000)]
        count = min(length, 400_000)
        text = "".join(f"{' '.join(draw.choices(words, k=12))}.\n" for _ in range(count // 70 + 1))
    return (text * (length // len(text) + 1))[:length]


def ask(
    store: SessionStore, name: str, model: LanguageModel, tokenizer: Tokenizer, tokens: int, seed: int
) -> dict[str, float]:
    """Seconds of each part of one answer of `tokens` tokens."""
    started = time.perf_counter()
    conversation = Conversation(model, tokenizer, store.load(name, model))
    taken_up = time.perf_counter()
    # An answer that the model ends early is drawn again, so that all are of one length.
    for attempt in range(100):
        asked = time.perf_counter()
        reply = conversation.fork().say(QUESTION, max_new_tokens=tokens, seed=seed + attempt)
        first: float | None = None
        for _ in reply:
            first = first or time.perf_counter()
        done = time.perf_counter()
        if reply.finish == "length" and first is not None:
            return {
                "take_up": taken_up - started,
                "first_piece": first - asked,
                "per_token": (done - first) / (tokens - 1),
            }
    raise SystemExit(f"the model never writes {tokens} tokens: ask for fewer with --tokens")


def measure(args: argparse.Namespace, store: SessionStore) -> dict[str, Any]:
    """Read all documents, then ask in rounds."""
    model, tokenizer = rmat.load(args.model, args.device)
    if tokenizer is None:
        raise SystemExit(f"{args.model} holds a model without a tokenizer")
    text = None if args.text is None else Path(args.text).read_text(encoding="utf-8")
    found: list[dict[str, Any]] = []
    for length in args.lengths:
        conversation = Conversation(model, tokenizer)
        started = time.perf_counter()
        conversation.read(document(length, text, args.seed))
        info = store.save(f"read-{length}", conversation.session, model)
        found.append(
            {
                "characters": length,
                "tokens_read": info.tokens_read,
                "read_seconds": time.perf_counter() - started,
                "state_bytes": conversation.session.state.nbytes,
                "card_bytes": info.nbytes,
            }
        )
        print(f"  read {length:,} characters", file=sys.stderr, flush=True)
    rounds: list[dict[int, dict[str, float]]] = []
    ask(store, f"read-{args.lengths[0]}", model, tokenizer, args.tokens, args.seed)  # warm
    for number in range(args.rounds):
        shift = number % len(args.lengths)
        order = args.lengths[shift:] + args.lengths[:shift]
        seed = args.seed + 1000 * number
        rounds.append(
            {length: ask(store, f"read-{length}", model, tokenizer, args.tokens, seed) for length in order}
        )
        print(f"  round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
    shortest = args.lengths[0]
    for entry in found:
        taken = [each[entry["characters"]] for each in rounds]
        entry["seconds"] = {name: median(each[name] for each in taken) for name in MEASURES}
        entry["ratio_to_shortest"] = {
            name: median(each[entry["characters"]][name] / each[shortest][name] for each in rounds)
            for name in MEASURES
        }
    return {
        "settings": vars(args),
        "question": QUESTION,
        "lengths": found,
        "environment": describe_environment(args.device),
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(
        f"{'characters':>12} {'read s':>9} {'card kB':>8} {'take up ms':>16} {'first ms':>16} {'token ms':>16}"
    )
    for entry in result["lengths"]:
        times = " ".join(
            f"{entry['seconds'][name] * 1e3:>8.1f} (x{entry['ratio_to_shortest'][name]:.2f})"
            for name in MEASURES
        )
        print(
            f"{entry['characters']:>12,} {entry['read_seconds']:>9.2f} {entry['card_bytes'] / 1e3:>8.0f} {times}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", default="starter", help="folder of a model or of a run, or a name that comes along")
    add("--lengths", type=int, nargs="+", default=[1_000, 100_000, 1_000_000, 10_000_000])
    add("--text", help="file whose text is repeated (default: made-up words)")
    add("--tokens", type=int, default=32, help="tokens of an answer")
    add("--rounds", type=int, default=7)
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add("--quick", action="store_true", help="short documents and three rounds: to see that it runs")
    add("--out", type=Path, default=Path("results/answer_time.json"))
    args = parser.parse_args()
    if args.quick:
        args.lengths, args.rounds = [1_000, 10_000, 100_000], 3
    if min(args.lengths) < 1 or args.tokens < 2 or args.rounds < 1:
        parser.error("lengths and rounds are at least 1, tokens at least 2")
    args.lengths = sorted(set(args.lengths))
    out = args.out
    del args.out
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, SessionStore(folder))
    show(result)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
