"""`rmat describe`: size and cost of a preset or of a saved model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmat.cli.output import print_json, print_table
from rmat.cli.parsing import add_command, add_json
from rmat.cli.pretrained import state_rows

if TYPE_CHECKING:
    from rmat.model import ModelConfig


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "describe",
        run=run,
        words="settings",
        help="parameters, FLOPs per token, state bytes and memory horizon of a model",
        description="What a preset or a saved model costs. A preset takes settings, such as d_model=256.",
        usage="rmat describe MODEL_OR_PRESET [--variant NAME] [field=value ...] [--json]",
    )
    parser.add_argument(
        "model",
        metavar="MODEL_OR_PRESET",
        help="tiny, small, base, large, the folder of a model or run, or starter",
    )
    parser.add_argument(
        "--variant", metavar="NAME", help="recommended (default), paper, local, xl or full; presets only"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print what the model costs."""
    from rmat.accounting import account

    config = _config(args)
    costs = account(config)
    result: dict[str, Any] = {
        "parameters": costs.parameters,
        "flops_per_token_train": costs.flops_per_token_train,
        "flops_per_token_decode": costs.flops_per_token_decode,
        "state_bytes": costs.state_bytes,
        "cache_bytes": costs.cache_bytes,
        "horizon_tokens": costs.horizon_tokens,
        "horizon": costs.horizon,
        "config": config.to_dict(),
    }
    if args.json:
        print_json(result)
        return 0
    rows = [
        ("parameters", f"{costs.parameters:,}"),
        ("FLOPs per token, training", f"{costs.flops_per_token_train:,}"),
        ("FLOPs per token, decoding", f"{costs.flops_per_token_decode:,}"),
        *state_rows(costs.state_bytes, costs.cache_bytes),
        ("memory horizon", costs.horizon),
    ]
    print_table(["cost", "value"], rows)
    print()
    print_table(["field", "value"], [(name, str(value)) for name, value in result["config"].items()])
    return 0


def _config(args: argparse.Namespace) -> ModelConfig:
    from rmat.model import ModelConfig
    from rmat.model.config import refuse_unknown
    from rmat.model.presets import SIZES
    from rmat.pretrained import SHORT_NAMES
    from rmat.pretrained.folder import cached
    from rmat.settings import coerce, field_types, nearest
    from rmat.storage import model_folder, read_config, shipped_models

    if args.model in SIZES:
        refuse_unknown(args.settings)
        kinds = field_types(ModelConfig)
        given = {name: coerce(value, kinds[name], name) for name, value in args.settings.items()}
        return ModelConfig.preset(args.model, variant=args.variant or "recommended", **given)
    try:
        folder = model_folder(cached(args.model))
    except FileNotFoundError:
        if Path(args.model).exists():
            raise
        names = [*SIZES, *shipped_models(), *SHORT_NAMES]
        raise ValueError(
            f"{args.model!r} is neither a preset nor a model that comes along ({', '.join(names)}; "
            f"the nearest is {nearest(args.model, names)!r}) nor a folder"
        ) from None
    if args.settings or args.variant:
        raise ValueError(
            f"{args.model} is a saved model, whose configuration is fixed: leave out --variant and settings"
        )
    return read_config(folder)
