"""`rmat eval`: bits per byte, what the memory is worth, questions of tasks, lines of code.

The options of a task are the fields of its questions (`rmat.tasks.registry`); other measurements stand here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from rmat.cli.loading import add_model, load_with_tokenizer, with_banks
from rmat.cli.output import human_bytes, prepare_files, print_json, print_table, with_interval, write_files
from rmat.cli.parsing import Parser, add_command, add_json

if TYPE_CHECKING:
    from rmat.data.corpus import TextCorpus
    from rmat.data.store import JoinedStores, TokenStore
    from rmat.data.tokenizer import Tokenizer
    from rmat.model import LanguageModel
    from rmat.model.config import Eviction
    from rmat.model.language_model import MemoryMode
    from rmat.tasks.task import Questions

MEMORY_MODES: tuple[MemoryMode, ...] = ("on", "zeroed", "frozen", "shuffled")
EVICTIONS: tuple[Eviction, ...] = ("oldest", "weakest")
"""The literals of `rmat.model`, named here because the help of a command does not load torch."""

SCORES = ("exact", "95 % interval", "similarity")
ASPECT_NAMES = {"prompt": "suffix", "context": "context"}

COMPLETION = """\
Exact match of lines of held-out code, written greedily: from what stands before them, and by
fill-in-the-middle; without and with other files of the folder, which the model was trained on, read first;
with the memory on, zeroed (every read finds it empty) and shuffled (it holds another held-out file).

The files that are held out are those that training on the same data holds out. A file's split is decided by
its name and content, so measure a model trained on python-stdlib with the Python version of its training."""


def shared(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """`run`, by all the processes that torchrun started, of which the first alone speaks."""

    def run_shared(args: argparse.Namespace) -> int:
        from rmat.machine import is_first_process, spread

        with contextlib.ExitStack() as around:
            if not is_first_process():
                nowhere = around.enter_context(open(os.devnull, "w", encoding="utf-8"))
                around.enter_context(contextlib.redirect_stdout(nowhere))
                around.enter_context(contextlib.redirect_stderr(nowhere))
            around.enter_context(spread())
            return run(args)

    return run_shared


def add(commands: Any) -> None:
    """Add the command and what it measures."""
    parser = commands.add_parser("eval", help="measure a model", description="Measure a model.")
    kinds = parser.add_subparsers(
        title="measurements", dest="measurement", metavar="MEASUREMENT", required=True
    )

    perplexity = add_command(
        kinds,
        "perplexity",
        run=shared(run_perplexity),
        help="bits per byte of held-out text, in total and by position in the document",
        description="Bits per byte of held-out text. Every document starts with an empty memory.",
    )
    _add_text(perplexity)
    _add_memory(perplexity)

    ablation = add_command(
        kinds,
        "ablation",
        run=shared(run_ablation),
        help="bits per byte with the memory on, zeroed, frozen and shuffled",
        description="What the memory is worth: bits per byte with it on; zeroed (every read finds it\n"
        "empty), frozen (it keeps the document's start) and shuffled (it holds another document's; left out\n"
        "where there is one document only).",
    )
    _add_text(ablation)
    ablation.add_argument(
        "--mode",
        choices=MEMORY_MODES,
        action="append",
        help="measure only this besides on; repeatable (default: all)",
    )

    _add_tasks(kinds)

    dialogue = add_command(
        kinds,
        "dialogue",
        run=shared(run_dialogue),
        help="bits per byte of answers about whole meetings, memory on, off and shuffled",
        description="Bits per byte of reference answers to questions about whole meetings (QMSum), with the\n"
        "memory on, zeroed, frozen and shuffled. FILE: one conversation a line, with turns and queries.",
    )
    _add_measuring(dialogue)
    dialogue.add_argument("--data", required=True, metavar="FILE", help="JSONL file with turns and queries")
    dialogue.add_argument("--max-meetings", type=int, metavar="N", help="only the first N (default: all)")

    completion = add_command(
        kinds,
        "completion",
        run=shared(run_completion),
        help="exact match of the next line on held-out code, with and without its repository",
        description=COMPLETION,
    )
    _add_measuring(completion)
    completion.add_argument(
        "--data",
        metavar="SPEC",
        action="append",
        help="source of code whose test split is asked for; repeatable (default: python-stdlib)",
    )
    for name, default, text in (
        ("--samples", 200, "lines"),
        ("--per-file", 8, "most lines of a file"),
        ("--max-prompt-bytes", 2048, "bytes of the file before the line, and behind it"),
        ("--max-context-bytes", 65536, "bytes of other files read first"),
        ("--max-new-tokens", 48, "most tokens of a line"),
    ):
        completion.add_argument(
            name, type=int, default=default, metavar="N", help=f"{text} (default: {default})"
        )


def run_perplexity(args: argparse.Namespace) -> int:
    """Print bits per byte."""
    from rmat.evaluation.perplexity import perplexity

    model, tokenizer, store = _load_text(args)
    with _progress("scoring", lambda: _tokens_of(args, tokenizer, store)) as advance:
        found = perplexity(model, tokenizer, store, memory=args.memory, advance=advance, **_limits(args))
    rows = [("all", *with_interval(found.bits_per_byte, found.low, found.high))]
    for bucket in found.by_position:
        score = bucket.score
        rows.append((_range(bucket), *with_interval(score.value, score.low, score.high)))
    caption = (
        f"{found.documents:,} documents, {found.bytes:,} bytes, {found.tokens:,} tokens, memory "
        f"{found.memory}; positions are bytes of the document, over the {found.position_documents:,} "
        f"longest; {_state(found.to_dict())}"
    )
    return _show(args, model, found.to_dict(), ["position", "bits per byte", "95 % interval"], rows, caption)


def run_ablation(args: argparse.Namespace) -> int:
    """Print bits per byte in each use of the memory."""
    from rmat.evaluation.ablation import ablation

    model, tokenizer, store = _load_text(args)
    # One document has no other whose memory it could be given.
    alone = len(store) < 2 or (args.max_bytes is not None and store.document_bytes(0) >= args.max_bytes)
    modes: list[MemoryMode] = [
        mode for mode in args.mode or MEMORY_MODES if not (alone and mode == "shuffled")
    ]
    count = len({"on", *modes})
    with _progress("scoring", lambda: count * _tokens_of(args, tokenizer, store)) as advance:
        found = ablation(model, tokenizer, store, modes=tuple(modes), advance=advance, **_limits(args))
    write_files(args, {"modes": list(found.modes), **found.to_dict()}, model)
    if args.json:
        print_json({**dict.fromkeys(MEMORY_MODES), **found.to_dict()})
        return 0
    rows = []
    for mode, score in found.modes.items():
        gap = score.minus_on
        difference = ("", "") if mode == "on" else with_interval(gap.value, gap.low, gap.high)
        result = score.result
        rows.append((mode, *with_interval(result.bits_per_byte, result.low, result.high), *difference))
    on = found.modes["on"].result
    caption = (
        f"{on.documents:,} held-out documents, {on.bytes:,} bytes; intervals are over documents, those of "
        "the difference paired, so a difference above zero by its whole interval says that the memory helps"
    )
    print_table(["memory", "bits per byte", "95 % interval", "minus on", "95 % interval"], rows, caption)
    others = [mode for mode in found.modes if mode != "on"]
    if on.by_position and others:
        by_position = [
            (
                _range(buckets[0]),
                *(
                    part
                    for gap in (bucket.score for bucket in buckets)
                    for part in with_interval(gap.value, gap.low, gap.high)
                ),
            )
            for buckets in zip(*(found.modes[mode].minus_on_by_position for mode in others), strict=True)
        ]
        columns = [column for mode in others for column in (f"{mode} minus on", "95 % interval")]
        note = f"positions are bytes of the document, over the {on.position_documents:,} longest"
        print_table(["position", *columns], by_position, "\n" + note)
    return 0


def run_dialogue(args: argparse.Namespace) -> int:
    """Bits per byte of the answers by use of the memory."""
    from rmat.evaluation.dialogue import dialogue
    from rmat.evaluation.meetings import read_meetings

    model, tokenizer = _load(args)

    def total() -> int:
        meetings = read_meetings(args.data, tokenizer, 0, max_meetings=args.max_meetings)
        return len(MEMORY_MODES) * sum(len(meeting.tokens) for meeting in meetings)

    with _progress("reading meetings", total) as advance:
        found = dialogue(
            model,
            tokenizer,
            args.data,
            max_meetings=args.max_meetings,
            batch_size=args.batch_size,
            seed=args.seed,
            advance=advance,
        )
    result = found.to_dict()
    rows = []
    for mode in result["modes"]:
        score, gap = result[mode], result[mode]["minus_on"]
        difference = (
            ("", "") if mode == "on" else with_interval(gap["bits_per_byte"], gap["low"], gap["high"])
        )
        rows.append((mode, *with_interval(score["bits_per_byte"], score["low"], score["high"]), *difference))
    caption = (
        f"{result['samples']:,} answers on {result['meetings']} meetings; a difference above zero by its "
        f"whole interval says that the memory helps; {_state(result)}"
    )
    columns = ["memory", "bits per byte", "95 % interval", "minus on", "95 % interval"]
    return _show(args, model, result, columns, rows, caption)


def run_completion(args: argparse.Namespace) -> int:
    """Print accuracy by condition, and differences."""
    from rmat.data.config import DataConfig
    from rmat.data.corpus import load_corpus
    from rmat.evaluation.completion import completion, tokens_to_read
    from rmat.evaluation.next_line import choose_files

    model, tokenizer = _load(args)
    data = DataConfig(specs=tuple(args.data or ("python-stdlib",)))
    corpus = load_corpus(data, tokenizer=tokenizer)
    files = choose_files(
        corpus.train,
        corpus.test,
        tokenizer,
        samples=args.samples,
        per_file=args.per_file,
        max_prompt_bytes=args.max_prompt_bytes,
        max_context_bytes=args.max_context_bytes,
        seed=args.seed,
    )
    with _progress("completing lines", lambda: tokens_to_read(model, tokenizer, files)) as advance:
        found = completion(
            model,
            tokenizer,
            files,
            max_new_tokens=args.max_new_tokens,
            batch_size=args.batch_size,
            seed=args.seed,
            advance=advance,
        )
    result = {**found.to_dict(), "data": list(data.specs), "test_fingerprint": corpus.test.fingerprint}
    rows = [
        (
            f"{cell['prompt']}{', context' if cell['context'] else ''}, memory {cell['memory']}",
            f"{cell['length']:,}",
            *_line_scores(cell),
        )
        for cell in result["cells"]
    ]
    caption = (
        f"{result['samples']:,} lines of {result['files']} held-out files; context: "
        f"{result['context_bytes']:,.0f} bytes a file on average; {_state(result)}\n"
    )
    _show(args, model, result, ["asked with", "tokens", *SCORES], rows, caption)
    if not args.json:
        gaps = [
            (ASPECT_NAMES.get(gap["aspect"], gap["minus"].rpartition(", ")[2]), gap["of"], *_line_scores(gap))
            for gap in result["differences"]
        ]
        note = (
            "differences: fim minus prefix (suffix), with context minus without, memory on minus zeroed and\n"
            "minus shuffled; intervals are over files, those of differences paired"
        )
        print_table(["worth of", "in", *SCORES], gaps, note)
    return 0


def run_task(args: argparse.Namespace) -> int:
    """Print accuracy by cell of a task."""
    from rmat.evaluation.asking import ask
    from rmat.evaluation.rows import ask_rows
    from rmat.tasks.registry import questions_of
    from rmat.tasks.task import RowQuestions, TextQuestions

    cls = questions_of(args.measurement)
    given = {item.name: getattr(args, item.name) for item in fields(cls) if "help" in item.metadata}
    questions = cls(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
            if value is not None
        }
    )
    model, tokenizer = _load(args)
    common: dict[str, Any] = {"batch_size": args.batch_size, "seed": args.seed, "memory": args.memory}
    if isinstance(questions, RowQuestions):
        _require_trained(args, questions, tokenizer, model)
        count = args.samples if cls.samples else args.rows
        with _progress("reading", lambda: count * questions.tokens) as advance:
            result = ask_rows(model, questions, rows=count, advance=advance, **common).to_dict()
    else:
        assert isinstance(questions, TextQuestions)
        with _progress("reading", lambda: args.samples * questions.tokens(tokenizer)) as advance:
            found = ask(model, tokenizer, questions, samples=args.samples, advance=advance, **common)
        result = found.to_dict()
    by = next(name for name in ("turns", "pairs", "depth") if name in result["cells"][0])
    rows = [
        (
            cell["task"],
            f"{cell['length']:,}",
            "" if cell[by] is None else f"{cell[by]:,}",
            *with_interval(cell["accuracy"], cell["low"], cell["high"], 3),
            f"{cell['samples']:,}",
        )
        for cell in result["cells"]
    ]
    mean = f"mean accuracy {result['mean']:.4f}; " if "mean" in result else ""
    caption = f"{questions.note}{mean}memory {result['memory']}; {_state(result)}"
    return _show(
        args, model, result, ["task", "tokens", by, "accuracy", "95 % interval", "samples"], rows, caption
    )


def _add_tasks(kinds: Any) -> None:
    """A measurement for every task; its options are the fields of its questions."""
    from rmat.tasks import TASKS

    for name, summary in TASKS.items():
        parser = add_command(kinds, name, run=shared(run_task), help=summary)
        _add_measuring(parser)
        _add_memory(parser)
        _when_parsed(parser, partial(_add_fields, parser, name))


def _when_parsed(parser: Parser, fill: Callable[[], None]) -> None:
    """Let `fill` add options when the parser is used: tasks load torch, which the help of others can do
    without."""
    parse = parser.parse_known_args

    def parse_known_args(args: Any = None, namespace: Any = None) -> Any:
        parser.parse_known_args = parse  # type: ignore[method-assign]
        fill()
        return parse(args, namespace)

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign]


def _add_fields(parser: Parser, name: str) -> None:
    from rmat.settings import field_types
    from rmat.tasks.registry import questions_of

    cls = questions_of(name)
    parser.description = cls.__doc__
    if cls.samples:
        text = f"{cls.samples_are} (default: {cls.samples:,})"
        parser.add_argument("--samples", type=int, default=cls.samples, help=text)
    kinds_of = field_types(cls)
    for item in fields(cls):
        if "help" in item.metadata:
            _add_option(parser, item.name, kinds_of[item.name], item.default, item.metadata)


def _add_option(parser: Parser, name: str, kind: Any, default: Any, metadata: Any) -> None:
    many = get_origin(kind) is tuple
    element = get_args(kind)[0] if many else kind
    choices = get_args(element) if get_origin(element) is Literal else None
    text = metadata["help"] + ("; repeatable" if many else "")
    if default is not MISSING:
        values = [str(value) for value in (default if many else (default,))]
        words = " and ".join(filter(None, (", ".join(values[:-1]), values[-1] if values else "")))
        text += f" (default: {metadata['shown'] or words})"
    more = {"action": "append"} if many else {}
    parser.add_argument(
        f"--{name.replace('_', '-')}",
        type=str if choices else element,
        choices=choices,
        required=default is MISSING,
        default=None if many or default is MISSING else default,
        metavar=metadata["metavar"],
        help=text,
        **more,
    )


def _add_text(parser: Parser) -> None:
    """The options of measurements on held-out text."""
    _add_measuring(parser)
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


def _add_memory(parser: Parser) -> None:
    parser.add_argument(
        "--memory",
        choices=MEMORY_MODES,
        default="on",
        help="how the memory is used (default: on; see eval ablation)",
    )


def _add_measuring(parser: Parser) -> None:
    """The options of every measurement."""
    add_model(parser)
    parser.add_argument(
        "--slots", type=int, metavar="M", help="slots of every bank (default: as in training)"
    )
    parser.add_argument(
        "--eviction", choices=EVICTIONS, help="what a full bank gives up (default: as in training)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="ROWS", help="rows side by side (default: 8)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers (default: 0)")
    parser.add_argument(
        "--out", metavar="DIR", help="also write result.json, table.csv and plots (PNG, SVG) there"
    )
    add_json(parser)


def _progress(what: str, total: Callable[[], int]) -> Any:
    """A bar of `total` tokens with the time left, as a context that gives the function that counts them."""
    from contextlib import contextmanager

    from rmat.data.progress import Progress
    from rmat.machine import team

    @contextmanager
    def shown() -> Any:
        with Progress(True) as bars, bars.task(what, total()) as advance:
            yield lambda n_tokens: advance(n_tokens * team())  # others read as much meanwhile

    return shown()


def _show(
    args: argparse.Namespace,
    model: LanguageModel,
    result: dict[str, Any],
    columns: list[str],
    rows: list[Any],
    caption: str,
) -> int:
    """Print a result, and write its files where `--out` says."""
    write_files(args, result, model)
    if args.json:
        print_json(result)
    else:
        print_table(columns, rows, caption)
    return 0


def _require_trained(
    args: argparse.Namespace, questions: Questions, tokenizer: Tokenizer, model: LanguageModel
) -> None:
    """Raise ValueError for a model that was never trained on the task of numbered tokens that is asked."""
    from rmat.storage import run_folder
    from rmat.tasks.numbered import require_numbered
    from rmat.tasks.task import RowQuestions
    from rmat.training.config import RunConfig

    assert isinstance(questions, RowQuestions)
    if questions.vocab_size <= model.config.vocab_size:  # else `ask_rows` says what is missing
        require_numbered(tokenizer, questions.vocab_size, args.measurement)
    run = run_folder(args.model)
    specs = () if run is None else RunConfig.load(run).data.specs
    if specs and not any(spec.partition(":")[0] == args.measurement for spec in specs):
        raise ValueError(
            f"{args.model} was trained on {', '.join(specs)}, never on {args.measurement}: "
            f"ask a model that was trained on it (rmat train --data {args.measurement})"
        )


def _limits(args: argparse.Namespace) -> dict[str, Any]:
    names = ("max_bytes", "max_document_bytes", "batch_size", "seed")
    return {name: getattr(args, name) for name in names}


def _tokens_of(args: argparse.Namespace, tokenizer: Tokenizer, store: TokenStore | JoinedStores) -> int:
    from rmat.evaluation.perplexity import tokens_to_score

    return tokens_to_score(tokenizer, store, args.max_bytes, args.max_document_bytes)


def _load(args: argparse.Namespace) -> tuple[LanguageModel, Tokenizer]:
    prepare_files(args)
    model, tokenizer = load_with_tokenizer(args.model, args.device)
    return with_banks(model, args), tokenizer


def _load_text(args: argparse.Namespace) -> tuple[LanguageModel, Tokenizer, TokenStore | JoinedStores]:
    from rmat.data.config import DataConfig
    from rmat.data.corpus import load_corpus
    from rmat.data.streaming import load_stream
    from rmat.storage import run_folder
    from rmat.training.config import RunConfig

    model, tokenizer = _load(args)
    run = run_folder(args.model)
    data = DataConfig() if run is None else RunConfig.load(run).data
    if args.data:
        data = replace(data, specs=tuple(args.data), weights=None, streaming=False)
    if data.streaming:
        if args.split not in ("valid", "test"):
            raise ValueError(
                f"the run's data is a stream, of which only valid and test are kept, not {args.split!r}: "
                "give --split valid or test, or other --data"
            )
        held_out: TokenStore = getattr(load_stream(data, tokenizer=tokenizer), args.split)
        return model, tokenizer, held_out
    if args.split == "all":
        data = replace(data, valid_share=0.0)
    return model, tokenizer, _part(load_corpus(data, tokenizer=tokenizer), args.split)


def _part(corpus: TextCorpus, split: str) -> TokenStore | JoinedStores:
    """A split, or for "all" every split there is: a source with parts of its own is split whatever
    valid_share says."""
    from rmat.data.store import JoinedStores

    if split == "all":
        return JoinedStores([corpus.train, corpus.valid, corpus.test])
    store: TokenStore = getattr(corpus, split)
    return store


def _line_scores(row: dict[str, Any]) -> tuple[str, ...]:
    return *with_interval(row["accuracy"], row["low"], row["high"], 3), f"{row['similarity']:.3f}"


def _range(bucket: Any) -> str:
    return f"{bucket.start:,} to {bucket.stop:,}"


def _state(result: dict[str, Any]) -> str:
    return f"the state of one stream is {human_bytes(result['state_bytes'])}"
