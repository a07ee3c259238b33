"""What to read, how to tokenise it and where to keep the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from rmat.settings import known_keywords


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

    cache_dir: str | None = None
    """Folder of tokenised data; None takes $RMAT_CACHE, else `rmat` in the user's cache folder."""

    column: str = "text"
    """Name of the text field in JSONL and Parquet records."""

    valid_share: float = 0.05
    """Share of documents held out for `valid`, and again for `test`, if a source has no own split."""

    def __post_init__(self) -> None:
        if isinstance(self.specs, str):
            raise ValueError(
                f"data.specs must be a tuple of SPECs, got the string {self.specs!r}; write ({self.specs!r},)"
            )
        if not isinstance(self.specs, (tuple, list)):
            raise ValueError(
                f"data.specs must be a tuple of SPECs, got {self.specs!r}; write for example "
                "('python-stdlib',)"
            )
        object.__setattr__(self, "specs", tuple(_as_text(spec) for spec in self.specs))
        for name in ("tokenizer", "cache_dir", "column"):
            value = _as_text(getattr(self, name))
            object.__setattr__(self, name, value)
            if not isinstance(value, str) and (value is not None or name != "cache_dir"):
                raise ValueError(f"data.{name} must be text, got {value!r}; write it in quotes")
        for name in ("fim_rate", "context_rate", "valid_share"):
            if not _is_number(getattr(self, name)):
                raise ValueError(f"data.{name} must be a number, got {getattr(self, name)!r}; 0.05 is 5 %")
        if not self.specs or not all(isinstance(spec, str) and spec for spec in self.specs):
            raise ValueError(
                f"data.specs must name at least one source, got {self.specs!r}; "
                "write for example ('python-stdlib',) or ('folder/of/text',)"
            )
        if self.weights is not None:
            self._check_weights()
        for name, does in (("fim_rate", "rearranges"), ("context_rate", "gives neighbours to")):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(
                    f"data.{name} must lie in 0..1, got {getattr(self, name)}; 0.5 {does} every second "
                    "document"
                )
        if not 0.0 <= self.valid_share <= 0.4:
            raise ValueError(
                f"data.valid_share must lie in 0..0.4, got {self.valid_share}; 0.05 holds out 5 % for valid "
                "and 5 % for test"
            )
        if not self.column:
            raise ValueError("data.column is empty; name the text field of the records, for example 'text'")
        self._check_tokenizer()

    def _check_weights(self) -> None:
        if not isinstance(self.weights, (tuple, list)) or not all(map(_is_number, self.weights)):
            raise ValueError(
                f"data.weights must be positive numbers, got {self.weights!r}; write for example (1.0, 2.0)"
            )
        object.__setattr__(self, "weights", tuple(float(weight) for weight in self.weights))
        if len(self.weights) != len(self.specs):
            raise ValueError(
                f"data.weights has {len(self.weights)} values for {len(self.specs)} data.specs; give one "
                "weight a SPEC"
            )
        if not all(isfinite(weight) and weight > 0 for weight in self.weights):
            raise ValueError(
                f"data.weights must be positive numbers, got {self.weights}; leave out a SPEC you do not want"
            )

    def _check_tokenizer(self) -> None:
        if not self.tokenizer:
            raise ValueError(
                "data.tokenizer is empty; write 'bytes', 'bpe:1024' or the path of a tokenizer.json"
            )
        if self.tokenizer.startswith("bpe:") and self.bpe_size is None:
            raise ValueError(
                f"data.tokenizer {self.tokenizer!r} has no whole number after 'bpe:'; write for example "
                "'bpe:1024'"
            )

    @property
    def bpe_size(self) -> int | None:
        """Entries of the BPE vocabulary to train; None for every other tokenizer."""
        kind, _, size = self.tokenizer.partition(":")
        return int(size) if kind == "bpe" and size.isdecimal() else None


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
