"""What a pretrained model keeps of its quality when its state has one size, by what its bank admits.

    rmat import smollm2 runs/smol --window 256 --slots 764
    rmat gates runs/smol --data FOLDER/books --out runs/smol-fit
    python benchmarks/pretrained.py runs/smol-fit --data FOLDER/books [--split valid] [--out FILE]

Every variant is the same model with a state of the same size; only the gates differ:

    recent     all are admitted: the newest tokens, as window and sinks alone (StreamingLLM, arXiv 2309.17453)
    random     a random half; oldest leaves
    fit        what the fitted gates admit; oldest leaves
    weakest    the same; the weakest leaves
    full       the source itself, with everything in sight, within its trained context

Bits per byte by position are measured on documents of a split, each read from its start. Pass keys are hidden
in the same text and asked for in the chat format; all digits must be the most likely token.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from far_context import document_nats, write_result
from numpy.typing import NDArray

from rmat.api import load
from rmat.data.sources import split_documents
from rmat.data.tokenizer import Tokenizer
from rmat.evaluation.intervals import bootstrap_ratio, paired_bootstrap_ratio, wilson
from rmat.generation.reader import Piece, scan
from rmat.machine import describe_environment
from rmat.model import LanguageModel
from rmat.pretrained.gates import with_all_in_sight
from rmat.storage import assigned
from rmat.tasks.haystack import hide, load_filler

VARIANTS = ("recent", "random", "fit", "weakest", "full")
EDGES = (0, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
OPEN = 40.0


def variant(model: LanguageModel, name: str, n_tokens: int, seed: int) -> LanguageModel:
    """The model with other gates, or with everything in sight."""
    if name == "full":
        return with_all_in_sight(model, n_tokens)
    tensors = dict(model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    for key in [key for key in tensors if ".writer.score." in key]:
        if name == "recent":
            tensors[key] = torch.full_like(tensors[key], OPEN if key.endswith("bias") else 0.0)
        elif name == "random":
            drawn = torch.randn(tensors[key].shape, generator=generator).to(tensors[key].dtype)
            tensors[key] = torch.zeros_like(drawn) if key.endswith("bias") else 100 * drawn
    eviction: Any = "weakest" if name == "weakest" else "oldest"
    return assigned(dataclasses.replace(model.config, eviction=eviction), tensors)


def texts(spec: str, split: str, tokenizer: Tokenizer, count: int, n_tokens: int) -> list[NDArray[Any]]:
    """The first tokens of so many documents that have them."""
    found: list[NDArray[Any]] = []
    for name, document in split_documents(spec):
        if name != split or len(found) == count:
            continue
        text = "\n".join(part for part in document.parts if isinstance(part, str))
        ids = [*tokenizer.opening, *tokenizer.encode(text[: 8 * n_tokens])]
        if len(ids) > n_tokens:
            found.append(np.array(ids[: n_tokens + 1], dtype=np.int64))
    if not found:
        raise ValueError(f"no document of {spec!r} has {n_tokens} tokens in its {split} part")
    return found


def _size(model: LanguageModel) -> int | None:
    """Tokens of one call; few where everything is in sight, as the logits of a large vocabulary are large."""
    return None if model.config.has_memory else 1024


def passkeys(
    spec: str, split: Any, tokenizer: Tokenizer, length: int, depths: list[float], samples: int, seed: int
) -> Iterator[tuple[float, list[int], list[int]]]:
    """(depth, prompt, answer) of texts of about `length` tokens with a number in them."""
    assert tokenizer.chat is not None
    random = np.random.default_rng(seed)
    for depth in depths:
        for _ in range(samples):
            key = str(random.integers(10_000, 100_000))
            sentences = load_filler(spec, split).sentences(random)
            statement = f" The pass key is {key}. Remember it. {key} is the pass key."
            parts = hide([(depth, statement)], sentences, length, tokenizer)
            text = "".join(text for _, text in parts).strip()
            turns = [("user", f"{text}\n\nWhat is the pass key that the text above names?")]
            begun = "The pass key is "
            pieces = tokenizer.chat.pieces(turns, "nothing", answer=True, begun=begun)
            prompt = tokenizer.encode_special(pieces)
            whole = tokenizer.encode_special(
                tokenizer.chat.pieces(turns, "nothing", answer=True, begun=begun + key)
            )
            common = next(
                (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt)
            )
            yield depth, whole[:common], whole[common:]


@torch.no_grad()
def recalls(model: LanguageModel, prompt: list[int], answer: list[int]) -> bool:
    """Whether every token of the answer is the most likely one."""
    ids = np.array([*prompt, *answer], dtype=np.int64)
    found: list[torch.Tensor] = []

    def add(piece: Piece) -> None:
        first = len(prompt) - 1 - piece.start
        if first < piece.lengths[0]:
            found.append(piece.logits_BTV[0, max(first, 0) :].argmax(1))

    scan(model, [ids[:-1]], size=_size(model), each=add)
    return torch.cat(found).tolist() == answer


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", help="folder of an imported model with fitted gates")
    parser.add_argument("--data", required=True, metavar="SPEC")
    parser.add_argument("--split", default="test", choices=("train", "valid", "test"))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=8192, help="of each document; 0 to leave them out")
    parser.add_argument("--passkey", type=int, nargs="*", default=[], metavar="TOKENS", help="lengths")
    parser.add_argument("--samples", type=int, default=3, help="pass keys at each depth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    model, tokenizer = load(args.model)
    assert isinstance(tokenizer, Tokenizer)
    result: dict[str, Any] = {
        "environment": describe_environment("cpu"),
        "settings": {**vars(args), "out": None},
        "config": model.config.to_dict(),
        "state_bytes": model.initial_state(1).nbytes,
        "positions": [],
        "passkey": [],
    }
    rows = texts(args.data, args.split, tokenizer, args.documents, args.tokens) if args.tokens else []
    widths = np.stack([tokenizer.byte_counts(ids[1:]) for ids in rows]) if rows else np.zeros((0, 0))
    base: NDArray[Any] | None = None
    for name in args.variants:
        began = time.perf_counter()
        if rows:
            changed = variant(model, name, args.tokens, args.seed)
            nats = np.stack(document_nats(changed, rows, size=_size(changed)))
            base = nats if base is None else base
            for low, high in pairwise(EDGES):
                if low >= args.tokens:
                    break
                here = slice(low, min(high, args.tokens))
                sums, reference, n_bytes = (x[:, here].sum(1) for x in (nats, base, widths))
                score = bootstrap_ratio(sums, n_bytes, scale=1 / math.log(2))
                minus = paired_bootstrap_ratio(sums, reference, n_bytes, scale=1 / math.log(2))
                cell = {"variant": name, "from": low, "to": here.stop, **score.to_dict("bits_per_byte")}
                result["positions"].append({**cell, "minus_first": minus.to_dict("bits_per_byte")})
                print(
                    f"{name:8} {low:6} to {here.stop:6}  {score.value:.4f}  minus first {minus.value:+.4f}"
                    f" ({minus.low} to {minus.high})",
                    file=sys.stderr,
                    flush=True,
                )
        for length in args.passkey:
            cells: dict[float, list[bool]] = {}
            changed = variant(model, name, args.tokens or 2 * length, args.seed)
            for depth, prompt, answer in passkeys(
                args.data, args.split, tokenizer, length, [0.1, 0.5, 0.8], args.samples, args.seed
            ):
                if name == "full":
                    changed = with_all_in_sight(model, len(prompt) + len(answer) - 1)
                cells.setdefault(depth, []).append(recalls(changed, prompt, answer))
            for depth, right in cells.items():
                share = wilson(sum(right), len(right))
                cell = {"variant": name, "length": length, "depth": depth, "samples": len(right)}
                result["passkey"].append({**cell, **share.to_dict("exact")})
                print(
                    f"{name:8} pass key at {depth} of {length}: {sum(right)} of {len(right)}",
                    file=sys.stderr,
                    flush=True,
                )
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    write_result(result, args.out)


if __name__ == "__main__":
    main()
