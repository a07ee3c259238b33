"""The command `rmat`: picks the command, and turns what goes wrong into a sentence and an exit status.

Exit status: 0 done, 1 failed in running (or interrupted), 2 wrong arguments or input.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import rmat
from rmat.cli import ask, chat, complete, describe, evaluate, generate, read, report, serve, sessions, train
from rmat.cli.parsing import Parser, parse

FAILED, WRONG_INPUT = 1, 2

_WRONG_INPUT_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    ModuleNotFoundError,
)


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="rmat", description="Language models with a recurrent memory: train, measure, write."
    )
    parser.add_argument("--version", action="version", version=f"rmat {rmat.__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for module in (train, evaluate, generate, complete, chat, read, ask, sessions, serve, describe, report):
        module.add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (None: the process's own) and return its exit status.

    What a user can cause becomes one sentence on standard error; an error of ours keeps its traceback.
    """
    args = parse(build_parser(), sys.argv[1:] if arguments is None else arguments)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        # The reader of our output left, as in `rmat generate ... | head`; nothing can be said to it any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except _WRONG_INPUT_ERRORS as error:
        return _tell(args.traceback, error, WRONG_INPUT)
    except OSError as error:
        return _tell(args.traceback, error, FAILED)


def entry() -> None:
    """The console script."""
    sys.exit(main())


def _tell(with_traceback: bool, error: Exception, status: int) -> int:
    if with_traceback:
        raise error
    if isinstance(error, OSError) and error.filename is not None:
        sentence = f"{error.filename}: {error.strerror}; check this path and what may be done there"
    else:
        sentence = " ".join(str(error).split()) or type(error).__name__
    print(f"rmat: {sentence}", file=sys.stderr)
    return status
