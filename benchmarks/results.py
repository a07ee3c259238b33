"""Reproduce the results: train every recipe, measure it, write results/NAME/ (JSON, CSV, plots).

    python benchmarks/results.py --quick                         recall, MQAR, pass key, bits per byte by position
    python benchmarks/results.py [NAME ...] [--data FOLDER]      everything, or the named stages

Stages that read text of your own (`books-*`, `passkey-*`, `facts`, `read-*`, `babilong*`, `code-*`) take it
from FOLDER: `books/` with train, valid and test parts, `code/` (which `code_corpus.py` makes), `dialogue/` with
train.jsonl and test.jsonl, `babi/` with bAbI's files. A run that is complete is not trained again, one that was
interrupted goes on; delete runs/results/NAME to start afresh.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rmat.cli.main import main as rmat

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "examples" / "recipes"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training and what is measured of it. {data} stands for the folder of text."""

    recipe: str
    """Name of a file in examples/recipes."""
    settings: tuple[str, ...] = ()
    """Further words of `rmat train`; {runs} stands for the folder of runs."""
    measurements: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Folder below results/NAME -> words of `rmat eval`; {run} stands for the run."""


BY_POSITION = ("ablation", "{run}", "--split", "test", "--max-document-bytes", "140000", "--batch-size", "10")
FACTS = (
    *("facts", "{run}", "--turns", "10", "--turns", "100", "--turns", "1000"),
    *("--filler", "talk", "--filler", "{data}/dialogue"),
)
WEAKEST = ("--eviction", "weakest", "--slots")
NEEDLE = (
    *("needle", "{run}"),
    *("--task", "single_1", "--task", "single_2", "--task", "multikey_1", "--task", "multivalue"),
    *("--task", "multiquery", "--batch-size", "50"),
)
ADMITTED_CODE = ("--variant", "admitted", "model.n_slots=150", "model.d_ff=432")
CODE = {
    "admitted": (*ADMITTED_CODE, "model.memory_layers=0,1,2,3"),
    "recommended": (),
    "local": ("--variant", "local", "model.d_ff=432"),
    "xl": ("--variant", "xl", "model.n_slots=128"),
    "full": ("--variant", "full", "model.segment_len=1024", "model.d_ff=432"),
}
BABILONG_SPEC = "babilong:facts={data}/babi,filler={data}/books"
BABILONG = ("babilong", "{run}", "--facts", "{data}/babi", "--filler", "{data}/books")
TO_16K = ("--length", "0", "--length", "1024", "--length", "4096", "--length", "16384")
BABILONG_TASKS = (*BABILONG, "--task", "1", "--task", "4", "--task", "5")
PASSKEY = ("passkey", "{run}", "--batch-size", "25")
PASSKEY_SPECS = '["passkey:filler=noise+python-stdlib+{data}/books,from=160,grow=500"]'
TO_64000 = ("--length", "640", "--length", "6400", "--length", "64000")
MILLION = ("--length", "1000000", "--samples", "10")

QUICK: dict[str, Stage] = {
    "quick-recall": Stage(
        recipe="recall",
        measurements={
            "everywhere": ("recall", "{run}", "--queries", "everywhere"),
            "end": ("recall", "{run}", "--length", "16384"),
            "million": ("recall", "{run}", "--length", "1048576", "--rows", "2"),
        },
    ),
    "quick-mqar": Stage(
        recipe="mqar",
        measurements={"test": ("mqar", "{run}", "--slots", "432", "--samples", "100")},
    ),
    "quick-passkey": Stage(
        recipe="passkey",
        measurements={"noise": (*PASSKEY, "--samples", "25", *TO_64000)},
    ),
    "quick-position": Stage(
        recipe="stdlib",
        measurements={"position": ("ablation", "{run}", "--mode", "zeroed", "--max-document-bytes", "40000")},
    ),
}
"""25 minutes on two cores, without other data than the standard library's sources."""

FULL: dict[str, Stage] = {
    **{
        f"recall-seed{seed}": Stage(
            recipe="recall",
            settings=(f"train.seed={seed}",),
            measurements={
                "everywhere": ("recall", "{run}", "--queries", "everywhere"),
                "end": ("recall", "{run}", "--length", "16384"),
                "million": ("recall", "{run}", "--length", "1048576", "--rows", "8", "--batch-size", "8"),
            },
        )
        for seed in (0, 1, 2)
    },
    "mqar": Stage(
        recipe="mqar",
        measurements={
            f"slots-{slots}": ("mqar", "{run}", "--slots", str(slots), "--samples", "1000")
            for slots in (384, 432, 512)
        },
    ),
    **{
        f"recall-admitted-seed{seed}": Stage(
            recipe="recall",
            settings=("--variant", "admitted", f"train.seed={seed}"),
            measurements={
                "everywhere": ("recall", "{run}", "--queries", "everywhere"),
                "end": ("recall", "{run}", "--length", "16384"),
                "million": ("recall", "{run}", "--length", "1048576", "--rows", "2"),
            },
        )
        for seed in (0, 1, 2)
    },
    **{
        f"mqar-admitted-{place}": Stage(
            recipe="mqar",
            settings=("--variant", "admitted", "model.n_sinks=0", f"model.memory_position={place}"),
            measurements={"slots-432": ("mqar", "{run}", "--slots", "432", "--samples", "200")},
        )
        for place in ("rotary", "none")
    },
    **{
        f"code-{name}": Stage(recipe="code", settings=("--data", "{data}/code", *settings))
        for name, settings in CODE.items()
    },
    **{
        f"code-start-{name}": Stage(
            recipe="code", settings=("--data", "{data}/code", "train.steps=350", *settings)
        )
        for name, settings in {
            "local": CODE["local"],
            "one-stream": (
                *CODE["local"],
                "model.streams=chunked",
                "model.segment_len=64",
                "model.chunk_len=64",
            ),
            "full": CODE["full"],
            **{f"layer-{layer}": (*ADMITTED_CODE, f"model.memory_layers={layer}") for layer in (1, 2)},
            "all-closed": (*CODE["admitted"], "model.gate_bias=-2", "model.gate_noise=1"),
        }.items()
    },
    **{
        f"passkey-seed{seed}": Stage(
            recipe="passkey",
            settings=(
                f"train.seed={seed}",
                f"data.specs={PASSKEY_SPECS}",
            ),
            measurements={
                "noise": (*PASSKEY, *TO_64000),
                "noise-million": (*PASSKEY, *MILLION),
                "books": (*PASSKEY, *TO_64000, "--filler", "{data}/books"),
                "books-million": (*PASSKEY, *MILLION, "--filler", "{data}/books"),
            },
        )
        for seed in (0, 1)
    },
    "passkey-admitted": Stage(
        recipe="passkey",
        settings=("--variant", "admitted", f"data.specs={PASSKEY_SPECS}"),
        measurements={
            "books": (*PASSKEY, *TO_64000, "--filler", "{data}/books"),
            "books-weakest": (
                *(*PASSKEY, *WEAKEST, "64", "--length", "64000", "--samples", "50"),
                *("--filler", "{data}/books"),
            ),
        },
    ),
    "needle": Stage(recipe="needle"),
    "needle-keys": Stage(
        recipe="needle-keys",
        settings=("--from", "{runs}/needle"),
        measurements={
            "test": (*NEEDLE, "--slots", "512", "--length", "416", "--length", "2048"),
            "16384": (*NEEDLE, "--slots", "512", "--length", "16384", "--samples", "50"),
            "oldest-96": (*NEEDLE, "--slots", "96", "--length", "16384", "--samples", "50"),
            "weakest-96": (*NEEDLE, *WEAKEST, "96", "--length", "16384", "--samples", "50"),
        },
    ),
    "facts": Stage(
        recipe="facts",
        settings=('data.specs=["facts:filler=talk+{data}/dialogue,questions=all,from=64,grow=1500"]',),
        measurements={
            "on": (*FACTS, "--slots", "256"),
            "zeroed": (*FACTS, "--slots", "256", "--memory", "zeroed"),
            "64-slots": FACTS,
            "weakest-64": (*FACTS, *WEAKEST, "64"),
            "weakest-256": (*FACTS, *WEAKEST, "256"),
        },
    ),
    **{
        f"read-{read}": Stage(
            recipe="babilong",
            settings=(
                f'data.specs=["{BABILONG_SPEC},tasks=1,from=64,grow=300,questions=all"]',
                *("train.steps=1200", f"model.memory_read={read}"),
            ),
            measurements={
                "": (
                    *(*BABILONG, "--slots", "1024", "--task", "1", "--samples", "200"),
                    *("--length", "0", "--length", "256", "--length", "1024"),
                )
            },
        )
        for read in ("softmax", "stick_breaking")
    },
    "babilong-facts": Stage(
        recipe="babilong",
        settings=(f'data.specs=["{BABILONG_SPEC},tasks=1+1+4+5,from=64,grow=400,questions=all"]',),
    ),
    "babilong": Stage(
        recipe="babilong-gates",
        settings=(
            *("--from", "{runs}/babilong-facts"),
            f'data.specs=["{BABILONG_SPEC},tasks=1+1+4+4+5,from=128,grow=300,questions=all",'
            f'"{BABILONG_SPEC},tasks=1+1+1+1+4+5,from=300,grow=300,questions=last"]',
        ),
        measurements={
            "test": (*BABILONG_TASKS, "--slots", "1024", *TO_16K),
            "65536": (*BABILONG_TASKS, "--slots", "1024", "--length", "65536", "--samples", "25"),
            "oldest-128": (*BABILONG_TASKS, "--slots", "128", "--length", "16384", "--samples", "50"),
            "weakest-128": (*BABILONG_TASKS, *WEAKEST, "128", *TO_16K),
            "weakest-65536": (*BABILONG_TASKS, *WEAKEST, "128", "--length", "65536", "--samples", "50"),
            "weakest-million": (*BABILONG_TASKS, *WEAKEST, "128", "--length", "1000000", "--samples", "10"),
        },
    ),
    **{
        f"books-{name}": Stage(
            recipe="books",
            settings=("--data", "{data}/books", *settings),
            measurements={"position": BY_POSITION}
            if memory
            else {"position": ("perplexity", *BY_POSITION[1:])},
        )
        for name, settings, memory in (
            ("recommended", (), True),
            ("logit", ("model.gate_gradient=logit",), True),
            ("xl", ("--variant", "xl", "model.n_slots=128"), True),
            ("local", ("--variant", "local"), False),
            ("full", ("--variant", "full", "model.segment_len=1024"), False),
        )
    },
}
"""Everything; hours on two cores."""


def run_stage(name: str, stage: Stage, data: str, runs: Path, results: Path) -> None:
    """Train unless it is done, then measure what is not measured."""
    run = runs / name
    words = [word.format(data=data, runs=runs) for word in stage.settings]
    if not (run / "result.json").is_file():
        resume = (run / "config.json").is_file()
        start = ["--config", str(RECIPES / f"{stage.recipe}.yaml"), "--out", str(run), *words]
        _do(["train", "--resume", str(run)] if resume else ["train", *start])
    for folder, command in stage.measurements.items():
        out = results / name / folder
        if not (out / "result.json").is_file():
            filled = [word.format(run=run, data=data) for word in command]
            _do(["eval", *filled, "--out", str(out)])


def _do(words: list[str]) -> None:
    print(f"\n$ rmat {' '.join(words)}", flush=True)
    status = rmat(words)
    if status:
        raise SystemExit(status)


def main() -> None:
    """Run the stages one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("stages", nargs="*", metavar="NAME", help=f"of {', '.join([*QUICK, *FULL])}")
    parser.add_argument("--quick", action="store_true", help="the quick stages")
    parser.add_argument("--data", default="data", metavar="FOLDER", help="text of your own (default: data)")
    parser.add_argument("--runs", type=Path, default=Path("runs/results"), metavar="DIR")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    given = parser.parse_args()
    known = {**QUICK, **FULL}
    unknown = [name for name in given.stages if name not in known]
    if unknown:
        parser.error(f"there is no stage {unknown[0]!r}; there are {', '.join(known)}")
    names = given.stages or list(QUICK if given.quick else FULL)
    needs_data = any("{data}" in word for name in names for word in known[name].settings)
    if needs_data and not Path(given.data).is_dir():
        parser.error(
            f"no folder at {given.data!r}: give the folder of text with --data, or name other stages"
        )
    started = time.perf_counter()
    for name in names:
        run_stage(name, known[name], given.data, given.runs, given.results)
        minutes = (time.perf_counter() - started) / 60
        print(f"{name} done after {minutes:.1f} minutes in all", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
