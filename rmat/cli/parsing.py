"""What all commands share: a parser that answers mistakes in one line, `section.field=value` settings, common
options."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from rmat.settings import nearest


def let_first_speak() -> None:
    """Of processes that torchrun started: see `rmat.machine.let_first_speak`, which imports torch."""
    if "RANK" in os.environ:
        from rmat import machine

        machine.let_first_speak()


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations whose errors are one line and exit status 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with status 2."""
        let_first_speak()
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            near = nearest(str(value), names)
            message = f"there is no {value!r}: did you mean {near!r}? It can be {', '.join(names)}"
            raise argparse.ArgumentError(action, message)


def add_command(
    commands: Any, name: str, *, run: Any, words: Literal["settings", "prompt"] | None = None, **texts: Any
) -> Parser:
    """A command's parser with what every command has.

    Args:
        commands: what `add_subparsers` gave.
        name: name of the command.
        run: called with the parsed arguments; its result is the exit status.
        words: what further words mean: any number of `field=value`, which arrive in `args.settings` as nested
            dicts; one text, which arrives in `args.prompt`; or a mistake.
        texts: `help`, `description` and so on.
    """
    parser: Parser = commands.add_parser(name, **texts)
    parser.set_defaults(run=run, parser=parser, words=words, settings={}, prompt=None)
    parser.add_argument("--traceback", action="store_true", help="show where an error arose")
    return parser


def add_json(parser: Parser) -> None:
    """The option of every command that measures something."""
    parser.add_argument(
        "--json", action="store_true", help="print the result as one JSON object, as the last line"
    )


def parse(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parsed arguments. Settings and prompts may stand anywhere among the options, which optional positional
    arguments of argparse may not; what follows `--` is no option."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    args, words = parser.parse_known_args(arguments[:end])
    for number, word in enumerate(words, start=1):
        if word.startswith("-") and word != "-" and " " not in word:
            args.parser.error(_no_option(args, word, "".join(words[number : number + 1])))
    words += arguments[end + 1 :]
    if args.words == "settings":
        args.settings = _settings(args.parser, words)
    elif args.words == "prompt" and words:
        args.prompt = words.pop(0)
    if words and args.words != "settings":
        args.parser.error(f"one argument too many: {words[0]!r}{_pattern_hint(words[0])}")
    return args


def _no_option(args: argparse.Namespace, word: str, following: str) -> str:
    """What to write instead of the option `word`, which there is not."""
    options = [name for name in args.parser._option_string_actions if name.startswith("--")]
    name, _, value = word.partition("=")
    longer = [option for option in options if option.startswith(name)]
    if args.words == "settings" and not longer:
        from rmat.training.config import setting_names

        bare = name.lstrip("-").replace("-", "_")
        near = nearest(bare, [*setting_names(), *(option.lstrip("-") for option in options)])
        if f"--{near}" not in options:
            value = value or (following if following[:1] not in ("", "-") else "VALUE")
            return f"there is no option {name!r}: did you mean the setting {near}={value}?"
    return f"there is no option {name!r}: did you mean {nearest(name, longer or options)!r}?"


def _pattern_hint(word: str) -> str:
    """What a shell does to a pattern without quotes, where `word` is a file."""
    return (
        "; quote a pattern such as '*.txt', which the shell turns into many names"
        if Path(word).exists()
        else ""
    )


def _settings(parser: Parser, words: Sequence[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            parser.error(f"{word!r} is no setting: settings are written field=value{_pattern_hint(word)}")
        settings = merge(settings, nest(key, value))
    return settings


def nest(key: str, value: Any) -> dict[str, Any]:
    """`a.b` and a value as `{"a": {"b": value}}`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts in one; where both have a value, `over` counts."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = (
            merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
        )
    return merged
