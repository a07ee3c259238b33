"""`rmat eval mqar | passkey | needle | babilong | facts | dialogue`: questions that only a memory can answer."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rmat.cli.loading import load_with_tokenizer, with_banks
from rmat.cli.output import human_bytes, prepare_files, print_json, print_table, with_interval, write_files

if TYPE_CHECKING:
    from rmat.data.tokenizer import Tokenizer
    from rmat.model import LanguageModel


def run_mqar(args: argparse.Namespace) -> int:
    """Recall by test set."""
    from rmat.evaluation.mqar import mqar
    from rmat.tasks.mqar import TEST_MIX

    model = _load(args)[0]
    found = mqar(
        model,
        sets=[_pair(text) for text in args.set] if args.set else TEST_MIX,
        vocabulary=args.vocabulary,
        changes=args.changes,
        rows=args.samples,
        batch_size=args.batch_size,
        seed=args.seed,
        memory=args.memory,
    )
    result = found.to_dict()
    rows = [
        (
            f"{cell['length']:,} tokens, {cell['pairs']} pairs",
            *with_interval(cell["accuracy"], cell["low"], cell["high"], 3),
            f"{cell['samples']:,}",
        )
        for cell in result["cells"]
    ]
    caption = f"mean recall {found.mean:.4f}; {_state(result)}"
    return _show(args, model, result, ["test set", "recall", "95 % interval", "rows"], rows, caption)


def run_passkey(args: argparse.Namespace) -> int:
    """Accuracy by length and depth."""
    from rmat.evaluation.question_tasks import passkey

    def ask(model: LanguageModel, tokenizer: Tokenizer, advance: Callable[[int], None]) -> Any:
        return passkey(
            model,
            tokenizer,
            lengths=_length(args),
            depths=args.depth or (0.0, 0.5, 1.0),
            filler=args.filler or ("noise",),
            digits=args.digits,
            advance=advance,
            **_asked(args),
        )

    return _questions(args, ask, len(args.depth or (0, 0, 0)) * sum(_length(args)))


def run_needle(args: argparse.Namespace) -> int:
    """Accuracy by task and length."""
    from rmat.evaluation.question_tasks import needle
    from rmat.tasks.needle import NEEDLE_TASKS

    tasks = args.task or NEEDLE_TASKS

    def ask(model: LanguageModel, tokenizer: Tokenizer, advance: Callable[[int], None]) -> Any:
        return needle(
            model,
            tokenizer,
            lengths=_length(args),
            tasks=tasks,
            haystack=args.haystack,
            advance=advance,
            **_asked(args),
        )

    return _questions(args, ask, len(tasks) * sum(_length(args)))


def run_babilong(args: argparse.Namespace) -> int:
    """Accuracy by task and length."""
    from rmat.evaluation.question_tasks import babilong

    tasks = args.task or (1, 2, 3, 4, 5)

    def ask(model: LanguageModel, tokenizer: Tokenizer, advance: Callable[[int], None]) -> Any:
        return babilong(
            model,
            tokenizer,
            facts=args.facts,
            lengths=_length(args),
            tasks=tasks,
            filler=args.filler,
            scorer=args.scorer,
            advance=advance,
            **_asked(args),
        )

    return _questions(args, ask, len(tasks) * sum(_length(args)))


def run_facts(args: argparse.Namespace) -> int:
    """Accuracy by filler and turns."""
    from rmat.evaluation.question_tasks import facts

    def ask(model: LanguageModel, tokenizer: Tokenizer, advance: Callable[[int], None]) -> Any:
        return facts(
            model,
            tokenizer,
            turns=args.turns or (10, 100, 1000),
            fillers=args.filler or ("talk",),
            facts=args.facts,
            changes=args.changes,
            advance=advance,
            **_asked(args),
        )

    return _questions(args, ask, None)


def run_dialogue(args: argparse.Namespace) -> int:
    """Bits per byte of the answers by use of the memory."""
    from rmat.data.progress import Progress
    from rmat.evaluation.dialogue import dialogue

    model, tokenizer = _load(args)
    with Progress(True) as shown, shown.task("reading meetings") as advance:
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
        f"{result['samples']:,} answers on {result['meetings']} meetings; a difference above zero by its whole interval says "
        f"that the memory helps; {_state(result)}"
    )
    columns = ["memory", "bits per byte", "95 % interval", "minus on", "95 % interval"]
    return _show(args, model, result, columns, rows, caption)


def _questions(
    args: argparse.Namespace,
    ask: Callable[[LanguageModel, Tokenizer, Callable[[int], None]], Any],
    tokens: int | None,
) -> int:
    """Ask, with a bar over the `tokens` of one sample of every cell where they are known; print by cell."""
    from rmat.data.progress import Progress

    model, tokenizer = _load(args)
    with Progress(True) as shown, shown.task("reading", tokens and tokens * args.samples) as advance:
        result = ask(model, tokenizer, advance).to_dict()
    by = "turns" if "turns" in result["cells"][0] else "depth"
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
    columns = ["task", "tokens", by, "accuracy", "95 % interval", "samples"]
    return _show(args, model, result, columns, rows, _state(result))


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


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """Options that every asked task takes."""
    names = ("samples", "seed", "batch_size", "memory")
    return {name: getattr(args, name) for name in names}


def _length(args: argparse.Namespace) -> list[int]:
    lengths: list[int] = args.length or args.length_otherwise
    return lengths


def _load(args: argparse.Namespace) -> tuple[LanguageModel, Tokenizer]:
    prepare_files(args)
    model, tokenizer = load_with_tokenizer(args.model, args.device)
    return with_banks(model, args), tokenizer


def _state(result: dict[str, Any]) -> str:
    return f"the state of one stream is {human_bytes(result['state_bytes'])}"


def _pair(text: str) -> tuple[int, int]:
    length, comma, pairs = text.partition(",")
    if not comma or not length.isdecimal() or not pairs.isdecimal():
        raise ValueError(f"--set {text!r} is no test set: write LENGTH,PAIRS, for example 1024,256")
    return int(length), int(pairs)
