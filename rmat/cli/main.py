"""The command `rmat`: picks the command, and turns what goes wrong into a sentence and an exit status.

Exit status: 0 done, 1 failed in running, 2 wrong arguments or input, 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Sequence

import rmat
from rmat.cli.parsing import Parser, let_first_speak, parse

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130

_WRONG_INPUT_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    ModuleNotFoundError,
)

_OUT_OF_MEMORY = re.compile(
    r"out of memory|DefaultCPUAllocator|Storage size calculation overflowed", re.IGNORECASE
)
"""What torch says in a RuntimeError where there is not enough memory."""

_LOST = re.compile(r"gloo.*connection (reset|closed) by peer", re.IGNORECASE)
"""What torch says in a RuntimeError where a process that this one works with has gone."""

_ALLOCATION = re.compile(r"(?:allocate )(\d[\d.]* (?:bytes|[KMGTPE]iB))")
"""The size of what could not be allocated, in the words of torch and numpy."""

_RESULT_ON_DISK = ("train", "serve")
"""Commands whose standard output has remarks only, or what also stands in a file."""


def build_parser() -> Parser:
    """The parser of all commands."""
    # Imported here, where Ctrl-C is caught: it takes a second on a busy machine.
    from rmat.cli import (
        ask,
        chat,
        complete,
        describe,
        evaluate,
        generate,
        pretrained,
        read,
        report,
        serve,
        sessions,
        train,
    )

    parser = Parser(
        prog="rmat", description="Language models with a recurrent memory: train, measure, write."
    )
    parser.add_argument("--version", action="version", version=f"rmat {rmat.__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for module in (
        *(
            train,
            evaluate,
            pretrained,
            generate,
            complete,
            chat,
            read,
            ask,
            sessions,
            serve,
            describe,
            report,
        ),
    ):
        module.add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (None: the process's own) and return its exit status.

    What a user can cause becomes one sentence on standard error; an error of ours keeps its traceback.
    """
    try:
        args = parse(build_parser(), sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    try:
        status = int(args.run(args))
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left, as in `rmat generate ... | head`; nothing can be said to it any more.
        _discard_output()
        return FAILED
    except FloatingPointError as error:  # a ValueError too, where a model's numbers are not finite
        return _tell(args.traceback, error, FAILED)
    except _WRONG_INPUT_ERRORS as error:
        return _tell(args.traceback, error, WRONG_INPUT)
    except OSError as error:
        return _tell(args.traceback, error, FAILED)
    except (RuntimeError, MemoryError) as error:
        known = any(each.search(str(error)) for each in (_OUT_OF_MEMORY, _LOST))
        if not known and not isinstance(error, MemoryError):
            raise
        return _tell(args.traceback, error, FAILED)
    if isinstance(sys.stdout, _ClosedOutput) and sys.stdout.lost and args.command not in _RESULT_ON_DISK:
        print("rmat: standard output is closed: what was to be printed is lost", file=sys.stderr)
        return status or FAILED
    return status


def entry() -> None:
    """The console script."""
    _prepare_streams()
    if "RANK" in os.environ:
        # Else every process of a training warns that its weights had gradients; read when torch is imported.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        status: object = main()
    except SystemExit as end:  # of the parser
        status = end.code
    try:
        sys.stdout.flush()
    except (
        OSError
    ):  # told by `main`; else the interpreter would try once more, and end with a status of its own
        _discard_output()
        status = status or FAILED
    sys.exit(status)  # type: ignore[arg-type]


class _ClosedOutput(io.TextIOBase):
    """Stands in for a standard output or error that is closed, and notes whether something was to be
    written."""

    encoding, lost = "utf-8", False

    def write(self, text: str) -> int:
        self.lost = self.lost or bool(text)
        return len(text)


def _prepare_streams() -> None:
    """Make the three standard streams usable, as every command takes for granted.

    A closed input is empty. A closed descriptor is taken by the null device, so that no file which is opened
    later gets its number and what others print. A character which an encoding lacks is written as an escape
    such as \\u20ac.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115 (to the end of the process)
    sys.stdout, sys.stderr = sys.stdout or _ClosedOutput(), sys.stderr or _ClosedOutput()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(with_traceback: bool, error: Exception, status: int) -> int:
    if with_traceback:
        raise error
    if isinstance(error, OSError) and error.filename is not None:
        sentence = f"{error.filename}: {error.strerror}; check this path and what may be done there"
    elif _LOST.search(str(error)):
        sentence = (
            "another of the processes has gone, see what it or torchrun says: start them again, a training "
            "with --resume; torchrun --max-restarts does so by itself"
        )
    elif isinstance(error, (RuntimeError, MemoryError)):
        asked = _ALLOCATION.search(str(error))
        size = "" if asked is None else f" ({asked[1]} at once)"
        sentence = (
            f"not enough memory{size}: take a smaller model, batch or window, or a machine with more of it"
        )
    else:
        sentence = " ".join(str(error).split()) or type(error).__name__
    let_first_speak()
    print(f"rmat: {sentence}", file=sys.stderr)
    return status
