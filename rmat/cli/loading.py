"""What commands that run a model share: the options that name it, a session and the sampling, and loading
it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmat.cli.parsing import Parser

if TYPE_CHECKING:
    from rmat.data.tokenizer import Tokenizer
    from rmat.model import LanguageModel


DEVICES = ("auto", "cpu", "cuda")
"""Where a command may run; auto takes a GPU if there is one."""

_SAMPLING = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "stop",
    "seed",
)


def add_model(parser: Parser) -> None:
    """The model and where it runs."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="folder of a model or of a training run, or the name of one that comes along",
    )
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to run (default: auto)")


def add_session(parser: Parser, *, required: bool, help: str) -> None:
    """The session's name and the folder of sessions."""
    parser.add_argument("--session", metavar="NAME", required=required, help=help)
    parser.add_argument(
        "--sessions",
        metavar="DIR",
        help="folder of the sessions (default: $RMAT_SESSIONS, else rmat/sessions in the user's data folder)",
    )


def add_sampling(parser: Parser, *, max_new_tokens: int = 256, temperature: float = 0.8) -> None:
    """How tokens are chosen, and where a text ends; the keywords are defaults."""
    add = parser.add_argument
    add(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help="write at most N tokens (default: %(default)s)",
    )
    add(
        "--temperature",
        type=float,
        default=temperature,
        metavar="X",
        help="0 takes the likeliest token (default: %(default)s)",
    )
    add("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens only")
    add(
        "--top-p",
        type=float,
        metavar="P",
        help="draw from the likeliest tokens that have probability P together only",
    )
    for option, default, metavar, help in (
        ("--min-p", 0.0, "P", "draw from tokens at least P times as likely as the likeliest only"),
        ("--repetition-penalty", 1.0, "X", "above 1 makes tokens already written less likely"),
        ("--presence-penalty", 0.0, "X", "above 0 makes tokens already written less likely"),
        ("--frequency-penalty", 0.0, "X", "above 0 makes tokens less likely each time they are written"),
    ):
        add(option, type=float, default=default, metavar=metavar, help=help)
    add("--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; repeatable")
    add(
        "--seed", type=int, metavar="N", help="the same seed gives the same text (default: another each time)"
    )


def sampling(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_sampling` as keywords of `rmat.generate`."""
    return {name: getattr(args, name) for name in _SAMPLING}


def add_schema(parser: Parser) -> None:
    """The schema of a text in JSON."""
    parser.add_argument(
        "--json-schema", metavar="FILE", help="write only JSON that is valid by the JSON schema in FILE"
    )


def grammar(args: argparse.Namespace) -> str | None:
    """That of the schema of `add_schema`. Raises ValueError."""
    if args.json_schema is None:
        return None
    from rmat.data.files import decode
    from rmat.generation.grammar import json_grammar

    text = decode(Path(args.json_schema).read_bytes(), args.json_schema)
    try:
        return json_grammar(json.loads(text))
    except json.JSONDecodeError as error:
        raise ValueError(f"{args.json_schema} is no JSON: {error}") from None


def load_with_tokenizer(path: str, device: str) -> tuple[LanguageModel, Tokenizer]:
    """Model and tokenizer in `path`; ValueError if the device is not there or the model was saved without
    tokenizer."""
    from rmat.api import load
    from rmat.machine import pick_device

    model, tokenizer = load(path, pick_device(device)[0])
    if tokenizer is None:
        raise ValueError(
            f"the model in {path} was saved without a tokenizer: save it with "
            "model.save(folder, tokenizer=...)"
        )
    return model, tokenizer


def with_banks(model: LanguageModel, args: argparse.Namespace) -> LanguageModel:
    """The model with the banks that `--slots` and `--eviction` ask for; ValueError if it cannot have them."""
    if args.slots is None and args.eviction is None:
        return model
    return model.with_slots(args.slots, args.eviction)
