"""`rmat eval`: bits per byte, what the memory is worth, recall."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rmat.cli import evaluate_completion, evaluate_options
from rmat.cli.loading import load_with_tokenizer, with_banks
from rmat.cli.output import human_bytes, prepare_files, print_json, print_table, with_interval, write_files
from rmat.cli.parsing import add_command

if TYPE_CHECKING:
    from rmat.data.corpus import TextCorpus
    from rmat.data.store import JoinedStores, TokenStore
    from rmat.data.tokenizer import Tokenizer
    from rmat.model import LanguageModel


def add(commands: Any) -> None:
    """Add the command and what it measures."""
    parser = commands.add_parser("eval", help="measure a model", description="Measure a model.")
    kinds = parser.add_subparsers(
        title="measurements", dest="measurement", metavar="MEASUREMENT", required=True
    )

    perplexity = add_command(
        kinds,
        "perplexity",
        run=run_perplexity,
        help="bits per byte of held-out text, in total and by position in the document",
        description="Bits per byte of held-out text. Every document starts with an empty memory.",
    )
    _add_text_options(perplexity)
    perplexity.add_argument(
        "--memory",
        choices=evaluate_options.MEMORY_MODES,
        default="on",
        help="how the memory is used (default: on; see eval ablation)",
    )

    ablation = add_command(
        kinds,
        "ablation",
        run=run_ablation,
        help="bits per byte with the memory on, zeroed, frozen and shuffled",
        description="What the memory is worth: bits per byte with it on; zeroed (every read finds it empty), frozen (it keeps\n"
        "the document's start) and shuffled (it holds another document's; left out where there is one document only).",
    )
    _add_text_options(ablation)
    ablation.add_argument(
        "--mode",
        choices=evaluate_options.MEMORY_MODES,
        action="append",
        help="measure only this besides on; repeatable (default: all)",
    )

    recall = add_command(
        kinds,
        "recall",
        run=run_recall,
        help="recall of key-value pairs over any length, for models trained on that task",
        description="Accuracy of recalling key-value pairs from the start of a stream of each length, for a model that was\n"
        "trained on that task (rmat train --data recall).",
    )
    recall.add_argument("model", metavar="MODEL", help="folder of a model")
    recall.add_argument(
        "--length", type=int, action="append", metavar="TOKENS", help="length; repeatable (default: 256)"
    )
    recall.add_argument("--rows", type=int, default=64, help="streams of each length (default: 64)")
    recall.add_argument("--pairs", type=int, default=8, help="pairs to remember (default: 8)")
    recall.add_argument(
        "--queries", choices=("end", "everywhere"), default="end", help="where they are asked (default: end)"
    )
    recall.add_argument(
        "--memory",
        choices=evaluate_options.MEMORY_MODES,
        default="on",
        help="how the memory is used (default: on)",
    )
    evaluate_options.add_measuring(recall)
    evaluate_options.add(kinds)
    evaluate_completion.add(kinds)


def run_perplexity(args: argparse.Namespace) -> int:
    """Print bits per byte."""
    from rmat.evaluation.perplexity import perplexity

    model, tokenizer, store = _load(args)
    found = perplexity(
        model,
        tokenizer,
        store,
        memory=args.memory,
        max_bytes=args.max_bytes,
        max_document_bytes=args.max_document_bytes,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    write_files(args, found.to_dict(), model)
    if args.json:
        print_json(found.to_dict())
        return 0
    rows = [("all", *with_interval(found.bits_per_byte, found.low, found.high))]
    for bucket in found.by_position:
        score = bucket.score
        rows.append(
            (f"{bucket.start:,} to {bucket.stop:,}", *with_interval(score.value, score.low, score.high))
        )
    caption = (
        f"{found.documents:,} documents, {found.bytes:,} bytes, {found.tokens:,} tokens, memory {found.memory}; positions "
        f"are bytes of the document, over the {found.position_documents:,} longest; the state of one stream is "
        f"{human_bytes(found.state_bytes)}"
    )
    print_table(["position", "bits per byte", "95 % interval"], rows, caption)
    return 0


def run_ablation(args: argparse.Namespace) -> int:
    """Print bits per byte in each way of using the memory."""
    from rmat.evaluation.ablation import ablation

    model, tokenizer, store = _load(args)
    # One document has no other whose memory it could be given.
    alone = len(store) < 2 or (args.max_bytes is not None and store.document_bytes(0) >= args.max_bytes)
    modes = [
        mode for mode in args.mode or evaluate_options.MEMORY_MODES if not (alone and mode == "shuffled")
    ]
    found = ablation(
        model,
        tokenizer,
        store,
        modes=tuple(modes),
        max_bytes=args.max_bytes,
        max_document_bytes=args.max_document_bytes,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    write_files(args, {"modes": list(found.modes), **found.to_dict()}, model)
    if args.json:
        print_json({**dict.fromkeys(evaluate_options.MEMORY_MODES), **found.to_dict()})
        return 0
    rows = []
    for mode, score in found.modes.items():
        difference = score.minus_on
        gap = ("", "") if mode == "on" else with_interval(difference.value, difference.low, difference.high)
        rows.append(
            (mode, *with_interval(score.result.bits_per_byte, score.result.low, score.result.high), *gap)
        )
    on = found.modes["on"].result
    caption = (
        f"{on.documents:,} held-out documents, {on.bytes:,} bytes; intervals are over documents, those of the difference "
        "paired, so a difference above zero by its whole interval says that the memory helps"
    )
    print_table(["memory", "bits per byte", "95 % interval", "minus on", "95 % interval"], rows, caption)
    return 0


def run_recall(args: argparse.Namespace) -> int:
    """Print accuracy by length."""
    from rmat.evaluation.recall import recall
    from rmat.machine import pick_device
    from rmat.storage import load_model
    from rmat.tasks.recall import RecallTask

    prepare_files(args)
    model = with_banks(load_model(args.model, pick_device(args.device)[0]), args)
    found = recall(
        model,
        RecallTask(n_pairs=args.pairs),
        lengths=args.length or (256,),
        queries=args.queries,
        rows=args.rows,
        batch_size=args.batch_size,
        seed=args.seed,
        memory=args.memory,
    )
    write_files(args, found.to_dict(), model)
    if args.json:
        print_json(found.to_dict())
        return 0
    cells = [cell.to_dict() for cell in found.cells]
    rows = [
        (
            f"{cell['length']:,}",
            *with_interval(cell["accuracy"], cell["low"], cell["high"], 3),
            f"{cell['samples']:,}",
        )
        for cell in cells
    ]
    caption = f"first queries of a key; memory {found.memory}; the state of one stream is {human_bytes(found.state_bytes)}"
    print_table(["tokens", "accuracy", "95 % interval", "queries"], rows, caption)
    return 0


def _add_text_options(parser: Any) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder of a model or of a training run")
    parser.add_argument(
        "--data",
        metavar="SPEC",
        action="append",
        help="what to read (default: what the run was trained on, else python-stdlib); repeatable",
    )
    parser.add_argument(
        "--split",
        choices=("train", "valid", "test", "all"),
        default="test",
        help="part of the data (default: test); all takes everything, for text the model was not trained on",
    )
    parser.add_argument(
        "--max-bytes", type=int, metavar="N", help="read at most N bytes of it (default: all)"
    )
    parser.add_argument(
        "--max-document-bytes",
        type=int,
        metavar="N",
        help="read at most N bytes of each document (default: all)",
    )
    evaluate_options.add_measuring(parser)


def _load(args: argparse.Namespace) -> tuple[LanguageModel, Tokenizer, TokenStore | JoinedStores]:
    from rmat.data.config import DataConfig
    from rmat.data.corpus import load_corpus
    from rmat.storage import run_folder
    from rmat.training.config import RunConfig

    prepare_files(args)
    model, tokenizer = load_with_tokenizer(args.model, args.device)
    model = with_banks(model, args)
    run = run_folder(args.model)
    data = DataConfig() if run is None else RunConfig.load(run).data
    if args.data:
        data = replace(data, specs=tuple(args.data), weights=None)
    if args.split == "all":
        data = replace(data, valid_share=0.0)
    return model, tokenizer, _part(load_corpus(data, tokenizer=tokenizer), args.split)


def _part(corpus: TextCorpus, split: str) -> TokenStore | JoinedStores:
    """A split, or for "all" every split there is: a source with parts of its own is split whatever valid_share says."""
    from rmat.data.store import JoinedStores

    if split == "all":
        return JoinedStores([corpus.train, corpus.valid, corpus.test])
    store: TokenStore = getattr(corpus, split)
    return store
