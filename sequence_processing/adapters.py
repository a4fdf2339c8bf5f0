"""LoRA adapters of peft: one is put over a base that stays as it was, or merged into the base's weights for speed.

An adapter stands in a tree of modules of its own that shares the base's parameters. So there is nothing to take off
again: dropping that tree frees the adapter and leaves the base, as does an adapter that turns out not to fit.
"""

import re
import warnings
from collections import Counter
from pathlib import Path

from peft import PeftConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from peft.tuners.lora import LoraConfig, LoraLayer
from torch import nn

from sequence_processing.shadow import shadow

# Ways of starting an adapter that leave the base's weights alone. The others take something away from them, and peft
# does it again, not always alike, whenever such a folder is loaded.
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")


def attach(base: nn.Module, folder: Path) -> PeftModel:
    """`base` with the adapter in `folder` over it, in eval mode, on the base's device.

    The two share the parameters that the adapter does not train; none of them is written to. They are frozen, as peft
    does. Raises `ValueError` with what does not fit, half a sentence: the kind of adapter, modules that the base
    lacks, shapes, weights that are missing or belong nowhere.
    """
    config = PeftConfig.from_pretrained(str(folder))
    _check_kind(config)
    weights = load_peft_weights(str(folder), device="cpu")
    config.inference_mode = True
    model = get_peft_model(shadow(base), config)
    _own(model, weights.keys() & dict(model.named_parameters(remove_duplicate=False)).keys())
    try:
        loaded = set_peft_model_state_dict(model, weights)
    except KeyError as error:
        raise ValueError(f"its file lacks {_short(error.args[0])}") from error
    except RuntimeError as error:
        raise (_mismatch(error) or error) from error
    if loaded.unexpected_keys:
        raise ValueError(f"the model has no place for {_listed(loaded.unexpected_keys)}")
    if missing := [key for key in loaded.missing_keys if _trained(key, config)]:
        raise ValueError(f"its file lacks {_listed(missing)}")
    return model.eval()


def merged(model: PeftModel) -> nn.Module:
    """The base with the adapter added into its weights, which are written to; each sum is rounded to the base's type.

    A weight that is tied to one which the adapter does not touch becomes its own first.
    """
    owners = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    for layer in [m for m in model.modules() if isinstance(m, LoraLayer)]:
        module = layer.get_base_layer()
        if owners[id(getattr(module, "weight", None))] > 1:
            module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of tied weights, and that they no longer are
        return model.merge_and_unload()


def _check_kind(config: PeftConfig) -> None:
    if type(config) is not LoraConfig:
        kind = "no type that it names" if config.peft_type is None else f"type {config.peft_type.value}"
        raise ValueError(f"it is of {kind}, and only LoRA is supported")
    if config.alora_invocation_tokens:
        raise ValueError(
            "it is an activated LoRA (alora_invocation_tokens), which only wakes in the middle of a prompt"
        )
    if config.init_lora_weights not in _PLAIN_STARTS:
        raise ValueError(
            f"its init_lora_weights {config.init_lora_weights!r} changes the base's weights; convert it to plain LoRA "
            "(peft's save_pretrained with path_initial_model_for_weight_conversion)"
        )


def _own(model: nn.Module, names: set[str]) -> None:
    """Make these parameters the tree's own: peft writes what the adapter's file holds for them into them."""
    for name in names:
        owner, _, leaf = name.rpartition(".")
        parameter = model.get_parameter(name)
        setattr(model.get_submodule(owner), leaf, nn.Parameter(parameter.detach().clone(), requires_grad=False))


def _trained(key: str, config: LoraConfig) -> bool:
    """Whether a parameter that the file does not name should stand in it."""
    bias = {"all": ".bias", "lora_only": ".base_layer.bias"}.get(config.bias)
    return "lora_" in key or (bias is not None and key.endswith(bias))


def _mismatch(error: RuntimeError) -> ValueError | None:
    """torch's list of wrong shapes, as the first of them; None if it is another error."""
    found = re.findall(
        r"size mismatch for (\S+): .*?torch\.Size\((\[.*?\])\).*?torch\.Size\((\[.*?\])\)", str(error), re.DOTALL
    )
    if not found:
        return None
    name, theirs, ours = found[0]
    more = f", and so with {len(found) - 1} more" if len(found) > 1 else ""
    return ValueError(f"{_short(name)} has shape {theirs} in the adapter and {ours} in the model{more}")


def _listed(keys: list[str]) -> str:
    return _short(keys[0]) + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")


def _short(key: str) -> str:
    return key.removeprefix("base_model.model.").replace(".default", "")
