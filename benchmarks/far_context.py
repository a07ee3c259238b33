"""Compare runs on the same test documents: bits per byte by position, and on the tokens that need far context.

    python benchmarks/far_context.py RUN ... --base RUN --far-of FULL LOCAL [--max-document-bytes 140000]

All runs have the same data and tokenizer. Each is compared with `--base` on the same documents (paired
bootstrap over documents). Tokens that need far context are those that the run FULL (full attention) predicts
better than the run LOCAL (no memory) by a margin in nats, as LongPPL chooses them (arXiv 2410.23771); their
loss is given for the other runs. Writes one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rmat.api import load
from rmat.data.corpus import load_corpus
from rmat.data.tokenizer import Tokenizer
from rmat.evaluation.intervals import Interval, bootstrap_ratio, paired_bootstrap_ratio
from rmat.evaluation.perplexity import token_nats
from rmat.generation.reader import Piece, scan
from rmat.machine import describe_environment
from rmat.model import LanguageModel
from rmat.training.config import RunConfig

BITS = 1 / math.log(2)


def document_nats(
    model: LanguageModel, documents: list[NDArray[Any]], memory: str = "on", size: int | None = 2048
) -> list[NDArray[Any]]:
    """Nats of every token but the first of each document, each read from an empty state, `size` tokens in a
    call."""
    parts: list[list[NDArray[Any]]] = [[] for _ in documents]

    def add(piece: Piece) -> None:
        for place, (row, length) in enumerate(zip(piece.rows, piece.lengths, strict=True)):
            targets = torch.from_numpy(documents[row][piece.start + 1 :][:length].astype(np.int64))
            if len(targets):
                parts[row].append(token_nats(piece.logits_BTV[place, : len(targets)], targets).cpu().numpy())

    scan(model, [ids[:-1] for ids in documents], size=size, memory=memory, leave=True, each=add)
    return [np.concatenate(nats).astype(np.float64) for nats in parts]


def summed(
    nats: list[NDArray[Any]], widths: list[NDArray[Any]], chosen: list[NDArray[Any]]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Nats and bytes of the chosen tokens of each document."""
    pairs = [(n[c].sum(), w[c].sum()) for n, w, c in zip(nats, widths, chosen, strict=True)]
    table = np.array(pairs, dtype=np.float64)
    return table[:, 0], table[:, 1]


def shown(found: Interval) -> str:
    """Value and bounds in one cell."""
    return f"{found.value:8.4f} ({found.low:.4f} to {found.high:.4f})"


def write_result(result: dict[str, Any], out: Path | None) -> None:
    """Write a result as JSON to a file, or to standard output."""
    text = json.dumps(result, indent=1) + "\n"
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
    else:
        print(text, end="")


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--base", type=Path, required=True, metavar="RUN", help="what runs are compared with")
    parser.add_argument("--far-of", type=Path, nargs=2, metavar=("FULL", "LOCAL"), help="two of the runs")
    parser.add_argument("--margin", type=float, default=1.0, help="nats (default: 1)")
    parser.add_argument("--max-document-bytes", type=int, default=140_000)
    parser.add_argument("--split", default="test", choices=("valid", "test"))
    parser.add_argument("--out", type=Path, help="file of the result (default: standard output)")
    args = parser.parse_args()

    folders = list(dict.fromkeys((*args.runs, args.base, *(args.far_of or ()))))
    config = RunConfig.from_dict(json.loads((args.base / "config.json").read_text()))
    _, tokenizer = load(args.base)
    assert isinstance(tokenizer, Tokenizer)
    store = getattr(load_corpus(config.data, tokenizer=tokenizer), args.split)
    documents, widths = [], []
    for index in range(len(store)):
        ids = np.asarray(store.view(index))
        width = tokenizer.byte_counts(ids[1:])
        keep = int(np.searchsorted(np.cumsum(width), args.max_document_bytes))
        documents.append(ids[: keep + 1])
        widths.append(width[:keep])
    starts = [np.cumsum(width) - width for width in widths]
    edges = [0, 1024, 4096, 16384, 65536, args.max_document_bytes]
    choices = {"all": [np.ones(len(width), dtype=bool) for width in widths]}
    for low, high in pairwise(edges):
        choices[f"{low} to {high}"] = [(start >= low) & (start < high) for start in starts]

    nats: dict[str, list[NDArray[Any]]] = {}
    state_bytes, parameters = {}, {}
    for folder in folders:
        model, _ = load(folder)
        for memory in ("on", "zeroed") if model.config.has_memory else ("on",):
            name = folder.name if memory == "on" else f"{folder.name}, {memory}"
            print(f"reading with {name}", file=sys.stderr, flush=True)
            nats[name] = document_nats(model, documents, memory)
            state_bytes[name] = model.initial_state(1).nbytes
            parameters[name] = sum(p.numel() for p in model.parameters())
    if args.far_of:
        full, local = (nats[folder.name] for folder in args.far_of)
        choices["far tokens"] = [b - a >= args.margin for a, b in zip(full, local, strict=True)]

    rows = []
    for name, measured in nats.items():
        row: dict[str, Any] = {"run": name, "state_bytes": state_bytes[name], "parameters": parameters[name]}
        for choice, chosen in choices.items():
            own, n_bytes = summed(measured, widths, chosen)
            base, _ = summed(nats[args.base.name], widths, chosen)
            score = bootstrap_ratio(own, n_bytes, scale=BITS)
            minus = paired_bootstrap_ratio(own, base, n_bytes, scale=BITS)
            row[choice] = {**score.to_dict("bits_per_byte"), "minus_base": minus.to_dict("bits_per_byte")}
            print(f"{name:32} {choice:18} {shown(score)}   minus base {shown(minus)}", file=sys.stderr)
        rows.append(row)
    result = {
        "environment": describe_environment("cpu"),
        "base": args.base.name,
        "split": args.split,
        "documents": len(documents),
        "bytes": int(sum(width.sum() for width in widths)),
        "tokens": {name: int(sum(c.sum() for c in chosen)) for name, chosen in choices.items()},
        "margin": args.margin,
        "rows": rows,
    }
    write_result(result, args.out)


if __name__ == "__main__":
    main()
