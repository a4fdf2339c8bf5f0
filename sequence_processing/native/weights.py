"""The parameters of a Llama-like model, as they are now: looked up at every call, never copied.

Served: Llama, Mistral, Qwen 2 and Qwen 3 with full attention, float32 or bfloat16, also with LoRA beside the weights.
Everything else that a model may ask for (windows, other activations, quantised or hooked modules) is refused here with
its reason, and then the model's own modules serve.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.activations import SiLUActivation
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from sequence_processing.model import CausalModel

_SERVED = {
    getattr(module, f"{name}ForCausalLM"): tuple(
        getattr(module, name + part) for part in ("Model", "DecoderLayer", "RMSNorm", "Attention", "MLP")
    )
    for module, name in ((llama, "Llama"), (mistral, "Mistral"), (qwen2, "Qwen2"), (qwen3, "Qwen3"))
}
_TYPES = (torch.float32, torch.bfloat16)


class NotServedError(Exception):
    """Why a model's own modules must serve."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """LoRA's part of a product: scale * B (A x)."""

    a: torch.Tensor  # [rank, inputs]
    b: torch.Tensor  # [outputs, rank]
    scale: float


@dataclass(frozen=True, slots=True)
class Linear:
    weight: torch.Tensor  # [outputs, inputs]
    bias: torch.Tensor | None
    low_rank: list[LowRank] = field(default_factory=list)

    def fits(self, outputs: int, inputs: int) -> bool:
        """Whether this is a product of so many inputs with so many outputs, adapters included."""
        added = ((low.b.shape[0], low.a.shape[1]) for low in self.low_rank)
        return {tuple(self.weight.shape), *added} == {(outputs, inputs)} and (
            self.bias is None or tuple(self.bias.shape) == (outputs,)
        )


@dataclass(frozen=True, slots=True)
class Norm:
    weight: torch.Tensor
    epsilon: float

    def fits(self, width: int) -> bool:
        """Whether this is a norm over so many elements."""
        return tuple(self.weight.shape) == (width,)


@dataclass(frozen=True, slots=True)
class Layer:
    before_attention: Norm
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    q_norm: Norm | None
    k_norm: Norm | None
    scale: float  # of attention scores
    before_mlp: Norm
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Weights:
    embedding: torch.Tensor  # [V, H]
    layers: list[Layer]
    last_norm: Norm
    head: Linear
    heads: int
    kv_heads: int
    width: int  # of a head
    cosines: torch.Tensor  # [longest, width] float32
    sines: torch.Tensor


def weights_of(model: CausalModel, longest: int, may_reach: int | None = None) -> Weights:
    """The weights of a model for sequences of up to `longest` tokens; `NotServedError` says why not.

    `may_reach`: refuse as if sequences were that long.
    """
    base, config = model.base, model.text_config
    _check(base, config, may_reach or longest)
    whole, decoder_layer, norm, attention, mlp = _SERVED[type(base)]
    layers = []
    for block in _of_type(base.model, whole).layers[: config.num_hidden_layers]:
        _of_type(block, decoder_layer)
        own, gated = _of_type(block.self_attn, attention), _of_type(block.mlp, mlp)
        _of_type(gated.act_fn, SiLUActivation)
        layers.append(
            Layer(
                before_attention=_norm(block.input_layernorm, norm),
                q=_linear(own.q_proj),
                k=_linear(own.k_proj),
                v=_linear(own.v_proj),
                o=_linear(own.o_proj),
                q_norm=_norm(own.q_norm, norm) if hasattr(own, "q_norm") else None,
                k_norm=_norm(own.k_norm, norm) if hasattr(own, "k_norm") else None,
                scale=float(own.scaling),
                before_mlp=_norm(block.post_attention_layernorm, norm),
                gate=_linear(gated.gate_proj),
                up=_linear(gated.up_proj),
                down=_linear(gated.down_proj),
            )
        )
    embedding = _matrix(_of_type(base.model.embed_tokens, nn.Embedding).weight)
    cosines, sines = base.model.rotary_emb(
        embedding.new_empty(1, dtype=torch.float32), torch.arange(longest, device="cpu")[None]
    )
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    width = layers[0].q.weight.shape[0] // heads
    if cosines.shape[-1] != width or width % 2:
        raise NotServedError("its rotary positions turn only a part of a head")
    weights = Weights(
        embedding=embedding,
        layers=layers,
        last_norm=_norm(base.model.norm, norm),
        head=_linear(base.lm_head),
        heads=heads,
        kv_heads=kv_heads,
        width=width,
        cosines=cosines[0].contiguous(),
        sines=sines[0].contiguous(),
    )
    _check_shapes(weights)
    return weights


def _check_shapes(w: Weights) -> None:
    """The kernels believe their sizes, so nothing may differ from what the config says."""
    hidden, queries, keys = w.embedding.shape[1], w.heads * w.width, w.kv_heads * w.width
    right = w.heads % w.kv_heads == 0 and w.head.fits(w.head.weight.shape[0], hidden) and w.last_norm.fits(hidden)
    for layer in w.layers:
        inner = layer.gate.weight.shape[0]
        right &= layer.before_attention.fits(hidden) and layer.before_mlp.fits(hidden)
        right &= layer.q.fits(queries, hidden) and layer.k.fits(keys, hidden) and layer.v.fits(keys, hidden)
        right &= layer.o.fits(hidden, queries) and layer.down.fits(hidden, inner)
        right &= layer.gate.fits(inner, hidden) and layer.up.fits(inner, hidden)
        right &= all(norm is None or norm.fits(w.width) for norm in (layer.q_norm, layer.k_norm))
    if not right:
        raise NotServedError("some of its weights have other shapes than its config says")


def _check(base: Any, config: Any, longest: int) -> None:
    if type(base) not in _SERVED:
        raise NotServedError("its architecture has no kernels of its own")
    if config.hidden_act != "silu":
        raise NotServedError(f"its activation is {config.hidden_act}")
    ropes = config.rope_parameters or {}
    if ropes.get("rope_type", "default") in ("dynamic", "longrope"):
        raise NotServedError("its rotary frequencies change with the length")
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    windowed = "sliding_attention" in kinds or (not kinds and type(base) is mistral.MistralForCausalLM)
    if windowed and window is not None and longest > window:
        raise NotServedError(f"rows may pass its window of {window} tokens")
    for module in base.modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        # What gradient checkpointing under an adapter asks of an embedding changes no value.
        hooked = any("make_inputs_require_grad" not in getattr(hook, "__qualname__", "") for hook in hooks)
        if hooked or "forward" in vars(module):
            raise NotServedError(f"its {type(module).__name__} is hooked or has another forward")


def _of_type(module: Any, kind: type) -> Any:
    if type(module) is not kind:
        raise NotServedError(f"one of its modules is a {type(module).__name__}")
    return module


def _matrix(weight: torch.Tensor) -> torch.Tensor:
    plain = type(weight) in (torch.Tensor, nn.Parameter)
    if not plain or weight.device.type != "cpu" or weight.dtype not in _TYPES or not weight.is_contiguous():
        raise NotServedError("its weights are not plain float32 or bfloat16 on the CPU")
    return weight.detach()


def _norm(module: Any, kind: type) -> Norm:
    return Norm(_matrix(_of_type(module, kind).weight), float(module.variance_epsilon))


def _linear(module: Any) -> Linear:
    low_rank: list[LowRank] = []
    if hasattr(module, "base_layer"):
        low_rank = list(_low_rank(module))
        module = module.base_layer
    weight = _matrix(_of_type(module, nn.Linear).weight)
    bias = None if module.bias is None else _matrix(module.bias)
    if bias is not None and bias.dtype != weight.dtype:
        raise NotServedError("a bias has another type than its weight")
    return Linear(weight, bias, low_rank)


def _low_rank(module: Any) -> Iterator[LowRank]:
    """The active adapters of peft's LoRA layer; one that is merged stands in the weight already."""
    from peft.tuners.lora.layer import Linear as LoraLinear

    _of_type(module, LoraLinear)
    if module.disable_adapters or module.merged:
        if module.disable_adapters and module.merged:
            raise NotServedError("an adapter is merged and disabled")
        return
    for name in module.active_adapters:
        if name not in module.lora_A:
            continue
        if name in module.lora_variant or module.lora_bias.get(name):
            raise NotServedError("an adapter is more than plain LoRA")
        a, b = (_of_type(part[name], nn.Linear) for part in (module.lora_A, module.lora_B))
        yield LowRank(_matrix(a.weight), _matrix(b.weight), float(module.scaling[name]))
