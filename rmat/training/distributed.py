"""Training in several processes, started by torchrun: who reads which rows, and where numbers meet.

Rows of the batch belong to processes, in order; with `train.context_parallel` K, to groups of K neighbours,
each of which reads a part of every row (`rmat/context_parallel.py`). Each process computes the loss of what
it reads, divided by what is scored in all of them, and gradients are summed: by DistributedDataParallel
("ddp", every process holds the model) or by FSDP2 ("fsdp", each holds a share of every block's weights and of
what the optimiser remembers). One process alone is the case without a group.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from rmat.context_parallel import refuse_parts
from rmat.data.lanes import IGNORED, Batch
from rmat.machine import let_first_speak, process_group, started_processes
from rmat.model import LanguageModel, ModelConfig, StreamState
from rmat.model.bank import counted_writes
from rmat.storage import assigned
from rmat.training.config import TrainConfig
from rmat.training.objective import Window

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes that train one run together, as one of them sees them."""

    rank: int = 0
    count: int = 1
    mesh: DeviceMesh | None = None
    """All of them, among whom weights are shared out; None where one process trains alone."""
    parts: DeviceMesh | None = None
    """The same as groups of rows ("rows") times parts of each row ("context"); None where each row is read
    by one process."""
    patient: Any = None
    """Their group for what the first may do for hours, such as to tokenise."""

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    @property
    def context(self) -> int:
        """Processes that share a row."""
        return 1 if self.parts is None else self.parts["context"].size()

    @property
    def sharing(self) -> Any:
        """The group of those that share the rows of this one, in the order of their parts; None: it is
        alone."""
        return None if self.parts is None else self.parts["context"].get_group()

    def rows(self, batch_size: int) -> range:
        """The rows of this process, divided as `torch.chunk` divides, and so as a sharded tensor's are.
        Raises ValueError if a process would have none."""
        count, own = self.count // self.context, self.rank // self.context
        share = -(-batch_size // count)
        if share * (count - 1) >= batch_size:
            who = "processes" if self.context == 1 else f"groups of {self.context} processes"
            raise ValueError(
                f"train.batch_size is {batch_size}: {count} {who} take {share} rows each, and some "
                f"would have none; give a multiple of {count}, or start fewer processes"
            )
        return range(own * share, min((own + 1) * share, batch_size))

    def total(self, *values: float) -> tuple[float, ...]:
        """Sums over all processes."""
        if self.mesh is None:
            return values
        sums = torch.tensor(values, dtype=torch.float64, device="cpu")
        dist.all_reduce(sums)
        return tuple(sums.tolist())

    def total_of_rows(self, *values: float) -> tuple[float, ...]:
        """Sums over all rows, of values that those who share rows have alike."""
        once = self.rank % self.context == 0
        return self.total(*(value if once else 0.0 for value in values))

    def most(self, value: int) -> int:
        """The largest of all processes' values."""
        if self.mesh is None:
            return value
        largest = torch.tensor(value, device="cpu")
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process. What it raises ends all: the first with the error, the
        others without a word."""
        if self.mesh is None:
            return make()
        told: list[Any] = [False, None]
        try:
            if self.first:
                told = [True, make()]
        finally:
            dist.broadcast_object_list(told, src=0, group=self.patient)
        if not told[0]:
            let_first_speak()
            raise SystemExit(2)
        made: T = told[1]
        return made

    def first_alone(self, make: Callable[[], T]) -> T:
        """What `make` gives in every process, in the first before it is called in the others: what that one
        leaves in a cache they find there."""
        made: list[T] = []

        def begin() -> None:
            made.append(make())

        self.from_first(begin)
        return made[0] if self.first else make()

    def by_row(self, x: Tensor, rows: int) -> Tensor:
        """`x`, whose first axis are the rows of this process, as the share of a tensor of all `rows`."""
        if self.mesh is None:
            return x
        shape = torch.Size((rows, *x.shape[1:]))
        stride = torch.empty(shape, device="meta").stride()
        mesh, placed = (
            (self.mesh, [Shard(0)]) if self.parts is None else (self.parts, [Shard(0), Replicate()])
        )
        return DTensor.from_local(x, mesh, placed, run_check=False, shape=shape, stride=stride)


def restarted(out: str | None) -> bool:
    """Whether torchrun starts these processes anew after one of them died. Raises ValueError if it may do so
    and would not find the folder of the run again."""
    if out is None and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0:
        raise ValueError("processes that are started anew must find their run again: give --out DIR")
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0 and out is not None


@contextlib.contextmanager
def joined(config: TrainConfig) -> Iterator[Processes]:
    """The processes of this run: those that torchrun started, or that the caller has joined already, else
    this one alone. Raises ValueError where `train.parallel` or `train.context_parallel` cannot be."""
    started = started_processes()
    count = dist.get_world_size() if dist.is_initialized() else started or 1
    if config.parallel == "none" and count > 1:
        raise ValueError(
            f"train.parallel is 'none' but {count} processes were started: give auto, ddp or fsdp"
        )
    if (
        config.parallel == "fsdp"
        and count > 1
        and not hasattr(FSDPModule, "set_reduce_scatter_unused_params")
    ):
        raise ValueError(
            f"train.parallel is 'fsdp' with {count} processes, and torch {torch.__version__} cannot sum "
            "gradients of weights that some processes do not use: take a newer torch (2.13 can), or "
            "train.parallel=ddp"
        )
    context = config.context_parallel
    if count % context:
        raise ValueError(
            f"train.context_parallel is {context} and the number of processes {count}: start a multiple of "
            f"{context}, with torchrun --nproc-per-node {context}, or give train.context_parallel=1"
        )
    alone = started is None and not dist.is_initialized()
    if alone or (count == 1 and config.parallel in ("auto", "none")):
        yield Processes()
        return
    with process_group(config.device):
        kind = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
        mesh, parts = init_device_mesh(kind, (count,)), None
        if context > 1:
            shape = (count // context, context)
            parts = init_device_mesh(kind, shape, mesh_dim_names=("rows", "context"))
        patient = dist.new_group(backend="gloo", timeout=timedelta(days=7))
        yield Processes(dist.get_rank(), count, mesh, parts, patient)


def refuse_sharing(model: ModelConfig, config: TrainConfig) -> None:
    """Raise ValueError where processes cannot share rows as `train.context_parallel` wants."""
    if config.context_parallel == 1:
        return
    refuse_parts(model)
    if config.compile:
        raise ValueError(
            f"train.compile is true and train.context_parallel {config.context_parallel}: a compiled block "
            "cannot hand over its state in the middle; leave one of them out"
        )


class Replica:
    """The model of this process, joined with those of the others."""

    def __init__(
        self,
        model: LanguageModel,
        config: TrainConfig,
        processes: Processes = Processes(),
    ) -> None:
        self.processes, self.model = processes, model
        self._used: set[str] = set()
        self._window: nn.Module = Window(model, config, processes.sharing)
        if config.checkpoint_blocks:
            for block in model.blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if processes.mesh is None:
            return
        if config.parallel == "fsdp":
            _shard(self._window, model, config, processes.mesh)
            _watch(self._window, self._used)
        else:
            # Where no segment closes the write gate has no gradient, and that may be so for some rows alone.
            self._window = DistributedDataParallel(self._window, find_unused_parameters=True)
            self._window.register_comm_hook(None, _sum)

    @property
    def sharded(self) -> bool:
        """Whether a process holds only a share of the weights."""
        return isinstance(self._window, FSDPModule)

    @contextlib.contextmanager
    def window(
        self, batch: Batch, state: StreamState | None, last: bool
    ) -> Iterator[tuple[Tensor, Tensor, StreamState]]:
        """What `Window` gives; its gradients are computed inside the block, and those of all windows are
        summed over processes in the `last`."""
        waiting: Any = contextlib.nullcontext()
        if isinstance(self._window, FSDPModule):
            self._window.set_requires_gradient_sync(last)
        elif isinstance(self._window, DistributedDataParallel) and not last:
            waiting = self._window.no_sync()
        with waiting:
            with counted_writes() as counted, warnings.catch_warnings():
                # Nothing is changed in place of what a block gives.
                warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
                found = self._window(batch.tokens, batch.targets, batch.resets, state)
            self._total_writes(counted)
            yield found

    def _total_writes(self, counted: list[Tensor]) -> None:
        """Where the price of writes follows from how many there are, those of all processes count."""
        model = self.model
        if self.processes.mesh is None or not model.config.write_budget:
            return
        if model.resolve_schedule("auto")[0] != "parallel":
            return  # where segments follow one another processes have different numbers of them
        layers = sum(model.config.of_layer(index).has_memory for index in range(model.config.n_layers))
        own = torch.stack(counted).flatten().tolist() if counted else [0.0] * (2 * layers)
        for number, written in enumerate(self.processes.total(*own)):
            if counted:
                counted[number // 2][number % 2] = written

    def used(self) -> list[float]:
        """Of every weight whether this process had a gradient for it since `drop_unused`, 1 or 0. Empty where
        that is seen from the gradients."""
        names = [name for name, _ in self._window.named_parameters()] if self.sharded else []
        return [float(name in self._used) for name in names]

    def drop_unused(self, counts: Sequence[float]) -> None:
        """Take away the gradients of weights that no process had one for: FSDP leaves zeros, by which an
        optimiser would act. `counts`: `used`, summed over processes."""
        for parameter, count in zip(self._window.parameters() if counts else (), counts, strict=True):
            if not count:
                parameter.grad = None
        self._used.clear()

    def whole(self, everywhere: bool = True) -> LanguageModel | None:
        """The model with all its weights, for calls that processes make as they like; None in those that do
        not get it, which are none, or (`everywhere` false) all but the first. All of them call this."""
        if not self.sharded:
            return self.model
        options = StateDictOptions(full_state_dict=True, cpu_offload=not everywhere)
        weights: Any = get_model_state_dict(self.model, options=options)
        return assigned(self.model.config, weights) if weights else None


def _shard(window: nn.Module, model: LanguageModel, config: TrainConfig, mesh: DeviceMesh) -> None:
    """Share out the weights block by block, and embedding, norm and head, which may be tied, as one more.

    A model that writes from the block output goes through all blocks once for every segment, with gradients
    that reach back through the state: it is gathered once for the whole window."""
    # Weights travel in their own type, and the state goes through a block as it is, in float32: autocast
    # decides what is computed in bfloat16, as in one process.
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if model.resolve_schedule("auto")[0] == "parallel":
        for block in model.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(window, mesh=mesh, mp_policy=policy)
    for each in window.modules():
        if isinstance(each, FSDPModule):
            each.set_gradient_divide_factor(1.0)  # the loss is divided by what all processes score
            each.set_force_sum_reduction_for_comms(True)  # gloo knows no other reduction
            if mesh.size() > 1:  # else there is nobody who could have used other weights
                each.set_reduce_scatter_unused_params(True, recurse=False)


def _watch(window: nn.Module, used: set[str]) -> None:
    """Note the names of weights in `used` as their gradients are computed in this process."""
    seen: set[int] = set()

    def note(weight: nn.Parameter, name: str) -> None:
        if weight.grad is not None:  # else a later part, which does not use it, has answered so
            used.add(name)

    def look(prefix: str, unit: nn.Module, _: Any) -> None:
        for name, whole in unit.named_parameters(prefix):  # what is gathered for this call stays one tensor
            if not isinstance(whole, DTensor) and id(whole) not in seen:
                seen.add(id(whole))
                whole.register_post_accumulate_grad_hook(partial(note, name=name))

    for name, unit in window.named_modules():
        register = unit.register_forward_pre_hook
        if isinstance(unit, FSDPModule):
            register(partial(look, name))


def _sum(
    group: Any,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    """Sums gradients where DDP would average them."""
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    assert work is not None
    summed: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
    return summed


def same_width(batch: Batch, width: int, filling: int) -> Batch:
    """`batch`, filled up behind its rows to `width` tokens that are not scored."""
    more = width - batch.tokens.shape[1]
    if not more:
        return batch
    pad = nn.functional.pad
    return Batch(
        tokens=pad(batch.tokens, (0, more), value=filling),
        targets=pad(batch.targets, (0, more), value=IGNORED),
        resets=pad(batch.resets, (0, more)),
    )
