"""What a pretrained model keeps of its quality when its state has one size, by what its bank admits.

    rmat import smollm2 runs/smol
    python benchmarks/pretrained.py runs/smol --data FOLDER/books [--split valid] [--out FILE]

Every variant is the same model with a state of the same size; only what it admits differs:

    window     no bank: sinks and a window of all the places (as StreamingLLM, arXiv 2309.17453)
    recent     all are admitted: the newest tokens behind the window; a longer window for most of its tokens
    random     a random half; oldest leaves
    norm       the half whose keys have the smallest norm (arXiv 2406.11430); oldest leaves
    oldest     the half that the fitted gates like best; oldest leaves
    weakest    as the gates admit; the weakest leaves, however old
    given      as the model is: for smollm2 the weakest leaves, and strength fades with age
    full       the source itself, with everything in sight, within its trained context

Bits per byte by position are measured on documents of a split, each read from its start. Pass keys are hidden
in the same text and asked for in the chat format, as needles are (`rmat eval needle`); all digits must be the
most likely token. Facts, five in a text, are asked for as by `rmat ask`, greedily: the value must occur in
the answer. `--decode` times decoding beside transformers with its cache, in turns. The file is written after
every step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from far_context import document_nats
from numpy.typing import NDArray

from rmat.api import load
from rmat.data.documents import encode_lead, encode_turns, text_document
from rmat.data.sources import split_documents
from rmat.data.tokenizer import Tokenizer
from rmat.evaluation.intervals import bootstrap_ratio, paired_bootstrap_ratio, wilson
from rmat.generation.reader import Piece, read_row, scan
from rmat.machine import describe_environment
from rmat.model import LanguageModel
from rmat.pretrained.gates import admitting, with_all_in_sight, with_scores
from rmat.pretrained.model import OPEN
from rmat.sessions.conversation import Conversation
from rmat.storage import assigned
from rmat.tasks.haystack import hide, load_filler, without
from rmat.tasks.needle import NeedleTask

VARIANTS = ("window", "recent", "random", "norm", "oldest", "weakest", "given", "full")
EDGES = (0, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
DEPTHS = (0.1, 0.5, 0.8)
NEEDLES = ("single_1", "single_2", "multikey_1")
SPAN = 1024
"""Tokens of one call: the logits of a large vocabulary are large."""

FACTS = (
    ("The name of the gardener is Osric Pell.", "What is the name of the gardener?", "Osric"),
    ("The blue locker has the number 4187.", "What number does the blue locker have?", "4187"),
    ("Miriam's favourite colour is turquoise.", "What is Miriam's favourite colour?", "turquoise"),
    ("The old map is hidden inside the grandfather clock.", "Where is the old map hidden?", "clock"),
    (
        "The ship to Valparaiso leaves on Thursday at noon.",
        "When does the ship to Valparaiso leave?",
        "Thursday",
    ),
)
"""Sentence, question, and what the answer must hold."""


def variant(model: LanguageModel, name: str, n_tokens: int, seed: int, sample: list[int]) -> LanguageModel:
    """The model with other gates, or with everything in sight; `sample` are tokens to set a threshold by."""
    config = model.config
    if name == "full":
        return with_all_in_sight(model, n_tokens)
    if name == "given":
        return model
    tensors = dict(model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    for key in [key for key in tensors if ".writer.score." in key]:
        if name in ("window", "recent"):
            tensors[key] = torch.full_like(tensors[key], OPEN if key.endswith("bias") else 0.0)
        elif name == "random":
            drawn = torch.randn(tensors[key].shape, generator=generator).to(tensors[key])
            tensors[key] = torch.zeros_like(drawn) if key.endswith("bias") else 100 * drawn
    if name == "window":
        chunk = (2 * config.chunk_len + config.n_slots) // 2
        fields: dict[str, Any] = {
            "segment_len": chunk,
            "chunk_len": chunk,
            "n_slots": 1,
            "writes_per_segment": 1,
        }
        config = dataclasses.replace(
            config, **fields, writer="select", eviction="oldest", fade=0.0, newest_share=0.0
        )
        return assigned(config, tensors)
    eviction: Any = "weakest" if name == "weakest" else "oldest"
    changed = assigned(dataclasses.replace(config, eviction=eviction, fade=0.0, newest_share=0.0), tensors)
    if name == "norm":
        _score_by_norm(changed, sample)
    elif name == "oldest":
        changed = _admitting_half(changed, sample)
    return changed


def _inputs(model: LanguageModel, sample: list[int]) -> list[torch.Tensor]:
    """What the gates of every block see of the sample: its inputs (1, T, E)."""
    found: list[torch.Tensor] = []
    blocks: Any = model.blocks
    hooks = [block.norm.register_forward_hook(lambda _, __, x_BTE: found.append(x_BTE)) for block in blocks]
    scan(model, [sample], size=len(sample))
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def _admitting_half(model: LanguageModel, sample: list[int]) -> LanguageModel:
    """The model whose gates admit the half of the sample's tokens that they like best."""
    blocks: Any = model.blocks
    scores = [block.memory.writer.score for block in blocks]
    inputs = _inputs(model, sample)
    found = [admitting(0.5, s.weight, s.bias, x_BTE[0]) for s, x_BTE in zip(scores, inputs, strict=True)]
    return with_scores(model, found)


def _score_by_norm(model: LanguageModel, sample: list[int]) -> None:
    """Let a token's score be how much smaller its key is than that of half of the sample's tokens."""
    blocks: Any = model.blocks
    for block, x_BTE in zip(blocks, _inputs(model, sample), strict=True):
        key = block.local["chunked"].key

        def norms(x: torch.Tensor, key: Any = key) -> torch.Tensor:
            return key(x).unflatten(-1, (model.config.n_kv_heads, -1)).norm(dim=-1)

        with torch.no_grad():
            middle = norms(x_BTE)[0].median(0).values
        block.memory.writer.scores = lambda x, noise=0.0, norms=norms, middle=middle: (
            1e3 * (middle - norms(x))
        )


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


def passkeys(
    spec: str, split: Any, tokenizer: Tokenizer, length: int, samples: int, seed: int
) -> Iterator[tuple[float, list[int], list[int]]]:
    """(depth, prompt, answer) of texts of about `length` tokens with a number in them."""
    random = np.random.default_rng(seed)
    for depth in DEPTHS:
        for _ in range(samples):
            key = str(random.integers(10_000, 100_000))
            sentences = load_filler(spec, split).sentences(random)
            statement = f" The pass key is {key}. Remember it. {key} is the pass key."
            parts = hide([(depth, statement)], sentences, length, tokenizer)
            text = "".join(text for _, text in parts).strip()
            read = [*encode_lead(tokenizer, "nothing"), *tokenizer.encode(text)]
            question = "What is the pass key that the text above names?"
            yield depth, *asked(tokenizer, read, question, "The pass key is ", key)


def needles(
    spec: str, split: Any, tokenizer: Tokenizer, task: str, length: int, samples: int, seed: int
) -> Iterator[tuple[list[int], list[int]]]:
    """(prompt, answer) of the needle task's examples, the question in the chat format, the answer begun."""
    random = np.random.default_rng([seed, length])
    source = NeedleTask(task=task, haystack=spec, split=split)
    for _ in range(samples):
        example = source.example(random, length, tokenizer)
        pieces = [piece for piece in example.pieces if isinstance(piece, str)]
        question, begun = pieces[-1].rsplit("?", 1)
        read = [*encode_lead(tokenizer, "nothing"), *tokenizer.encode("".join(pieces[:-1]).strip())]
        yield asked(tokenizer, read, f"{question.strip()}?", f"{begun.strip()} ", example.answer.strip())


def asked(
    tokenizer: Tokenizer, read: list[int], question: str, begun: str, answer: str
) -> tuple[list[int], list[int]]:
    """Tokens up to the begun answer, and those of the answer, of a question behind what was read."""
    prompt, whole = (
        [*read, *encode_turns(tokenizer, [("user", question)], "text", answer=True, begun=said)]
        for said in (begun, begun + answer)
    )
    common = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    return whole[:common], whole[common:]


@torch.no_grad()
def recalls(model: LanguageModel, prompt: list[int], answer: list[int]) -> bool:
    """Whether every token of the answer is the most likely one."""
    _, state = read_row(model, prompt[:-1])
    found: list[torch.Tensor] = []

    def add(piece: Piece) -> None:
        found.append(piece.logits_BTV[0].argmax(1))

    scan(model, [[prompt[-1], *answer[:-1]]], state, each=add)
    return torch.cat(found).tolist() == answer


def facts(
    model: LanguageModel, tokenizer: Tokenizer, spec: str, split: Any, length: int, samples: int, seed: int
) -> Iterator[tuple[float, str, str, bool]]:
    """(depth, question, answer, whether it is right) of five facts in each of so many texts."""
    for sample in range(samples):
        random = np.random.default_rng([seed, sample])
        chosen = [FACTS[k] for k in random.permutation(len(FACTS))]
        depths = np.sort(random.random(len(chosen))).tolist()
        sentences = without([value for *_, value in chosen], load_filler(spec, split).sentences(random))
        planted = [(depth, f" {stated}") for depth, (stated, *_) in zip(depths, chosen, strict=True)]
        text = "".join(part for _, part in hide(planted, sentences, length, tokenizer)).strip()
        talk = Conversation(model, tokenizer)
        talk.read_document(text_document("text", text))
        for depth, (_, question, value) in zip(depths, chosen, strict=True):
            answer = "".join(talk.fork().say(question, temperature=0.0, max_new_tokens=40)).strip()
            yield depth, question, answer, value.lower() in answer.lower()


def decoding(
    model: LanguageModel, contexts: list[int], rounds: int, n_tokens: int
) -> Iterator[dict[str, Any]]:
    """Tokens per second behind contexts of so many tokens: ours, and transformers with its cache."""
    import transformers

    from rmat.pretrained import SHORT_NAMES
    from rmat.pretrained.source import downloaded

    path = downloaded(SHORT_NAMES["smollm2"])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    device = model.embedding.weight.device
    theirs = theirs.to(device)
    random = np.random.default_rng(0)
    for context in contexts:
        ids = random.integers(0, model.config.vocab_size, context)
        with torch.inference_mode():
            logits, state = read_row(model, ids)
            cache = theirs(torch.from_numpy(ids)[None].to(device), use_cache=True, logits_to_keep=1).cache
            seconds: dict[str, list[float]] = {"rmat": [], "transformers": []}
            for _ in range(rounds):
                token, begun = logits.argmax().view(1, 1), time.perf_counter()
                for _ in range(n_tokens):
                    following, state = model(token, state)
                    token = following[:, -1].argmax(-1, keepdim=True)
                seconds["rmat"].append(time.perf_counter() - begun)
                begun = time.perf_counter()
                for _ in range(n_tokens):
                    found = theirs(token, cache=cache, use_cache=True)
                    cache, token = found.cache, found.logits[:, -1].argmax(-1, keepdim=True)
                seconds["transformers"].append(time.perf_counter() - begun)
        rates = {name: [n_tokens / each for each in spent] for name, spent in seconds.items()}
        ratios = [ours / other for ours, other in zip(rates["rmat"], rates["transformers"], strict=True)]
        yield {
            "context": context,
            "tokens": n_tokens,
            "rounds": rounds,
            "tokens_per_second": {name: statistics.median(each) for name, each in rates.items()},
            "ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
        }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", help="folder of an imported model with fitted gates, or smollm2")
    parser.add_argument("--data", required=True, metavar="SPEC")
    parser.add_argument("--split", default="test", choices=("train", "valid", "test"))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=8192, help="of each document; 0 to leave them out")
    parser.add_argument("--passkey", type=int, nargs="*", default=[], metavar="TOKENS", help="lengths")
    parser.add_argument("--needles", type=int, nargs="*", default=[], metavar="TOKENS", help="lengths")
    parser.add_argument(
        "--samples", type=int, default=3, help="pass keys at each depth, needles of each task, texts of facts"
    )
    parser.add_argument("--facts", type=int, nargs="*", default=[], metavar="TOKENS", help="lengths")
    parser.add_argument("--decode", type=int, nargs="*", default=[], metavar="TOKENS", help="contexts")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    model, tokenizer = load(args.model, args.device)
    assert isinstance(tokenizer, Tokenizer)
    result: dict[str, Any] = {
        "environment": describe_environment(args.device),
        "settings": {**vars(args), "out": None},
        "config": model.config.to_dict(),
        "state_bytes": model.initial_state(1).nbytes,
        "positions": [],
        "passkey": [],
        "needles": [],
        "facts": [],
        "decoding": [],
        "seconds": {},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)

    def keep(part: str, cell: dict[str, Any], told: str) -> None:
        result[part].append(cell)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(told, file=sys.stderr, flush=True)

    def keep_share(part: str, name: str, of: dict[str, Any], right: list[bool]) -> None:
        share = wilson(sum(right), len(right))
        cell = {"variant": name, **of, "samples": len(right), **share.to_dict("exact")}
        keep(part, cell, f"{name:8} {part} {of}: {sum(right)} of {len(right)}")

    for cell in decoding(model, args.decode, 7, 24) if args.decode else ():
        keep("decoding", cell, str(cell))
    rows = texts(args.data, args.split, tokenizer, args.documents, args.tokens) if args.tokens else []
    widths = np.stack([tokenizer.byte_counts(ids[1:]) for ids in rows]) if rows else np.zeros((0, 0))
    sample = texts(args.data, "train", tokenizer, 1, SPAN)[0].tolist()
    most = max([args.tokens, *args.passkey, *args.needles, *args.facts], default=0) + 512
    base: NDArray[Any] | None = None
    for name in args.variants:
        began = time.perf_counter()
        changed = variant(model, name, most, args.seed, sample)
        if rows:
            nats = np.stack(document_nats(changed, rows, size=SPAN))
            base = nats if base is None else base
            for low, high in pairwise(EDGES):
                if low >= args.tokens:
                    break
                here = slice(low, min(high, args.tokens))
                sums, reference, n_bytes = (x[:, here].sum(1) for x in (nats, base, widths))
                score = bootstrap_ratio(sums, n_bytes, scale=1 / math.log(2))
                minus = paired_bootstrap_ratio(sums, reference, n_bytes, scale=1 / math.log(2))
                cell = {"variant": name, "from": low, "to": here.stop, **score.to_dict("bits_per_byte")}
                keep(
                    "positions",
                    {**cell, "documents": len(rows), "minus_first": minus.to_dict("bits_per_byte")},
                    f"{name:8} {low:6} to {here.stop:6}  {score.value:.4f}  minus first {minus.value:+.4f}"
                    f" ({minus.low} to {minus.high})",
                )
        for length in args.facts:
            found = list(facts(changed, tokenizer, args.data, args.split, length, args.samples, args.seed))
            share = wilson(sum(right for *_, right in found), len(found))
            cell = {"variant": name, "length": length, "samples": len(found), **share.to_dict("right")}
            keep("facts", {**cell, "answers": found}, f"{name:8} facts in {length}: {share.value:.2f}")
        for length in args.passkey:
            cells: dict[float, list[bool]] = {}
            for depth, prompt, answer in passkeys(
                args.data, args.split, tokenizer, length, args.samples, args.seed
            ):
                cells.setdefault(depth, []).append(recalls(changed, prompt, answer))
            for depth, right in cells.items():
                keep_share("passkey", name, {"length": length, "depth": depth}, right)
        for length, task in product(args.needles, NEEDLES):
            examples = needles(args.data, args.split, tokenizer, task, length, args.samples, args.seed)
            right = [recalls(changed, *example) for example in examples]
            keep_share("needles", name, {"length": length, "task": task}, right)
        result["seconds"][name] = time.perf_counter() - began
        print(f"{name}: {result['seconds'][name]:.0f} s", file=sys.stderr, flush=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
