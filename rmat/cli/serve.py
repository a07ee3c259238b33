"""`rmat serve`: a model behind HTTP."""

from __future__ import annotations

import argparse
import functools
import logging
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmat.cli.loading import DEVICES, load_with_tokenizer
from rmat.cli.parsing import Parser, add_command
from rmat.settings import number, refuse, whole

if TYPE_CHECKING:
    from rmat.serving.limits import Limits

DESCRIPTION = """\
Serve a model over HTTP: OpenAI's /v1/completions and /v1/chat/completions, named sessions under /v1/sessions,
a page to chat at /. It listens on this machine only, unless --host says otherwise; then API keys are needed,
from --api-keys or from RMAT_API_KEYS. SIGTERM or Ctrl-C ends it after the answers that are being written."""

MEGABYTE = 2**20

MOST = 1e9
"""Largest value of an option that need not be whole: seconds beyond it are too many for the system's
clocks."""

_LEAST = {
    "grace": 0,
    "session_count": 0,
    "session_days": 0,
    "session_mb": 0,
    "max_rows": 1,
    "max_waiting": 1,
    "max_requests": 1,
    "max_body_mb": 1,
    "max_prompt_tokens": 1,
    "max_new_tokens": 1,
    "max_seconds": 1,
    "cache_mb": 0,
}
"""Least values of the options that are numbers; where 1 stands, one that need not be whole must be above
0."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "serve",
        run=run,
        words="prompt",
        help="serve a model over HTTP, OpenAI-compatible",
        description=DESCRIPTION,
        usage="rmat serve MODEL [options]\n       rmat serve --hash-key",
    )
    option = parser.add_argument
    option("--host", default="127.0.0.1", metavar="H", help="address to listen on (default: 127.0.0.1)")
    option("--port", type=int, default=8000, metavar="N", help="port; 0 takes a free one (default: 8000)")
    option("--name", metavar="NAME", help="what clients call the model (default: the name of its folder)")
    option("--device", choices=DEVICES, default="auto", help="where to run (default: auto)")
    option("--api-keys", metavar="FILE", help="API keys, one a line, as they are or hashed")
    option("--hash-key", action="store_true", help="read a key from standard input, print it hashed, and end")
    option("--allow-anonymous", action="store_true", help="let other machines ask without a key")
    option(
        "--cors-origin",
        action="append",
        default=[],
        metavar="URL",
        help="let web pages of URL ask, * for all; repeatable",
    )
    option("--no-access-log", action="store_true", help="do not tell of each request on standard error")
    option(
        "--grace",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds that a stop waits for answers (default: 30)",
    )
    _add_session_options(parser)
    _add_limit_options(parser)


def _add_session_options(parser: Parser) -> None:
    group = parser.add_argument_group("sessions", "each API key has its own")
    option = group.add_argument
    option("--sessions", metavar="DIR", help="folder to keep them in (default: in the user's data folder)")
    option("--session-count", type=int, default=1000, metavar="N", help="most of one key (default: 1000)")
    option("--session-days", type=float, metavar="D", help="delete those unused for D days")
    option("--session-mb", type=int, metavar="N", help="most megabytes of one key's")


def _add_limit_options(parser: Parser) -> None:
    group = parser.add_argument_group("limits")
    option = group.add_argument
    option("--max-rows", type=int, default=16, metavar="N", help="answers written at a time (default: 16)")
    option("--max-waiting", type=int, default=64, metavar="N", help="answers that may wait (default: 64)")
    option("--max-requests", type=int, default=128, metavar="N", help="requests at a time (default: 128)")
    option("--max-body-mb", type=float, default=16.0, metavar="N", help="megabytes of a body (default: 16)")
    option(
        "--max-prompt-tokens",
        type=int,
        default=2**20,
        metavar="N",
        help="read by one request (default: 1048576)",
    )
    option(
        "--max-new-tokens", type=int, default=4096, metavar="N", help="tokens of an answer (default: 4096)"
    )
    option(
        "--max-seconds", type=float, default=600.0, metavar="S", help="seconds of a request (default: 600)"
    )
    option(
        "--cache-mb",
        type=int,
        default=256,
        metavar="N",
        help="memory for prompts that begin alike (default: 256)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    from rmat.serving.auth import ENVIRONMENT, Keys, hash_key

    if args.hash_key:
        key = sys.stdin.readline().strip() if sys.stdin is not None else ""
        Keys([key])  # refuses what cannot be one
        print(hash_key(key))
        return 0
    if args.prompt is None:
        raise ValueError(
            "there is no MODEL: give a folder of a model or of a training run, or a name such as starter"
        )
    _check_numbers(args)
    origins = _origins(args.cors_origin)
    keys = Keys.collect(args.api_keys)
    if args.api_keys is not None and Keys.others_can_read(args.api_keys):
        _warn(f"other users of this machine can read {args.api_keys}: chmod 600 {args.api_keys}")
    if "*" in origins and not keys:
        _warn("--cors-origin '*' without API keys: any web page that you visit can use this server")
    _require_packages()
    from rmat.engine.engine import Engine
    from rmat.machine import sessions_folder
    from rmat.serving.app import create_app
    from rmat.serving.limits import LOOPBACK_HOSTS
    from rmat.serving.server import Server, address_of, bind, is_loopback
    from rmat.sessions.store import SessionStore

    limits = _limits(args)
    loopback = is_loopback(args.host)
    if not loopback and not keys and not args.allow_anonymous:
        raise ValueError(
            f"--host {args.host} lets other machines ask: give API keys with --api-keys FILE or in "
            f"{ENVIRONMENT}, "
            "or add --allow-anonymous"
        )
    folder = Path(args.sessions) if args.sessions is not None else sessions_folder() / "server"
    session_bytes = None if args.session_mb is None else args.session_mb * MEGABYTE

    @functools.cache
    def store_of(owner: str) -> SessionStore:
        return SessionStore(
            folder / owner,
            max_count=args.session_count,
            max_age_days=args.session_days,
            max_bytes=session_bytes,
        )

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    listening = bind(args.host, args.port)
    with listening:
        model, tokenizer = load_with_tokenizer(args.prompt, args.device)
        engine = Engine(
            model,
            tokenizer,
            max_rows=args.max_rows,
            max_waiting=args.max_waiting,
            cache_bytes=args.cache_mb * MEGABYTE,
        )
        with engine:
            app = create_app(
                engine,
                store_of,
                model=model,
                tokenizer=tokenizer,
                model_name=args.name or Path(args.prompt).resolve().name,
                keys=keys,
                limits=limits,
                hosts=LOOPBACK_HOSTS if loopback else None,
                cors_origins=origins,
            )
            if not args.no_access_log:
                _log_access()
            address, name = address_of(listening), app.state.service.model_name
            tell = functools.partial(_tell, address, name, with_key=bool(keys))
            Server(app, grace=args.grace).serve_on(listening, tell)
    print("stopped", flush=True)
    return 0


def _check_numbers(args: argparse.Namespace) -> None:
    """Refuse a number that is none or out of range, by the name of its option."""
    for name, least in _LEAST.items():
        value, option = getattr(args, name), "--" + name.replace("_", "-")
        if isinstance(value, int):
            whole(option, value, int(least))
        elif value is not None and least:
            number(option, value, above=0, most=MOST)
        elif value is not None:
            number(option, value, 0, MOST)


def _origins(urls: list[str]) -> list[str]:
    """Origins as browsers send them: without a slash behind."""
    origins = [url.rstrip("/") for url in urls]
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
            refuse("--cors-origin", origin, "give what an address begins with, such as https://example.org")
    return origins


def _warn(sentence: str) -> None:
    print(f"rmat serve: warning: {sentence}", file=sys.stderr, flush=True)


def _log_access() -> None:
    from rmat.serving.limits import access

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    access.addHandler(handler)
    access.setLevel(logging.INFO)
    access.propagate = False


def _require_packages() -> None:
    packages = ("fastapi", "uvicorn", "prometheus_client", "llguidance")
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"rmat serve needs {', '.join(missing)}: pip install 'rmat[serve]'")


def _limits(args: argparse.Namespace) -> Limits:
    from rmat.serving.limits import Limits

    return Limits(
        max_body_bytes=max(1, int(args.max_body_mb * MEGABYTE)),
        max_prompt_tokens=args.max_prompt_tokens,
        max_new_tokens=args.max_new_tokens,
        max_seconds=args.max_seconds,
        max_requests=args.max_requests,
    )


def _tell(address: str, name: str, *, with_key: bool) -> None:
    key = " -H 'Authorization: Bearer KEY'" if with_key else ""
    print(
        f"serving {name}: chat at {address}, API at {address}/v1, stop with Ctrl-C\n"
        f"try: curl {address}/v1/completions{key} -H 'Content-Type: application/json' "
        """-d '{"prompt": "def main():", "max_tokens": 60}'""",
        flush=True,
    )
