"""`rmat import`, `export` and `convert`: models of others and of ours to and from a model folder."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmat.cli.evaluate import shared
from rmat.cli.output import human_bytes, print_json, print_table
from rmat.cli.parsing import add_command, add_json

if TYPE_CHECKING:
    from rmat.data.tokenizer import Tokenizer
    from rmat.model import LanguageModel

DISTIL_ONLY = ("steps", "minutes", "lr", "lora")
"""Options of --method distil alone."""

UNREFUSED, FADE, NEWEST = 0.999, 0.5, 0.6
"""Share, fade and share of the newest of fitted gates where the weakest leave, chosen on valid text
(docs/pretrained.md)."""

IMPORT = """\
Make a model folder of a pretrained model: a Llama, Mistral, SmolLM2, Qwen2 or Qwen3. SOURCE is a folder of
Hugging Face (safetensors), a hub id (owner/name), a .gguf file, or smollm2. The model then reads texts of any
length in a state of one size: a window of the newest tokens, the first few, and for every key head a bank of
older ones that its gate admits. With a window of the whole trained context there is no bank, and the model is
its source."""

EXPORT = """\
Write a folder of Hugging Face from the folder of an imported model: plain transformers load it, with full
attention. The gates are written beside it, and come back when OUT is imported."""


CONVERT = """\
Write a model of ours, trained or imported, as a folder for transformers (AutoModelForCausalLM after
`import rmat.integrations.hf`; memory, weights and logits stay as they are), or make a model folder of such a
folder. What MODEL is decides. A Llama-type folder is brought by rmat import and written by rmat export."""

GATES = """\
Fit the write gates of an imported model: forward passes only, minutes. The model reads prose, and texts that
state facts and ask for them in its chat format, with everything in sight; a gate learns to admit what later
tokens out of local reach attended. The state keeps its size.

--method distil goes on from fitted gates: the weights stay frozen, and gates learn what the model with its
bank lacks of the model with everything in sight. Longer: an hour on a CPU. Ctrl-C saves and ends with status
130; the same command goes on. What the run was and how it went is in FOLDER/distil."""


def add(commands: Any) -> None:
    """Add the commands."""
    parser = add_command(
        commands, "import", run=run_import, help="bring a pretrained model", description=IMPORT
    )
    parser.add_argument("source", metavar="SOURCE", help="folder, hub id, .gguf file, or smollm2")
    parser.add_argument("out", metavar="OUT", help="folder to write")
    add = parser.add_argument
    add(
        "--window",
        type=int,
        metavar="N",
        help="tokens of exact local attention (default: 1024, or what the gates are for)",
    )
    add(
        "--slots",
        type=int,
        metavar="N",
        help="slots of every key head's bank (default: 1024, or what the gates are for)",
    )
    add("--sinks", type=int, metavar="N", help="first tokens that stay in sight (default: 4)")
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="type of the weights (default: float32)",
    )
    add(
        "--no-gates",
        dest="gates",
        action="store_false",
        help="leave out fitted gates: the bank holds the newest tokens behind the window",
    )
    add_json(parser)
    parser = add_command(
        commands,
        "gates",
        run=shared(run_gates),
        help="fit an imported model's write gates",
        description=GATES,
    )
    parser.add_argument("model", metavar="MODEL", help="folder of an imported model")
    add = parser.add_argument
    add("--out", metavar="FOLDER", help="folder to write (default: MODEL itself)")
    add(
        "--data",
        nargs="+",
        metavar="SPEC",
        default=["python-stdlib"],
        help="texts to read, a passage of each in turn (default: python-stdlib)",
    )
    add(
        "--share",
        type=float,
        metavar="X",
        help="share of tokens to admit (default: 0.999 where the weakest leave, which need no refusal, else "
        "0.5)",
    )
    add(
        "--eviction",
        choices=("oldest", "weakest"),
        default="weakest",
        help="what a full bank gives up (default: weakest)",
    )
    add(
        "--fade",
        type=float,
        metavar="X",
        help="what a slot's score, whose standard deviation is 8 (0.5 where it need not last), loses in "
        "1,024 tokens where the weakest leave (default: 0.5)",
    )
    add(
        "--newest",
        type=float,
        metavar="X",
        help="share of the slots that are the newest's where the weakest leave; the others hold the "
        "strongest of what is older (default: 0.6)",
    )
    add("--prose", type=int, default=8, metavar="N", help="passages of prose (default: 8)")
    add("--asking", type=int, default=24, metavar="N", help="passages that ask (default: 24)")
    add(
        "--length",
        type=int,
        metavar="N",
        help="tokens of a passage, within the trained context (default: 2048 of prose, 1280 of one that "
        "asks)",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of the passages (default: 0)")
    add("--method", choices=("fit", "distil"), default="fit", help="how gates learn (default: fit)")
    add("--steps", type=int, metavar="N", help="distil: updates of one passage each (default: 400)")
    add("--minutes", type=float, metavar="X", help="distil: ends so early even if updates are left")
    add("--lr", type=float, metavar="X", help="distil: peak learning rate (default: 0.001)")
    add("--lora", type=int, metavar="RANK", help="distil: query and key maps learn additions of this rank")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where (default: auto)")
    add_json(parser)
    parser = add_command(
        commands,
        "export",
        run=run_export,
        help="write an imported model for transformers",
        description=EXPORT,
    )
    parser.add_argument("model", metavar="MODEL", help="folder of an imported model")
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser = add_command(
        commands,
        "convert",
        run=run_convert,
        help="a model of ours to and from a folder for transformers",
        description=CONVERT,
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a model or run, or one for transformers")
    parser.add_argument("out", metavar="FOLDER", help="folder to write")
    parser.add_argument("--license", help="licence of the weights, for the model card, such as apache-2.0")


def run_import(args: argparse.Namespace) -> int:
    """Write the folder and say what the state costs."""
    from rmat.accounting import account
    from rmat.pretrained.folder import import_model

    model, tokenizer = import_model(
        args.source,
        args.out,
        window=args.window,
        n_slots=args.slots,
        n_sinks=args.sinks,
        dtype=args.dtype,
        gates=args.gates,
    )
    costs = account(model.config)
    assert tokenizer.chat is not None
    if args.json:
        print_json(
            {
                "folder": args.out,
                "parameters": costs.parameters,
                "state_bytes": costs.state_bytes,
                "cache_bytes": costs.cache_bytes,
                "trained_context": tokenizer.chat.context,
                "chat": tokenizer.chat.template is not None,
            }
        )
        return 0
    rows = [
        ("parameters", f"{costs.parameters:,}"),
        ("trained context", f"{tokenizer.chat.context:,} tokens"),
    ]
    print_table(
        [f"{args.source} in {args.out}", ""], [*rows, *state_rows(costs.state_bytes, costs.cache_bytes)]
    )
    return 0


def run_gates(args: argparse.Namespace) -> int:
    """Fit and write."""
    from rmat.api import load
    from rmat.data.progress import Progress
    from rmat.machine import is_first_process, pick_device, team
    from rmat.pretrained.gates import fit, mixed, passage_lengths
    from rmat.settings import whole
    from rmat.storage import model_folder

    for name in ("prose", "asking", "seed"):
        whole(f"--{name}", getattr(args, name), 0)
    if not args.prose + args.asking:
        raise ValueError("--prose 0 and --asking 0 leave nothing to fit on: give one of them 1 or more")
    if args.out is None and not Path(args.model).is_dir():
        raise ValueError(f"{args.model} is a name and no folder to write to: say where with --out FOLDER")
    device, _ = pick_device(args.device)
    model, tokenizer = load(args.model)
    if tokenizer is None or tokenizer.chat is None:
        raise ValueError(f"{args.model} was not imported from a pretrained model: rmat import makes one")
    if args.length is not None:
        whole("--length", args.length, 1, tokenizer.chat.context)
    chosen = {"n_prose": args.prose, "n_asking": args.asking, "seed": args.seed, "length": args.length}
    out = args.out or str(model_folder(args.model))
    if args.method == "distil" and team() > 1:
        raise ValueError(
            f"--method distil works in one process, and {team()} were started: leave torchrun out"
        )
    weakest = args.eviction == "weakest"
    fade = args.fade if args.fade is not None else FADE if weakest else 0.0
    newest = args.newest if args.newest is not None else NEWEST if weakest else 0.0
    model = model.with_slots(eviction=args.eviction, fade=fade, newest_share=newest)
    share = args.share if args.share is not None else UNREFUSED if weakest else 0.5
    if args.method == "distil":
        return _distil(args, model, tokenizer, out, {**chosen, "share": share})
    if given := [name for name in DISTIL_ONLY if getattr(args, name) is not None]:
        raise ValueError(f"--{given[0]} is for --method distil: add that, or leave it out")
    # What a bank is asked for is neither in local reach nor among its newest.
    reach = model.config.chunk_len * (1 + model.config.chunk_lookback) + model.config.n_newest
    prose, asking = passage_lengths(args.length)
    if args.prose and prose <= reach:
        raise ValueError(
            f"in passages of {prose} tokens nothing is further back than the {reach} "
            f"that are in local reach or the bank's newest: give --length {2 * reach}, or --prose 0"
        )
    passages = mixed(args.data, tokenizer, reach=reach, **chosen)
    total = args.prose * prose + args.asking * asking
    with Progress(True) as bars, bars.task("fitting gates (tokens)", total) as advance:
        model = fit(model.to(device), passages, share=share, advance=advance).to("cpu")
    if is_first_process():
        model.save(out, tokenizer=tokenizer)
    _say_gates(args, model, out, {"data": args.data, "share": share, **chosen})
    return 0


def _say_gates(args: argparse.Namespace, model: LanguageModel, out: str, given: dict[str, Any]) -> None:
    """Print what the gates in the folder are."""
    from rmat.model.config import EVICTION_FIELDS

    state = {name: getattr(model.config, name) for name in EVICTION_FIELDS}
    done = {"folder": out, **state, **given}
    print_json(done) if args.json else print(f"{out}: gates of {model.config.n_layers} layers")


def _distil(
    args: argparse.Namespace, model: LanguageModel, tokenizer: Tokenizer, out: str, chosen: dict[str, Any]
) -> int:
    """Distil and write; 130 if it was told to stop."""
    from rmat.pretrained.distil import DistilConfig, distil

    given: dict[str, Any] = {name: getattr(args, name) for name in DISTIL_ONLY}
    given = {name: value for name, value in given.items() if value is not None}
    config = DistilConfig(data=tuple(args.data), device=args.device, **chosen, **given)
    if distil(model, tokenizer, config, out) is None:
        return 130
    _say_gates(args, model, out, dataclasses.asdict(config))
    return 0


def run_export(args: argparse.Namespace) -> int:
    """Write the folder."""
    from rmat.pretrained.folder import export_model

    export_model(args.model, args.out)
    print(f"{args.out}: written for transformers")
    return 0


def run_convert(args: argparse.Namespace) -> int:
    """Write the folder."""
    try:
        from rmat.integrations.hf.folder import convert
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("rmat"):
            raise
        raise ModuleNotFoundError(
            f"rmat convert needs the package {error.name}: pip install 'rmat[hf]'"
        ) from None
    print(f"{args.out}: {convert(args.model, args.out, args.license)}")
    return 0


def state_rows(state: int, caches: dict[int, int]) -> list[tuple[str, str]]:
    """Rows of a table: the state beside caches of all keys and values."""
    return [
        ("state of one stream, float32", human_bytes(state)),
        *(
            (f"cache of full attention at {tokens:,} tokens", human_bytes(size))
            for tokens, size in caches.items()
        ),
    ]
