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
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

from sequence_processing.model import CausalModel

_SERVED = {
    llama.LlamaForCausalLM: (llama.LlamaRMSNorm, llama.LlamaAttention, llama.LlamaMLP),
    mistral.MistralForCausalLM: (mistral.MistralRMSNorm, mistral.MistralAttention, mistral.MistralMLP),
    qwen2.Qwen2ForCausalLM: (qwen2.Qwen2RMSNorm, qwen2.Qwen2Attention, qwen2.Qwen2MLP),
    qwen3.Qwen3ForCausalLM: (qwen3.Qwen3RMSNorm, qwen3.Qwen3Attention, qwen3.Qwen3MLP),
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


@dataclass(frozen=True, slots=True)
class Norm:
    weight: torch.Tensor
    epsilon: float


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


def weights_of(model: CausalModel, longest: int) -> Weights:
    """The weights of a model for sequences of up to `longest` tokens; `NotServedError` says why not."""
    base, config = model.base, model.text_config
    _check(base, config, longest)
    classes = _SERVED[type(base)]
    norm, attention, mlp = classes
    layers = []
    for block in base.model.layers[: config.num_hidden_layers]:
        own, gated = _of_type(block.self_attn, attention), _of_type(block.mlp, mlp)
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
    cosines, sines = base.model.rotary_emb(torch.empty(1), torch.arange(longest)[None])
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    width = layers[0].q.weight.shape[0] // heads
    if cosines.shape[-1] != width or width % 2:
        raise NotServedError("its rotary positions turn only a part of a head")
    return Weights(
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
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
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
