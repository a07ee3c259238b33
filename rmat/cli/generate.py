"""`rmat generate`: text that goes on from a prompt, shown as it is written."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from rmat.cli.loading import add_model, add_sampling, add_schema, grammar, load_with_tokenizer, sampling
from rmat.cli.output import print_json, read_prompt
from rmat.cli.parsing import add_command, add_json

DESCRIPTION = """\
Write on from a prompt. The prompt is the argument (- for standard input; after -- it may begin with a
dash), the content of --file, or else standard input; without any of them a new document is begun. It may be
of any length. Only the new text is printed.

With --state-out the place in the text is kept, and --state-in goes on from it, with or without another
prompt, at the same cost however much was read before."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "generate",
        run=run,
        words="prompt",
        help="write text",
        description=DESCRIPTION,
        usage="rmat generate MODEL [PROMPT] [options]",
    )
    add_model(parser)
    parser.add_argument("--file", metavar="F", help="read the prompt from a UTF-8 file; - for standard input")
    add_sampling(parser)
    add_schema(parser)
    parser.add_argument("--state-in", metavar="FILE", help="go on from the place kept in FILE")
    parser.add_argument("--state-out", metavar="FILE", help="keep the place after the text in FILE")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Write the text."""
    prompt = _prompt(args)
    from rmat.generation.stream import generate
    from rmat.storage import load_state, save_state, writable

    if args.state_out is not None:
        writable(args.state_out)
    model, tokenizer = load_with_tokenizer(args.model, args.device)
    state, next_logits = None, None
    if args.state_in is not None:
        state, next_logits = load_state(args.state_in, model.config)
        state = state.to(next(model.parameters()).device)
    writing = generate(
        model,
        tokenizer,
        prompt,
        **sampling(args),
        grammar=grammar(args),
        state=state,
        next_logits=next_logits,
    )
    started = time.perf_counter()
    read_prompt(writing, len(prompt.encode()))
    for piece in writing:
        if not args.json:
            print(piece, end="", flush=True)
    seconds = time.perf_counter() - started
    assert writing.state is not None and writing.next_logits is not None
    if args.state_out is not None:
        save_state(args.state_out, writing.state, writing.next_logits)
    if args.json:
        print_json(
            {
                "text": writing.text,
                "finish": writing.finish,
                "prompt_tokens": writing.prompt_tokens,
                "new_tokens": len(writing.tokens),
                "seconds": seconds,
                "state_bytes": writing.state.nbytes,
            }
        )
    elif sys.stdout.isatty() and not writing.text.endswith("\n"):
        print()
    return 0


def _prompt(args: argparse.Namespace) -> str:
    from rmat.data.files import decode

    if args.prompt is not None and args.file is not None:
        raise ValueError("the prompt is given twice, as an argument and by --file: leave one out")
    if args.file is not None and args.file != "-":
        return decode(Path(args.file).read_bytes(), args.file)
    if "-" in (args.prompt, args.file) or (args.prompt is None and not sys.stdin.isatty()):
        return decode(sys.stdin.buffer.read(), "standard input")
    return args.prompt or ""
