"""lm-eval's own tasks on a model of ours, without a network:

    wikitext        word perplexity of WikiText-2's articles, each read whole (`loglikelihood_rolling`)
    niah_single_1   RULER's number in repeated sentences, which makes its own data
    babilong_qa1    BABILong's question and score, over local bAbI facts and sentences of books

    make lm-eval-check                              # installs lm-eval
    .venv/bin/python -m pip install wonderwords     # what RULER's tasks ask for
    .venv/bin/python benchmarks/lm_eval_tasks.py smollm2 --data FOLDER --out FILE

FOLDER holds `wikitext2/test.txt`, `babi/` and `books/`. Only the data sets of the tasks are replaced: prompts,
stop strings and scores are lm-eval's. Of wikitext the same articles are scored by the code of `rmat eval
perplexity` too (`--ours`). The file is written after every cell, and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

import lm_eval
import numpy as np
from lm_eval.tasks import TaskManager
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

from rmat.api import load
from rmat.data.config import DataConfig
from rmat.data.corpus import load_corpus
from rmat.data.tokenizer import Tokenizer
from rmat.evaluation.intervals import wilson
from rmat.evaluation.perplexity import perplexity
from rmat.integrations.hf.tokenizer import to_transformers
from rmat.integrations.lm_eval import RmatLM
from rmat.machine import describe_environment
from rmat.model import LanguageModel
from rmat.tasks.babilong import BabilongTask

THEIRS = Path(lm_eval.__file__).parent / "tasks"
ARTICLE = re.compile(r"(?m)^(?= = [^=].*[^=] = $)")
QUESTION = re.compile(r"\s*Question: (.*) Answer:")


def articles(path: Path, n_bytes: int) -> list[str]:
    """The first articles of WikiText, whole, until they hold so many bytes."""
    found: list[str] = []
    for page in ARTICLE.split(path.read_text("utf-8")):
        if page.strip() and sum(len(one.encode()) for one in found) < n_bytes:
            found.append(page)
    return found


def stories(data: Path, length: int, samples: int, seed: int, tokenizer: Tokenizer) -> list[dict[str, str]]:
    """Samples of BABILong's first task, about `length` tokens long; 0 for the facts alone."""
    task = BabilongTask(facts=str(data / "babi"), filler=str(data / "books"), tasks=(1,), split="test")
    fitting, rows = task.fitting(1, length, tokenizer), []
    for index in np.random.default_rng(seed).permutation(len(fitting))[:samples]:
        made = task.ask(fitting[index], np.random.default_rng([seed, int(index)]), length, tokenizer)
        *context, asked = made.pieces
        question = QUESTION.fullmatch(asked)
        assert question is not None
        rows.append(
            {"input": "".join(context).strip(), "question": question[1], "target": made.references[0]}
        )
    return rows


def write_task(folder: Path, include: str, name: str, rows: list[dict[str, str]], **fields: Any) -> None:
    """One of lm-eval's tasks over other data."""
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    layout = {
        "include": str(THEIRS / include),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        **fields,
    }
    (folder / f"{name}.yaml").write_text(json.dumps(layout))  # JSON is YAML


def evaluated(
    lm: RmatLM, folder: Path, task: str, args: argparse.Namespace, **options: Any
) -> dict[str, Any]:
    """Scores of one task and what was counted."""
    metadata = {"tokenizer": str(folder / "tokenizer"), **options.pop("metadata", {})}
    began = time.perf_counter()
    found = lm_eval.simple_evaluate(
        lm,
        tasks=[task],
        task_manager=TaskManager(
            include_path=[str(folder), str(THEIRS / "ruler")], include_defaults=False, metadata=metadata
        ),
        bootstrap_iters=0,
        log_samples=False,
        random_seed=args.seed,
        numpy_random_seed=args.seed,
        **options,
    )
    scores = {name: value for name, value in found["results"][task].items() if isinstance(value, float)}
    n = found["n-samples"][task]["effective"]
    return {"scores": scores, "samples": n, "seconds": round(time.perf_counter() - began, 1)}


def share(cell: dict[str, Any], name: str) -> None:
    """Put the 95 % interval of a share beside it."""
    right = cell["scores"][name]
    interval = wilson(round(right * cell["samples"]), cell["samples"])
    cell |= {"accuracy": right, "low": interval.low, "high": interval.high}


def wikitext(
    lm: RmatLM, model: LanguageModel, tokenizer: Tokenizer, folder: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """Rolling perplexity; beside it what our own evaluation says of the same articles."""
    pages = articles(args.data / "wikitext2" / f"{args.split}.txt", args.wikitext_bytes)
    write_task(folder, "wikitext/wikitext.yaml", "wikitext_local", [{"page": page} for page in pages])
    cell = evaluated(lm, folder, "wikitext_local", args)
    words = sum(len(re.split(r"\s+", page)) for page in pages)
    texts = [wikitext_detokenizer({"page": page}) for page in pages]
    cell |= {"articles": len(pages), "words": words, "tokens": sum(len(tokenizer.encode(x)) for x in texts)}
    cell["nats"] = math.log(cell["scores"]["word_perplexity,none"]) * words
    if args.ours and lm.memory == "on":
        (folder / "pages.jsonl").write_text("".join(json.dumps({"text": x}) + "\n" for x in texts), "utf-8")
        data = DataConfig(specs=(str(folder / "pages.jsonl"),), valid_share=0.0, cache_dir=str(folder))
        store = load_corpus(data, progress=False, tokenizer=tokenizer).train
        ours = perplexity(model, tokenizer, store, memory=lm.memory, buckets=False)
        cell["nats_by_rmat_eval"] = ours.nats_per_token * ours.tokens
    return cell


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder of a model or run, or smollm2")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="test", help="of wikitext")
    parser.add_argument("--tasks", nargs="*", default=["wikitext", "niah_single_1", "babilong_qa1"])
    parser.add_argument("--memory", nargs="*", default=["on", "zeroed"])
    parser.add_argument("--lengths", nargs="*", type=int, default=[1024, 2048], help="tokens")
    parser.add_argument("--samples", type=int, default=10, help="of a cell")
    parser.add_argument("--wikitext-bytes", type=int, default=60_000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--ours", action="store_true", help="also rmat eval perplexity's code on wikitext")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model, tokenizer = load(args.model)
    assert tokenizer is not None
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    result: dict[str, Any] = {"environment": describe_environment("cpu", args.seed), "cells": []}
    if args.out.is_file():
        result = json.loads(args.out.read_text("utf-8"))
    result |= {"lm_eval": lm_eval.__version__, "config": model.config.to_dict(), "settings": settings}
    done = {(cell["task"], cell["length"], cell["memory"]) for cell in result["cells"]}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        to_transformers(tokenizer).save_pretrained(folder / "tokenizer")
        for task in args.tasks:
            for length in [None] if task == "wikitext" else args.lengths:
                for memory in args.memory:
                    if (task, length, memory) in done:
                        continue
                    lm = RmatLM(model, tokenizer, batch_size=args.batch_size, memory=memory)
                    if task == "wikitext":
                        cell = wikitext(lm, model, tokenizer, folder, args)
                    elif task == "babilong_qa1":
                        rows = stories(args.data, length, args.samples, args.seed, tokenizer)
                        write_task(
                            folder, "babilong/babilong_qa1.yaml", "babilong_local", rows, custom_dataset=None
                        )
                        cell = evaluated(lm, folder, "babilong_local", args)
                        share(cell, "acc,none")
                    else:
                        cell = evaluated(
                            lm,
                            folder,
                            task,
                            args,
                            metadata={"max_seq_lengths": [length]},
                            limit=args.samples,
                            gen_kwargs={"max_gen_toks": 32},
                        )
                        share(cell, f"{length},none")
                    result["cells"].append({"task": task, "length": length, "memory": memory, **cell})
                    print(json.dumps(result["cells"][-1]), flush=True)
                    args.out.parent.mkdir(parents=True, exist_ok=True)
                    args.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
