"""`rmat report`: one HTML page that shows what the memory does with a text."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmat.cli.loading import DEVICES, load_with_tokenizer
from rmat.cli.output import print_json, print_table
from rmat.cli.parsing import add_command, add_json

if TYPE_CHECKING:
    from rmat.data.corpus import Reading
    from rmat.data.tokenizer import Tokenizer


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "report",
        run=run,
        help="one HTML page: what a memory keeps and reads over a text, fusion weights, curves",
        description="Read a text and write one HTML page that shows, token by token, what each layer's "
        "memory kept, which slot\n"
        "answered which token and what that was worth; with the curves of a training run. The page needs "
        "no network;\n"
        "its data lies beside it as JSON.",
    )
    parser.add_argument("model", metavar="RUN_OR_MODEL", help="folder of a training run or of a model")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--text", metavar="FILE", help="file to read: text, code or records")
    text.add_argument(
        "--data",
        metavar="SPEC",
        action="append",
        help="what to read (default: what the run was trained on, else python-stdlib); repeatable",
    )
    parser.add_argument(
        "--split",
        choices=("train", "valid", "test"),
        default="test",
        help="part of the data (default: test)",
    )
    parser.add_argument(
        "--max-tokens", type=int, default=20_000, metavar="N", help="read at most N tokens (default: 20000)"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="report.html",
        help="the page (default: report.html); its data takes the same name with .json",
    )
    parser.add_argument("--device", choices=DEVICES, default="auto", help="where to run (default: auto)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Write the page and its data, and print what they say in short."""
    from rmat.data.progress import Progress
    from rmat.report.contents import contents
    from rmat.report.page import page
    from rmat.report.series import plain
    from rmat.report.trace import trace
    from rmat.storage import write_file

    if args.max_tokens < 2:
        raise ValueError(f"--max-tokens is {args.max_tokens}: read at least 2 tokens")
    html, data = _places(args.out)
    model, tokenizer = load_with_tokenizer(args.model, args.device)
    reading = _reading(args, tokenizer)
    size = int(sum(tokenizer.byte_counts(ids).sum() for ids in reading.documents))
    passes = 2 if model.config.has_memory else 1
    with (
        Progress(True) as shown,
        shown.task(f"reading {reading.name}", total=passes * size) as advance,
    ):
        found = trace(
            model,
            reading.documents,
            reading.targets,
            lambda n_tokens: advance(round(n_tokens * size / reading.n_tokens)),
        )
    told = contents(
        model, tokenizer, found, reading=reading, model_name=str(args.model), training=_training(args.model)
    )
    write_file(html, page(told))
    write_file(
        data, json.dumps(plain(told), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
    )
    _print(args.json, told, html, data)
    return 0


def _places(out: str) -> tuple[Path, Path]:
    """The page and its data; ValueError where they cannot be written or would replace something else."""
    from rmat.report.contents import FORMAT
    from rmat.storage import writable

    html = Path(out)
    if html.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out is {out!r}: choose a name that ends in .html")
    if not html.parent.is_dir():
        raise ValueError(f"--out is {out!r} but there is no folder {html.parent}: make it first")
    data = html.with_suffix(".json")
    for path in (html, data):
        if path.is_dir():
            raise ValueError(f"{path} is a folder: choose another --out")
        writable(path)
    if data.exists() and not data.read_bytes()[:64].startswith(f'{{"format":"{FORMAT}"'.encode()):
        raise ValueError(f"{data} is no report's data and would be replaced: choose another --out")
    return html, data


def _reading(args: argparse.Namespace, tokenizer: Tokenizer) -> Reading:
    from rmat.data.config import DataConfig
    from rmat.report.reading import read_data, read_file
    from rmat.storage import run_folder
    from rmat.training.config import RunConfig

    if args.text is not None:
        return read_file(args.text, tokenizer, args.max_tokens)
    run = run_folder(args.model)
    data = DataConfig() if run is None else RunConfig.load(run).data
    if args.data:
        data = replace(data, specs=tuple(args.data), weights=None, streaming=False)
    return read_data(data, args.split, tokenizer, args.max_tokens)


def _training(model: str) -> dict[str, Any] | None:
    """What the folder tells about training; None for a model folder."""
    from rmat.report.contents import training_contents
    from rmat.storage import run_folder
    from rmat.training.records import JsonLines

    folder = run_folder(model)
    if folder is None:
        return None
    config, data = (
        json.loads((folder / name).read_text(encoding="utf-8")) for name in ("config.json", "data.json")
    )
    return training_contents(config, data, JsonLines(folder / "metrics.jsonl").rows())


def _print(as_json: bool, told: dict[str, Any], html: Path, data: Path) -> None:
    total, layers = told["total"], []
    for number, layer in enumerate(told["layers"], start=1):
        if (memory := layer["memory"]) is not None:
            layers.append(
                {"layer": number, **{k: memory[k] for k in ("written", "evicted", "readable", "dead")}}
            )
    if as_json:
        sizes = {"page": str(html), "data": str(data), "page_bytes": html.stat().st_size}
        print_json({**sizes, "unit": told["text"]["unit"], **total, "layers": layers})
        return
    unit = told["text"]["unit"]
    worth = "" if total["bits_zeroed"] is None else f", with the memory zeroed {total['bits_zeroed']:.4f}"
    score = "" if total["bits"] is None else f"; {total['bits']:.4f} bits per {unit}{worth}"
    rows = [
        (str(row["layer"]), *(f"{row[key]:,}" for key in ("written", "evicted", "dead"))) for row in layers
    ]
    if rows:
        print_table(["layer", "written", "evicted", "never read"], rows)
    print(f"{total['tokens']:,} tokens{score}\n{html} shows them; {data} holds the data")
