"""How far a narrow model's numbers lie from those of the same weights in float32, measured on rows that it made.

The reference is the model's own modules with every weight widened to float32, one layer at a time, so that it fits
beside the model: a row's recorded log-probabilities and entropies, whichever way they were computed, are held against
an unpadded forward over that row alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from sequence_processing.containers import Rollout
from sequence_processing.distribution import Measured, Policy
from sequence_processing.forwards import measured_of
from sequence_processing.memory import free_bytes
from sequence_processing.model import CausalModel
from sequence_processing.shadow import shadow

_NARROW = (torch.bfloat16, torch.float16)

# What one measurement goes over: positions of prompts and responses together (a few seconds on two cores for a model
# of half a billion weights), and tokens that the first row is compared on however long its prompt is.
_POSITIONS = 512
_LEAST_TOKENS = 64


class NothingToCompare(ValueError):
    """No weight is narrower than float32, or no row has a token."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Differences (narrow minus float32) in nats: their mean, and the mean and quantiles of their absolute values."""

    mean: float
    mean_abs: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, differences: np.ndarray) -> "Spread":
        """The spread of at least one difference. Raises `FloatingPointError` if one is not finite."""
        if not np.isfinite(differences).all():
            raise FloatingPointError("The values to compare are not all finite.")
        size = np.abs(differences)
        p50, p90, p99 = np.quantile(size, [0.5, 0.9, 0.99])
        values = (differences.mean(), size.mean(), p50, p90, p99, size.max())
        return cls(*(float(value) for value in values))


@dataclass(frozen=True, slots=True)
class Drift:
    """What the type of a model's weights did to the measurements of some of its tokens."""

    dtype: str
    sequences: list[tuple[int, int]]  # (prompt_index, sample_index) of the rows that were compared
    tokens: int
    logprobs: Spread
    entropies: Spread

    def to_dict(self) -> dict[str, Any]:
        """As plain data, nats to four significant digits."""

        def spread(values: Spread) -> dict[str, float]:
            return {name: float(f"{value:.4g}") for name, value in asdict(values).items()}

        return asdict(self) | {"logprobs": spread(self.logprobs), "entropies": spread(self.entropies)}


def measure_drift(model: nn.Module, rollouts: Sequence[Rollout]) -> Drift:
    """Hold `logprobs` and `entropies` of some of the model's rows against float32, in the order given.

    About 512 positions are gone over, prompts included, so the last row may be cut; the first gives up to 64 tokens
    however long its prompt is. The model's parameters are read only.

    Raises:
        NothingToCompare: no weight is narrower than float32, no row has a token, or memory is short.
        FloatingPointError: a number is not finite.
    """
    narrow = CausalModel(model)
    dtype = next((p.dtype for p in narrow.module.parameters() if p.dtype in _NARROW), None)
    if dtype is None:
        raise NothingToCompare(f"dtype {_name(next(narrow.module.parameters()).dtype)}: nothing to compare")
    taken = list(_within(rollouts, _POSITIONS, narrow.rope_change))
    if not taken:
        raise NothingToCompare("no row has a token: nothing to compare")
    _check_room(narrow.module)
    wide = CausalModel(_widened(narrow.module))
    logprobs, entropies = [], []
    with wide.evaluating():
        for rollout, count in taken:
            exact = _forward(wide, rollout, count)
            logprobs.append(rollout.logprobs[:count] - exact.logprobs.cpu().numpy())
            entropies.append(rollout.entropies[:count] - exact.entropies.cpu().numpy())
    return Drift(
        dtype=_name(dtype),
        sequences=[(rollout.prompt_index, rollout.sample_index) for rollout, _ in taken],
        tokens=sum(count for _, count in taken),
        logprobs=Spread.of(np.concatenate(logprobs)),
        entropies=Spread.of(np.concatenate(entropies)),
    )


def _check_room(model: nn.Module) -> None:
    """`NothingToCompare` if what is widened at once might not fit: a process that dies of it loses its shard."""
    layers = list(_layers(model))
    inside = {id(p) for layer in layers for p in layer.parameters()}
    outside = sum(p.numel() for p in model.parameters() if id(p) not in inside)
    need = 4 * (outside + max((sum(p.numel() for p in layer.parameters()) for layer in layers), default=0))
    free = free_bytes(next(model.parameters()).device)
    if 2 * need > free:  # the forward itself needs some as well
        raise NothingToCompare(f"a float32 layer needs {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")


def _within(rollouts: Sequence[Rollout], positions: int, rope_change: int | None) -> Iterator[tuple[Rollout, int]]:
    """Rows and how many of their response tokens fit into `positions`.

    A row ends before its rotary frequencies change: up to there, one forward goes over it as it was sampled.
    """
    least = _LEAST_TOKENS
    for rollout in rollouts:
        prompt = len(rollout.prompt_ids)
        room = max(positions - prompt, least)
        if rope_change is not None and prompt <= rope_change:
            room = min(room, rope_change - prompt + 1)  # the last token is predicted, not fed
        count = min(len(rollout.response_ids), room)
        if count > 0:
            positions -= prompt + count
            least = 0
            yield rollout, count


def _forward(model: CausalModel, rollout: Rollout, count: int) -> Measured:
    """The measurements of the row's first `count` response tokens, from logits of their positions only."""
    # The last of them is predicted one token earlier, so it is not fed.
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.response_ids[: count - 1]]], device=model.device)
    logits = model.module(**model.accepted(input_ids=ids, use_cache=False, logits_to_keep=count)).logits[:, -count:]
    responses = [rollout.response_ids[:count]]
    return measured_of(lambda z: z, logits, [0], responses, Policy(), logits.shape[-1])[0]


def _widened(model: nn.Module) -> nn.Module:
    """A shadow of `model` that computes in float32. A layer's weights are widened while the layer runs, and not kept.

    What stands outside the layers (embedding, last norm, head) is wide for as long as the shadow lives.
    """
    wide = shadow(model)
    for buffer_owner in wide.modules():
        for name, buffer in buffer_owner._buffers.items():
            if buffer is not None and buffer.dtype in _NARROW:
                buffer_owner._buffers[name] = buffer.float()
    layers = list(_layers(wide))
    inside = {id(module) for layer in layers for module in layer.modules()}
    _widen([module for module in wide.modules() if id(module) not in inside])
    for layer in layers:
        _widen_while_running(layer)
    return wide


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost module lists: a decoder's layers."""
    for child in module.children():
        if isinstance(module, nn.ModuleList):
            yield child
        else:
            yield from _layers(child)


def _widen_while_running(layer: nn.Module) -> None:
    modules = list(layer.modules())
    narrow = [dict(module._parameters) for module in modules]

    def before(*_: Any) -> None:
        _widen(modules)

    def after(*_: Any) -> None:
        for module, parameters in zip(modules, narrow, strict=True):
            module._parameters.update(parameters)

    layer.register_forward_pre_hook(before)
    layer.register_forward_hook(after)


def _widen(modules: Sequence[nn.Module]) -> None:
    """Replace the narrow parameters of these modules by float32 ones; tied ones stay tied."""
    wide: dict[int, nn.Parameter] = {}
    for module in modules:
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dtype in _NARROW:
                known = wide.get(id(parameter))
                if known is None:
                    known = wide[id(parameter)] = nn.Parameter(parameter.detach().float(), requires_grad=False)
                module._parameters[name] = known


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
