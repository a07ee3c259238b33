"""What a training run is told: `RunConfig` and the `TrainConfig` in it."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rmat.data.config import DataConfig
from rmat.model import ModelConfig
from rmat.settings import check, choice, coerce, field_types, known_keywords, number, refuse_unknown, whole

TRACKERS = ("tensorboard", "trackio", "wandb")
"""Libraries that can be told of the metrics."""


def setting_names() -> list[str]:
    """Every dotted name a run can be given, such as `train.lr`."""
    sections = {"model": ModelConfig, "data": DataConfig, "train": TrainConfig}
    names = [name for name in field_types(RunConfig) if name not in sections]
    return names + [f"{section}.{name}" for section, cls in sections.items() for name in field_types(cls)]


@known_keywords()
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the model is trained. The defaults train the preset `tiny` on two CPU cores."""

    steps: int = 2000
    """Updates of the weights, at most."""
    max_minutes: float | None = None
    """Wall-clock budget in minutes over all parts of a resumed run; training ends there even if `steps` are
    left, and the learning rate follows whichever of steps and minutes is nearer to its end. None: no
    budget."""
    batch_size: int = 8
    """Rows read side by side, each a stream of documents of its own."""
    window: int = 512
    """Tokens each row reads in one call of the model; the gradient flows through all of them and no
    further."""
    accumulate: int = 1
    """Consecutive windows whose gradients are added up before one update."""
    lr: float = 3e-3
    """Peak learning rate."""
    min_lr_ratio: float = 0.1
    """Learning rate at the end, as a share of `lr`."""
    warmup_steps: int = 50
    """Updates over which the learning rate rises linearly to `lr`."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After the warm-up: half a cosine, or constant with a linear decay at the end (wsd)."""
    decay_share: float = 0.2
    """wsd only: share of the run that the final decay takes."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW for everything, or Muon for the hidden matrices and AdamW for the rest."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; other parameters have none."""
    beta1: float = 0.9
    """Decay of the running mean of gradients (AdamW), momentum (Muon)."""
    beta2: float = 0.95
    """Decay of the running mean of squared gradients (AdamW)."""
    clip: float = 1.0
    """Largest norm of the whole gradient; a larger one is scaled down to it. 0: no clipping."""
    z_loss: float = 0.0
    """Weight of the mean squared log-normaliser of the logits in the loss; keeps logits from drifting. 0:
    off."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Precision of activations; bfloat16 runs under autocast with weights and loss in float32. float64 is for
    checks, and has weights of that type too."""
    compile: bool = False
    """Run the blocks through torch.compile; made for a GPU, costs a minute at the start."""
    checkpoint_blocks: bool = False
    """Keep of every block its input alone for the backward pass, and compute it again there: less memory, a
    third more time."""
    parallel: Literal["auto", "ddp", "fsdp", "none"] = "auto"
    """How processes that torchrun started train together: each with the whole model (ddp), or each with a
    share of every block's weights and of what the optimiser remembers (fsdp). auto: ddp if there are several;
    none: there must be one. One that was started without torchrun trains alone."""
    context_parallel: int = 1
    """Processes that share every row: a window is cut where segments begin into so many parts, each read by
    one of them, and between parts only the memory crosses. Their number divides that of all processes; the
    others share out the rows."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a GPU if there is one."""
    seed: int = 0
    """Seed of the initial weights, of dropout and of the order of documents."""
    eval_every: int = 250
    """Updates between two evaluations on the validation split; the end is always evaluated. 0: only the
    end."""
    eval_bytes: int = 200_000
    """Bytes of the validation split read by one evaluation."""
    sample_every: int = 500
    """Updates between two samples of text. 0: none."""
    log_every: int = 10
    """Updates averaged into one row of the metrics file."""
    track: tuple[str, ...] = ()
    """Where the metrics go too, each through its own library: tensorboard (a folder of the run), trackio,
    wandb."""
    checkpoint_every: int = 250
    """Updates between two checkpoints; the end and every best evaluation are always kept."""
    keep_last: int = 2
    """Newest checkpoints kept, next to the best one. At least 2, so that one survives the loss of another."""
    max_nonfinite: int = 10
    """Updates that may be skipped for a loss or gradient that is not finite before the run stops."""
    carry_state: bool = True
    """Start each window from the memory the row's previous window left, instead of an empty one."""

    def __post_init__(self) -> None:
        for name, kind in field_types(TrainConfig).items():
            object.__setattr__(self, name, coerce(getattr(self, name), kind, f"train.{name}"))
        at_least_one = ("steps", "batch_size", "window", "accumulate", "context_parallel", "eval_bytes")
        check(self, "train", (*at_least_one, "log_every", "checkpoint_every"), whole, 1)
        check(self, "train", ("warmup_steps", "eval_every", "sample_every", "max_nonfinite"), whole, 0)
        check(self, "train", "keep_last", whole, 2)
        for name in self.track:
            choice("train.track", name, TRACKERS)
        check(self, "train", "seed", whole, 0, 2**32 - 1)
        check(self, "train", ("weight_decay", "clip", "z_loss"), number, 0)
        check(self, "train", "lr", number, above=0, remedy="give a number above 0, such as 0.003")
        check(self, "train", "decay_share", number, above=0, most=1)
        check(self, "train", "min_lr_ratio", number, 0, 1)
        check(self, "train", ("beta1", "beta2"), number, 0, below=1)
        check(self, "train", "max_minutes", number, above=0, remedy="give minutes above 0, or none")


@known_keywords(setting_names)
@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run: which model, on what text, how, and where it is written."""

    preset: str = "tiny"
    """Size of the model: tiny, small, base or large."""
    variant: str = "recommended"
    """Kind of model at that size: recommended, paper, local, xl or full."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of `ModelConfig` that differ from the preset. The vocabulary follows the tokenizer unless it is
    set here."""
    data: DataConfig = field(default_factory=DataConfig)
    """What is read; a mapping of fields becomes a DataConfig."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How it is trained; a mapping of fields becomes a TrainConfig."""
    start: str | None = None
    """Model that training starts from, with its architecture and tokenizer: a model folder, a run, or a name
    that comes with the package; None starts from random numbers."""
    out: str | None = None
    """Folder of the run; None makes one under `runs/` named by preset, variant and time."""

    def __post_init__(self) -> None:
        for name, kind in (("data", DataConfig), ("train", TrainConfig)):
            value = getattr(self, name)
            if not isinstance(value, kind):
                object.__setattr__(self, name, kind(**_typed_section(value, name, kind)))
        typed = _typed_section(self.model, "model", ModelConfig)
        object.__setattr__(self, "model", typed)
        for name in ("start", "out"):
            value = getattr(self, name)
            value = str(value) if isinstance(value, Path) else value
            object.__setattr__(self, name, coerce(value, str | None, name))
        if self.start is not None and (self.preset, self.variant) != (RunConfig.preset, RunConfig.variant):
            raise ValueError(
                f"start is {self.start!r}, a model whose size and kind are given: leave preset and variant "
                "out"
            )
        if self.start is None:
            ModelConfig.preset(self.preset, variant=self.variant, **typed)

    def model_config(self, tokenizer_size: int) -> ModelConfig:
        """The model for a tokenizer of `tokenizer_size` tokens.

        Raises ValueError if `model.vocab_size` is set and smaller than that.
        """
        vocab_size = self.model.get("vocab_size", tokenizer_size)
        if vocab_size < tokenizer_size:
            raise ValueError(
                f"model.vocab_size is {vocab_size} but the tokenizer has {tokenizer_size} tokens: leave "
                "model.vocab_size out"
            )
        return ModelConfig.preset(
            self.preset, variant=self.variant, **{**self.model, "vocab_size": vocab_size}
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able nested dict; `from_dict` of it gives an equal config."""
        return dict(json.loads(json.dumps(dataclasses.asdict(self))))

    @classmethod
    def from_dict(cls, nested: Mapping[str, Any]) -> "RunConfig":
        """A config from a nested dict whose values are typed or strings.

        Raises ValueError for an unknown key at any level (with the nearest valid dotted name) and for a value
        of the wrong type."""
        kinds = field_types(cls)
        refuse_unknown(nested, "", kinds, [*kinds, *setting_names()])
        return cls(
            **{
                name: coerce(value, dict if name in ("data", "train") else kinds[name], name)
                for name, value in nested.items()
            }
        )

    @classmethod
    def load(cls, folder: Path) -> "RunConfig":
        """The config of the run in `folder`, with `out` set to that folder.

        Raises ValueError if `folder` holds no run, or its configuration cannot be read.
        """
        path = folder / "config.json"
        if not path.is_file():
            raise ValueError(f"{folder} is not the folder of a training run: it has no config.json")
        try:
            nested = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): put it back, or start a new run") from None
        if not isinstance(nested, dict) or "train" not in nested:
            raise ValueError(f"{folder} is not the folder of a training run: its config.json describes none")
        try:
            return dataclasses.replace(cls.from_dict(nested), out=str(folder))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def _typed_section(given: Any, name: str, kind: type) -> dict[str, Any]:
    """The mapping `given` with values of the types that the fields of `kind` have."""
    section, kinds = coerce(given, dict, name), field_types(kind)
    refuse_unknown(section, name, kinds, setting_names())
    return {key: coerce(value, kinds[key], f"{name}.{key}") for key, value in section.items()}


_LENGTH = ("steps", "max_minutes", "max_nonfinite")
_WATCHING = (
    "eval_every",
    "eval_bytes",
    "sample_every",
    "log_every",
    "checkpoint_every",
    "keep_last",
    "track",
)
_PLACE = ("device", "compile", "checkpoint_blocks", "parallel", "context_parallel")
EXTENSIBLE = frozenset(_LENGTH + _WATCHING + _PLACE)
"""Fields of `TrainConfig` that may change when a run is resumed: they say how long, how closely watched and
where, not what."""


def check_resumable(stored: RunConfig, wanted: RunConfig) -> None:
    """Raise ValueError naming the first setting in which `wanted` differs from the run that is to be
    resumed."""
    before, now = stored.to_dict(), wanted.to_dict()
    for section in ("preset", "variant", "model", "start", "data"):
        if before[section] != now[section]:
            raise ValueError(
                f"{section} is {now[section]!r} but the run was started with {before[section]!r}: start a "
                "new run"
            )
    for name, value in now["train"].items():
        if name not in EXTENSIBLE and value != before["train"][name]:
            raise ValueError(
                f"train.{name} is {value!r} but the run was started with {before['train'][name]!r}: start a "
                "new run"
            )
