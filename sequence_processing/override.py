"""Other parameters in the place of a model's own: for one call, and without a write to the model.

`torch.func.functional_call` puts tensors in for the length of one forward. Here that is too short: the head runs
outside the forward, and what is checkpointed runs again in the backward pass, where it would find the model's own
parameters. So the tensors stand in a second tree of modules (`shadow.py`), which lives as long as a graph needs it.
Whatever the core derives from parameters it looks up in that tree: nothing of the model's own is used in its stead.
"""

from collections.abc import Mapping
from difflib import get_close_matches

import torch
from torch import nn

from sequence_processing.model import unwrap
from sequence_processing.shadow import shadow


def overridden(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """The model inside its wrappers as if each of `tensors` were the parameter of that name; gradient flows to them.

    Parameters that are tied change together. `ValueError` naming the first tensor that has no place, or that differs
    from its parameter in shape, type or device.
    """
    inner = unwrap(model)
    chosen: dict[int, tuple[str, torch.Tensor]] = {}
    own = _parameters(inner)
    for name, tensor in tensors.items():
        parameter = _named(own, name)
        _check_fits(name, tensor, parameter)
        other, given = chosen.setdefault(id(parameter), (name, tensor))
        if given is not tensor:
            raise ValueError(f"{other} and {name} are one parameter, tied together: give one of the two.")
    tree = shadow(inner)
    for module in tree.modules():
        for leaf, held in module._parameters.items():
            if id(held) in chosen:
                module._parameters[leaf] = chosen[id(held)][1]  # type: ignore[assignment]
    return tree


def step_along(
    model: nn.Module, direction: Mapping[str, torch.Tensor], step: float | torch.Tensor
) -> dict[str, torch.Tensor]:
    """theta + step * v of the parameters that `direction` names, as `params_override` takes them; the model's stay.

    Gradient flows to `step` (a 0-d tensor) and to the tensors of `direction`; theta counts as a constant. Each sum is
    rounded to its parameter's type: for small steps that should be float64. `ValueError` for a name without a
    parameter, or another shape.
    """
    own = _parameters(unwrap(model))
    moved = {}
    for name, v in direction.items():
        parameter = _named(own, name)
        if v.shape != parameter.shape:
            raise ValueError(
                f"The direction of {name} has shape {list(v.shape)}, its parameter {list(parameter.shape)}."
            )
        moved[name] = (parameter.detach() + step * v).to(parameter.dtype)
    return moved


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


def _named(own: Mapping[str, nn.Parameter], name: str) -> nn.Parameter:
    if name not in own:
        close = get_close_matches(name, own, n=1, cutoff=0.0)
        raise ValueError(f"The model has no parameter {name!r:.200}; the closest name is {', '.join(close) or 'none'}.")
    return own[name]


def _check_fits(name: str, tensor: torch.Tensor, parameter: nn.Parameter) -> None:
    for what in ("shape", "dtype", "device"):
        given, wanted = getattr(tensor, what), getattr(parameter, what)
        if given != wanted:
            given, wanted = (list(given), list(wanted)) if what == "shape" else (given, wanted)
            raise ValueError(f"The override of {name} has {what} {given}, its parameter {wanted}.")
