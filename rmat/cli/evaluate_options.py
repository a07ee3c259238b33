"""What `rmat eval mqar | passkey | needle | babilong | facts | dialogue` take: the options of the runs in `evaluate_tasks`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rmat.cli.evaluate_tasks import run_babilong, run_dialogue, run_facts, run_mqar, run_needle, run_passkey
from rmat.cli.loading import DEVICES
from rmat.cli.parsing import Parser, add_command, add_json

if TYPE_CHECKING:
    from rmat.model.config import Eviction
    from rmat.model.language_model import MemoryMode

MEMORY_MODES: tuple[MemoryMode, ...] = ("on", "zeroed", "frozen", "shuffled")
EVICTIONS: tuple[Eviction, ...] = ("oldest", "weakest")


def add(kinds: Any) -> None:
    """Add the measurements."""
    mqar = add_command(
        kinds,
        "mqar",
        run=run_mqar,
        help="multi-query associative recall, for models trained on mqar",
        description="Multi-query associative recall (zoology's protocol), for models trained with --data mqar.",
    )
    _common(mqar, samples=1000, what="rows of each test set")
    mqar.add_argument(
        "--set",
        action="append",
        metavar="LENGTH,PAIRS",
        help="test set; repeatable (default: the seven published)",
    )
    mqar.add_argument(
        "--vocabulary", type=int, default=8192, metavar="V", help="tokens, as in training (default: 8192)"
    )
    mqar.add_argument(
        "--changes",
        type=int,
        default=0,
        metavar="N",
        help="pairs stated again with another value (default: 0)",
    )

    passkey = add_command(
        kinds,
        "passkey",
        run=run_passkey,
        help="a number stated once in filler and asked for at the end",
        description="A random number stated once in filler and asked for at the end, for models trained with --data passkey.",
    )
    _common(passkey)
    _lengths(passkey, 1280)
    passkey.add_argument(
        "--depth",
        type=float,
        action="append",
        metavar="SHARE",
        help="where the number stands, 0 start to 1 end; repeatable (default: 0, 0.5 and 1)",
    )
    passkey.add_argument(
        "--filler", action="append", metavar="SPEC", help="noise, or text; repeatable (default: noise)"
    )
    passkey.add_argument("--digits", type=int, default=5, help="digits of the number (default: 5)")

    needle = add_command(
        kinds,
        "needle",
        run=run_needle,
        help="the eight RULER-style needle tasks and variable tracking",
        description="RULER-style needles in a haystack, and variable tracking (4 hops).",
    )
    _common(needle)
    _lengths(needle, 2048)
    needle.add_argument("--task", action="append", metavar="NAME", help="repeatable (default: all nine)")
    needle.add_argument(
        "--haystack", default="python-stdlib", metavar="SPEC", help="text around (default: python-stdlib)"
    )

    babilong = add_command(
        kinds,
        "babilong",
        run=run_babilong,
        help="bAbI facts scattered in text",
        description="bAbI facts scattered in the sentences of other text (BABILong), always from bAbI's test files.",
    )
    _common(babilong)
    _lengths(babilong, 1024)
    babilong.add_argument("--facts", required=True, metavar="DIR", help="folder of bAbI files")
    babilong.add_argument(
        "--task",
        type=int,
        action="append",
        metavar="N",
        help="number of a task; repeatable (default: 1 to 5)",
    )
    babilong.add_argument(
        "--filler", default="python-stdlib", metavar="SPEC", help="text around (default: python-stdlib)"
    )
    babilong.add_argument(
        "--scorer",
        choices=("exact", "labels"),
        default="exact",
        help="exact answer, or the one label named (for models not trained on the task; default: exact)",
    )

    facts = add_command(
        kinds,
        "facts",
        run=run_facts,
        help="facts stated in a dialogue and asked for many turns later",
        description="Facts that a user states in a dialogue and asks for many turns later, for models trained with --data facts or on\n"
        "dialogues. Right is an answer that has the value in it.",
    )
    _common(facts)
    facts.add_argument(
        "--turns",
        type=int,
        action="append",
        metavar="N",
        help="turns between facts and question; repeatable (default: 10, 100 and 1000)",
    )
    facts.add_argument(
        "--filler",
        action="append",
        metavar="SPEC",
        help="what is said in between: talk, noise, dialogues or text; repeatable (default: talk)",
    )
    facts.add_argument("--facts", type=int, default=4, metavar="N", help="most facts stated (default: 4)")
    facts.add_argument(
        "--changes",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the facts that are corrected on the way (default: 0)",
    )

    dialogue = add_command(
        kinds,
        "dialogue",
        run=run_dialogue,
        help="bits per byte of answers about whole meetings, memory on, off and shuffled",
        description="Bits per byte of reference answers to questions about whole meetings (QMSum), with the memory on, zeroed,\n"
        "frozen and shuffled. FILE: one conversation a line, with turns and queries.",
    )
    _common(dialogue, samples=None)
    dialogue.add_argument("--data", required=True, metavar="FILE", help="JSONL file with turns and queries")
    dialogue.add_argument("--max-meetings", type=int, metavar="N", help="only the first N (default: all)")


def _lengths(parser: Parser, default: int) -> None:
    parser.add_argument(
        "--length",
        type=int,
        action="append",
        metavar="TOKENS",
        help=f"tokens of prompt and answer; repeatable (default: {default:,})",
    )
    parser.set_defaults(length_otherwise=[default])


def _common(parser: Parser, samples: int | None = 100, what: str = "questions in each cell") -> None:
    parser.add_argument("model", metavar="MODEL", help="folder of a model or of a training run")
    if samples is not None:
        parser.add_argument("--samples", type=int, default=samples, help=f"{what} (default: {samples:,})")
        parser.add_argument(
            "--memory", choices=MEMORY_MODES, default="on", help="how the memory is used (default: on)"
        )
    add_measuring(parser)


def add_measuring(parser: Parser) -> None:
    """The options that every measurement takes, after its own."""
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
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to run (default: auto)")
    parser.add_argument(
        "--out", metavar="DIR", help="also write result.json, table.csv and plots (PNG, SVG) there"
    )
    add_json(parser)
