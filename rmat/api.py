"""The front door for Python: puts model, data, training, evaluation and generation together."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rmat.model import LanguageModel
from rmat.pretrained import SHORT_NAMES
from rmat.settings import known_keywords
from rmat.storage import TOKENIZER_FILE, load_model, model_folder

if TYPE_CHECKING:
    from rmat.data.corpus import HeldOut, Rows
    from rmat.data.store import TokenStore
    from rmat.data.tokenizer import Tokenizer
    from rmat.training.config import RunConfig

SAMPLE_TOKENS = 120
"""Tokens of the samples that training writes down."""


def load(folder: str | Path, device: torch.device | str = "cpu") -> tuple[LanguageModel, Tokenizer | None]:
    """Model and tokenizer of a model folder, or of the folder of a training run; or of a model that comes
    along or that a package registry has, by its name (`starter`, `smollm2`).

    The tokenizer is None if the model was saved without one. Raises FileNotFoundError if there is no model,
    ValueError if a file is damaged or does not fit.
    """
    from rmat.data.tokenizer import load_tokenizer

    if str(folder) in SHORT_NAMES:
        from rmat.pretrained.folder import cached

        folder = cached(folder)
    folder = model_folder(folder)
    model = load_model(folder, device)
    if not (folder / TOKENIZER_FILE).is_file():
        return model, None
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model only "
            f"{model.config.vocab_size}: "
            "save the model again with its own tokenizer"
        )
    return model, tokenizer


def _setting_names() -> list[str]:
    from rmat.training.config import setting_names

    return setting_names()


@known_keywords(_setting_names)
def train(
    config: RunConfig | None = None,
    *,
    data: Any = None,
    resume: str | Path | None = None,
    reporter: Any = None,
) -> Path:
    """Train a model: the folder of the run, with the model in its folder `model`.

    Args:
        config: what to train; with `resume` it may be left out and otherwise may differ only in how long and
            how closely watched the run is.
        data: what to read, in the place of `config.data.specs`: a SPEC, or what a program has in memory,
            which is kept in the cache folder (`rmat.data.memory.keep`).
        resume: folder of an interrupted run, which goes on where it was saved.
        reporter: told of the progress; None prints it to standard error.

    The caller's random numbers and torch's defaults stay as they are. Raises ValueError for a setting or data
    that cannot be used, or where another process trains in the same folder; MemoryError where there is not
    enough memory.
    """
    from rmat.data.memory import keep
    from rmat.training.config import RunConfig
    from rmat.training.loop import train as run

    resume = None if resume is None else Path(resume)
    if config is None:
        if resume is not None:
            config = RunConfig.load(resume)
        elif data is not None:
            config = RunConfig()
        else:
            raise ValueError("nothing to train: give a RunConfig, data, or the folder of a run as resume")
    if data is not None and isinstance(config, RunConfig):
        kept = keep(data, config.data.cache_dir)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, specs=(kept,)))
    if not isinstance(config, RunConfig):
        raise ValueError(
            f"config is {type(config).__name__}: give a RunConfig, or the folder of a run as resume"
        )
    return run(config, resume=resume, evaluate=evaluate, sample=sample, reporter=reporter)


def evaluate(
    model: LanguageModel, tokenizer: Tokenizer, held_out: HeldOut, *, max_bytes: int | None = None
) -> dict[str, float]:
    """Scores on held-out text: bits per byte with the memory on and with every read finding it empty (without
    a memory the two are the same number). On held-out rows of a task: nats of a scored token, share of them
    right."""
    return held_out.score(_Scorer(model, tokenizer, max_bytes))


@dataclass(frozen=True)
class _Scorer:
    model: LanguageModel
    tokenizer: Tokenizer
    max_bytes: int | None

    def documents(self, store: TokenStore) -> dict[str, float]:
        from rmat.evaluation.perplexity import perplexity

        def bits(**how: Any) -> float:
            try:
                found = perplexity(
                    self.model, self.tokenizer, store, max_bytes=self.max_bytes, buckets=False, **how
                )
            except FloatingPointError:  # it is for `train.max_nonfinite` to decide whether training ends
                return math.nan
            return found.bits_per_byte

        on = bits()
        zeroed = bits(memory="zeroed") if self.model.config.has_memory else on
        return {"bits_per_byte": on, "bits_per_byte_memory_zeroed": zeroed}

    def rows(self, rows: Rows) -> dict[str, float]:
        from rmat.evaluation.rows import score_rows

        return score_rows(self.model, rows)


def sample(model: LanguageModel, tokenizer: Tokenizer) -> str:
    """A short text that the model begins by itself; the same weights give the same text."""
    from rmat.generation.stream import generate

    try:
        return "".join(
            generate(model, tokenizer, max_new_tokens=SAMPLE_TOKENS, temperature=0.8, top_p=0.95, seed=0)
        )
    except FloatingPointError as error:  # as for `evaluate`
        return f"({error})"
