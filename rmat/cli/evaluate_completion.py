"""`rmat eval completion`: is the next line of held-out code exactly right?"""

from __future__ import annotations

import argparse
from typing import Any

from rmat.cli.loading import load_with_tokenizer, with_banks
from rmat.cli.output import human_bytes, prepare_files, print_json, print_table, with_interval, write_files
from rmat.cli.parsing import add_command

DESCRIPTION = """\
Exact match of lines of held-out code, written greedily: from what stands before them, and by fill-in-the-middle; without
and with other files of the folder, which the model was trained on, read first; with the memory on and zeroed.

The files that are held out are those that training on the same data holds out. A file's split is decided by its name and
content, so measure a model trained on python-stdlib with the Python version that it was trained with."""

SCORES = ("exact", "95 % interval", "similarity")
ASPECT_NAMES = {"prompt": "suffix", "context": "context", "memory": "memory"}


def add(kinds: Any) -> None:
    """Add the measurement."""
    from rmat.cli.evaluate_options import add_measuring

    parser = add_command(
        kinds,
        "completion",
        run=run,
        help="exact match of the next line on held-out code, with and without its repository",
        description=DESCRIPTION,
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a model or of a training run")
    parser.add_argument(
        "--data",
        metavar="SPEC",
        action="append",
        help="source of code whose test split is asked for; repeatable (default: python-stdlib)",
    )
    parser.add_argument("--samples", type=int, default=200, help="lines (default: 200)")
    parser.add_argument(
        "--per-file", type=int, default=8, metavar="N", help="most lines of a file (default: 8)"
    )
    parser.add_argument(
        "--max-prompt-bytes",
        type=int,
        default=2048,
        metavar="N",
        help="bytes of the file before the line, and behind it (default: 2048)",
    )
    parser.add_argument(
        "--max-context-bytes",
        type=int,
        default=65536,
        metavar="N",
        help="bytes of other files read first (default: 65536)",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=48, metavar="N", help="most tokens of a line (default: 48)"
    )
    add_measuring(parser)


def run(args: argparse.Namespace) -> int:
    """Print accuracy by way of asking, and differences."""
    from rmat.data.config import DataConfig
    from rmat.data.corpus import load_corpus
    from rmat.data.progress import Progress
    from rmat.evaluation.completion import completion, tokens_to_read
    from rmat.evaluation.next_line import choose_files

    prepare_files(args)
    model, tokenizer = load_with_tokenizer(args.model, args.device)
    model = with_banks(model, args)
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
    with (
        Progress(True) as shown,
        shown.task("completing lines", tokens_to_read(model, tokenizer, files)) as advance,
    ):
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
    write_files(args, result, model)
    if args.json:
        print_json(result)
        return 0
    rows = [
        (
            f"{cell['prompt']}{', context' if cell['context'] else ''}, memory {cell['memory']}",
            f"{cell['length']:,}",
            *_scores(cell),
        )
        for cell in result["cells"]
    ]
    caption = (
        f"{result['samples']:,} lines of {result['files']} held-out files; context: {result['context_bytes']:,.0f} bytes a "
        f"file on average; the state of one stream is {human_bytes(result['state_bytes'])}\n"
    )
    print_table(["asked with", "tokens", *SCORES], rows, caption)
    gaps = [(ASPECT_NAMES[gap["aspect"]], gap["of"], *_scores(gap)) for gap in result["differences"]]
    note = (
        "differences: fim minus prefix (suffix), with context minus without, memory on minus zeroed\n"
        "intervals are over files, those of differences paired"
    )
    print_table(["worth of", "in", *SCORES], gaps, note)
    return 0


def _scores(row: dict[str, Any]) -> tuple[str, ...]:
    return *with_interval(row["accuracy"], row["low"], row["high"], 3), f"{row['similarity']:.3f}"
