"""`rmat train`: a new run, or an interrupted one resumed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rmat.cli.output import print_json
from rmat.cli.parsing import add_command, add_json, let_first_speak, merge

FAILED, INTERRUPTED = 1, 130

DESCRIPTION = """\
Train a model and export it to DIR/model.

Settings are written section.field=value, for example train.lr=1e-3 data.tokenizer=bytes model.n_layers=6,
and count more than options, which count more than --config. --print-config shows all of them, explained,
without training.

Ctrl-C (SIGINT) or SIGTERM finishes the step, saves and ends with status 130, without a result: --resume
goes on."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "train",
        run=run,
        words="settings",
        help="train a model",
        description=DESCRIPTION,
        usage="rmat train [--preset NAME] [--variant NAME] [--data SPEC] [--out DIR] [--config FILE] "
        "[section.field=value ...]\n       rmat train --resume DIR [section.field=value ...]",
    )
    parser.add_argument("--preset", metavar="NAME", help="size of the model: tiny, small, base or large")
    parser.add_argument(
        "--variant", metavar="NAME", help="kind of model: recommended, paper, local, xl or full"
    )
    parser.add_argument(
        "--from",
        dest="start",
        metavar="MODEL",
        help="go on from a model there is: a folder, a run, or starter, which comes with rmat",
    )
    parser.add_argument(
        "--data",
        metavar="SPEC",
        action="append",
        help="what to read: python-stdlib, a file, folder or glob, or hf:owner/name:split:column; repeatable",
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the run (default: a new one under runs/)")
    parser.add_argument(
        "--config", metavar="FILE", action="append", help="YAML file of settings; later ones count more"
    )
    parser.add_argument("--resume", metavar="DIR", help="continue the interrupted run in DIR")
    parser.add_argument(
        "--print-config", action="store_true", help="print the settings as YAML, explained, and stop"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Train; 130 if the run was told to stop: it is saved and can be resumed, and has no result."""
    given = _given(args)
    if args.resume is not None and any(
        (args.preset, args.variant, args.start, args.data, args.out, args.config)
    ):
        raise ValueError(
            "--resume takes the settings of its run: leave out --preset, --variant, --from, --data, --out "
            "and --config"
        )

    from rmat.api import train
    from rmat.machine import is_first_process
    from rmat.training.config import RunConfig
    from rmat.training.loop import NonFiniteError

    resume = None if args.resume is None else Path(args.resume)
    stored = {} if resume is None else RunConfig.load(resume).to_dict()
    config = RunConfig.from_dict(merge(stored, given))
    if args.print_config:
        from rmat.cli.explain import explain

        print(explain(config))
        return 0
    try:
        folder = train(config, resume=resume)
    except (NonFiniteError, MemoryError) as error:
        let_first_speak()
        print(f"rmat: {error}", file=sys.stderr)
        return FAILED
    result = folder / "result.json"
    if not result.is_file():
        return INTERRUPTED
    if args.json and is_first_process():
        print_json(json.loads(result.read_text(encoding="utf-8")))
    return 0


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line sets, nested as in `RunConfig.to_dict`: files, then options, then settings."""
    given: dict[str, Any] = {}
    for path in args.config or ():
        given = merge(given, _read_yaml(Path(path)))
    options: dict[str, Any] = {name: getattr(args, name) for name in ("preset", "variant", "start", "out")}
    options = {name: value for name, value in options.items() if value is not None}
    if args.data:
        options["data"] = {"specs": args.data}
    return merge(merge(given, options), args.settings)


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value]
            for key, _ in node.value:
                if names.count(key.value) > 1:
                    raise yaml.YAMLError(
                        f"line {key.start_mark.line + 1} has {key.value!r}, which stands there twice"
                    )
            return super().construct_mapping(node, deep)

    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no good YAML file: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path} must hold settings by name, such as 'train: {{lr: 0.001}}'")
    return content
