"""Which parameter is updated by which rule, and at which learning rate."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW, Optimizer

from rmat.training.config import TrainConfig


@dataclass(frozen=True)
class ParameterGroups:
    """Parameters of a model by what an optimiser may do to them; every parameter is in exactly one group."""

    hidden_matrices: dict[str, nn.Parameter]
    """Weights of linear maps inside the blocks: decayed, and what Muon is made for."""
    other_matrices: dict[str, nn.Parameter]
    """Weights of linear maps outside the blocks (an untied head): decayed, but Muon would flatten the
    differences between rare and frequent tokens."""
    undecayed: dict[str, nn.Parameter]
    """Everything else: embeddings, norms, biases, the write gate's score (a vector), learned queries and
    slots, fusion weights, convolutions. Shrinking them would favour one answer rather than a simple model."""


def parameter_groups(model: nn.Module) -> ParameterGroups:
    """Sort the trainable parameters of `model`; a weight shared by the embedding and the head counts as
    embedding."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)} - embeddings
    groups = ParameterGroups({}, {}, {})
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) not in linear or min(parameter.shape) == 1:
            groups.undecayed[name] = parameter
        elif name.startswith("blocks."):
            groups.hidden_matrices[name] = parameter
        else:
            groups.other_matrices[name] = parameter
    return groups


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """One AdamW, or Muon for the hidden matrices and AdamW for the rest.

    Muon's updates are scaled to the size of AdamW's, so that one `config.lr` serves both."""
    groups = parameter_groups(model)
    decayed = dict(groups.other_matrices)
    optimizers: list[Optimizer] = []
    if config.optimizer == "muon":
        optimizers.append(
            Muon(
                groups.hidden_matrices.values(),
                lr=config.lr,
                weight_decay=config.weight_decay,
                momentum=config.beta1,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    else:
        decayed |= groups.hidden_matrices
    adam_groups = [
        {"params": list(decayed.values()), "weight_decay": config.weight_decay},
        {"params": list(groups.undecayed.values()), "weight_decay": 0.0},
    ]
    optimizers.append(
        AdamW(
            [group for group in adam_groups if group["params"]],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            fused=True,
        )
    )
    return optimizers


class Muon(torch.optim.Muon):
    """Muon in the precision of its matrices, which may be shared out by rows.

    torch's computes in bfloat16, where a gradient summed in another order gives another update. A matrix that
    is shared out is gathered, every process computes its update and keeps its own rows."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update; `closure` is not asked."""
        for group in self.param_groups:
            momentum, lr = group["momentum"], group["lr"]
            for parameter in group["params"]:
                if (gradient := parameter.grad) is None:
                    continue
                memory = self.state[parameter]
                if not memory:
                    memory["momentum_buffer"] = torch.zeros_like(gradient)
                mean = memory["momentum_buffer"]
                mean.lerp_(gradient, 1 - momentum)
                update = gradient.lerp(mean, momentum)
                whole = update.full_tensor() if isinstance(update, DTensor) else update
                whole = orthogonal(whole, group["ns_coefficients"], group["ns_steps"], group["eps"])
                if isinstance(parameter, DTensor):
                    mesh, placed = parameter.device_mesh, parameter.placements
                    whole = distribute_tensor(whole, mesh, placed, src_data_rank=None)
                parameter.mul_(1 - lr * group["weight_decay"])
                parameter.add_(whole, alpha=-lr * 0.2 * max(parameter.shape) ** 0.5)


def orthogonal(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """About the orthogonal matrix nearest to `x` (rows, columns), by Newton-Schulz iterations (Keller
    Jordan's Muon): all singular values come near 1."""
    a, b, c = coefficients
    y = x.T if x.shape[0] > x.shape[1] else x
    y = y / y.norm().clamp(min=eps)
    for _ in range(steps):
        gram = y @ y.T
        y = a * y + (b * gram + c * (gram @ gram)) @ y
    return y.T if x.shape[0] > x.shape[1] else y


def set_learning_rate(optimizers: list[Optimizer], lr: float) -> None:
    """Use `lr` for the next update of every parameter."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def optimizer_tensors(model: nn.Module, optimizers: list[Optimizer]) -> dict[str, Tensor]:
    """All that the optimisers remember, as "parameter:quantity" -> tensor."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}:{quantity}": value
        for optimizer in optimizers
        for parameter, memory in optimizer.state.items()
        for quantity, value in memory.items()
    }


def optimizer_places(model: nn.Module, known: Iterable[str]) -> dict[str, Tensor]:
    """Where what `optimizer_tensors` gave can be read to: of every "parameter:quantity" among the `known`
    names a tensor, shared out as its parameter is."""
    parameters = dict(model.named_parameters())
    places = {}
    for key in known:
        name, _, quantity = key.rpartition(":")
        if name:
            like = parameters[name].detach()
            places[key] = (
                torch.zeros((), dtype=torch.float32) if quantity == "step" else torch.empty_like(like)
            )
    return places


def restore_optimizers(model: nn.Module, optimizers: list[Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave, onto the devices and dtypes each optimiser wants."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    memories: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, quantity = key.rpartition(":")
        memories.setdefault(name, {})[quantity] = value
    for optimizer in optimizers:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        held = {
            index: memories[names[id(p)]] for index, p in enumerate(parameters) if names[id(p)] in memories
        }
        optimizer.load_state_dict({"state": held, "param_groups": optimizer.state_dict()["param_groups"]})


def progress(step: int, elapsed: float, config: TrainConfig) -> float:
    """Share of the run that is over, 0 to 1, before update `step` (counted from 0) at `elapsed` seconds.

    The step count and the time budget both end a run, so the one nearer to its end decides.
    """
    share = step / config.steps
    if config.max_minutes is not None:
        share = max(share, elapsed / (60 * config.max_minutes))
    return min(share, 1.0)


def learning_rate_factor(step: int, share: float, config: TrainConfig) -> float:
    """Factor of `config.lr` for update `step` (counted from 0) when `share` of the run is over.

    A linear warm-up, then half a cosine or a plateau with a linear decay, down to `config.min_lr_ratio`.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    warmup_share = min(config.warmup_steps / config.steps, 1.0)
    if config.schedule == "cosine":
        height = 0.5 * (1 + math.cos(math.pi * _part(share, warmup_share)))
    else:
        height = 1 - _part(share, 1 - config.decay_share)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * height


def _part(share: float, start: float) -> float:
    """How far `share` has come from `start` to 1, 0 to 1."""
    return min(max((share - start) / (1 - start), 0.0), 1.0) if start < 1 else 1.0
