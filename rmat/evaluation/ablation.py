"""What the memory is worth: the same text scored with the memory on and with it taken away in three ways.

`zeroed` finds every bank empty, `frozen` keeps the document's first writes and takes no more, `shuffled`
reads the bank of another document. If `zeroed` is as good as `on` the memory is dead weight; if `shuffled` is
as good, it carries a habit and no content; if `frozen` is as good, new writes add nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from rmat.evaluation.intervals import Interval
from rmat.evaluation.perplexity import ByteCounter, Documents, PerplexityResult, PositionScore, perplexity
from rmat.generation.reader import Advance
from rmat.model import LanguageModel
from rmat.model.language_model import MemoryMode

MODES: tuple[MemoryMode, ...] = get_args(MemoryMode)


@dataclass(frozen=True, kw_only=True)
class ModeScore:
    """One way of using the memory, beside the memory left on."""

    result: PerplexityResult
    """Bits per byte in this mode, with its interval."""
    minus_on: Interval
    """Bits per byte in this mode minus those with the memory on, paired by document; above zero: the memory
    helps."""
    minus_on_by_position: tuple[PositionScore, ...]
    """The same difference in each position bucket."""


@dataclass(frozen=True, kw_only=True)
class AblationResult:
    """Result of `ablation`: a score per mode, "on" among them."""

    modes: dict[MemoryMode, ModeScore]
    """By mode, in the order they were asked for."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: per mode bits_per_byte, low, high and the paired difference to "on"; counts once."""
        on = self.modes["on"].result.to_dict()
        found: dict[str, Any] = {}
        for mode, score in self.modes.items():
            result = score.result.to_dict()
            found[mode] = {name: result[name] for name in ("bits_per_byte", "low", "high", "by_position")}
            found[mode]["minus_on"] = score.minus_on.to_dict("bits_per_byte")
            found[mode]["minus_on_by_position"] = [bucket.to_dict() for bucket in score.minus_on_by_position]
        shared = ("tokens", "bytes", "documents", "state_bytes", "position_unit", "position_documents")
        return found | {name: on[name] for name in shared}


def ablation(
    model: LanguageModel,
    tokenizer: ByteCounter,
    store: Documents,
    *,
    modes: tuple[MemoryMode, ...] = MODES,
    max_bytes: int | None = None,
    max_document_bytes: int | None = None,
    batch_size: int = 8,
    window: int | None = None,
    seed: int = 0,
    advance: Advance | None = None,
) -> AblationResult:
    """Score the same documents once per mode; arguments and errors as in `perplexity`.

    "on" is always scored, as the other modes are compared with it.
    """
    wanted: tuple[MemoryMode, ...] = ("on", *(mode for mode in modes if mode != "on"))
    results = {
        mode: perplexity(
            model,
            tokenizer,
            store,
            memory=mode,
            max_bytes=max_bytes,
            max_document_bytes=max_document_bytes,
            batch_size=batch_size,
            window=window,
            seed=seed,
            advance=advance,
        )
        for mode in wanted
    }
    on = results["on"]
    return AblationResult(
        modes={
            mode: ModeScore(
                result=result,
                minus_on=result.minus(on, seed=seed),
                minus_on_by_position=result.minus_by_position(on, seed=seed),
            )
            for mode, result in results.items()
        }
    )
