"""What to read, how to tokenise it and where to keep the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rmat.settings import check, known_keywords, number, refuse


@known_keywords()
@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data of a run. Raises ValueError naming field, value and remedy."""

    specs: tuple[str, ...] = ("python-stdlib",)
    """What to read: `python-stdlib`, a file, folder or glob (text, code, .jsonl, .parquet), or
    `hf:owner/name:split:column`. One or more."""

    weights: tuple[float, ...] | None = None
    """Share of training tokens of each of `specs`, in any unit; None reads every document once an epoch."""

    tokenizer: str = "bpe:1024"
    """`bytes`, `bpe:N` (byte-level BPE of N entries, trained on the train split), a tokenizer.json or a
    folder that holds one."""

    fim_rate: float = 0.0
    """Share of training documents rearranged for fill-in-the-middle, 0 to 1; dialogues stay as they are."""

    context_rate: float = 0.0
    """Share of training files that stand behind others of their folder, 0 to 1, as a repository is read
    first."""

    assistant_only_loss: bool = False
    """Whether training scores of a dialogue only what the assistant says, with its turn-end token. Documents
    without turns are scored whole."""

    streaming: bool = False
    """Read `hf:` data sets while training needs them, in their own order, and keep nothing of them: for those
    larger than the disk. What is held out comes from their first 32 MiB."""

    cache_dir: str | None = None
    """Folder of tokenised data; None takes $RMAT_CACHE, else `rmat` in the user's cache folder."""

    column: str = "text"
    """Name of the text field in JSONL and Parquet records."""

    valid_share: float = 0.05
    """Share of documents held out for `valid`, and again for `test`, if a source has no own split."""

    def __post_init__(self) -> None:
        if isinstance(self.specs, (str, Path)) or not isinstance(self.specs, (tuple, list)):
            refuse("data.specs", self.specs, "give a tuple of SPECs, for example ('python-stdlib',)")
        object.__setattr__(self, "specs", tuple(_text("data.specs", spec) for spec in self.specs))
        if not self.specs:
            refuse("data.specs", self.specs, "name at least one source, for example ('python-stdlib',)")
        check(self, "data", ("tokenizer", "cache_dir", "column"), _text)
        check(self, "data", ("fim_rate", "context_rate"), number, 0, 1, remedy=_SHARE)
        check(self, "data", "valid_share", number, 0, 0.4, remedy="give a share from 0 to 0.4; 0.05 is 5 %")
        for name in ("assistant_only_loss", "streaming"):
            if not isinstance(getattr(self, name), bool):
                refuse(f"data.{name}", getattr(self, name), "choose true or false")
        if self.streaming:
            for spec in self.specs:
                if not spec.startswith("hf:"):
                    refuse("data.specs", spec, "data.streaming reads hf:owner/name:split:column alone")
            if self.context_rate:
                refuse("data.context_rate", self.context_rate, "streams have no folders: leave it out")
        if self.weights is not None:
            self._check_weights()
        if self.tokenizer.startswith("bpe:") and self.bpe_size is None:
            refuse(
                "data.tokenizer", self.tokenizer, "give a whole number after 'bpe:', for example 'bpe:1024'"
            )

    def _check_weights(self) -> None:
        if not isinstance(self.weights, (tuple, list)):
            refuse("data.weights", self.weights, "give positive numbers, for example (1.0, 2.0)")
        positive = "give positive numbers; leave out a SPEC you do not want"
        weights = tuple(number("data.weights", weight, above=0, remedy=positive) for weight in self.weights)
        object.__setattr__(self, "weights", weights)
        if len(weights) != len(self.specs):
            remedy = (
                f"these are {len(weights)} values for {len(self.specs)} data.specs; give one weight a SPEC"
            )
            refuse("data.weights", weights, remedy)

    @property
    def bpe_size(self) -> int | None:
        """Entries of the BPE vocabulary to train; None for every other tokenizer."""
        kind, _, size = self.tokenizer.partition(":")
        return int(size) if kind == "bpe" and size.isdecimal() else None


_SHARE = "give a share from 0 to 1; 0.5 is every second document"


def _text(name: str, value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str) or not value:
        refuse(name, value, "give text that is not empty")
    return value
