"""What the core needs to know of the caller's model, read afresh at every call so that nothing outlives a change of it.

Any causal LM of transformers, also inside peft, DistributedDataParallel or torch.compile. Models whose parameters are
sharded, and encoder-decoders, are refused in a sentence.
"""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from sequence_processing import splits

# What a model's generation_config may ask of a sampler, with the value that means "nothing". None of it is applied.
_WARPERS = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "min_length": 0,
    "min_new_tokens": None,
    "num_beams": 1,
    "guidance_scale": 1.0,
    "top_h": None,
    "exponential_decay_length_penalty": None,
    "watermarking_config": None,
    "renormalize_logits": False,
    "remove_invalid_values": False,
    "stop_strings": None,
}

# How the several ways of running out of memory call themselves, where there is no type of their own.
_OUT_OF_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "could not create a primitive",  # oneDNN: no room for the code or the scratch memory of a product
)


class CausalModel:
    """A read-only view of a causal LM; `TypeError` with one sentence if the model cannot serve as one here."""

    def __init__(self, model: nn.Module) -> None:
        refuse_unsupported(model)
        self.module = unwrap(model)  # decoding and scoring without gradient run here
        self.distributed = _distributed(model)
        # with_grad runs here: through DDP, to keep its reduction, and else past torch.compile, which sees no hooks.
        self.outer = self.module if self.distributed is None else self.distributed
        peft_configs = getattr(self.module, "peft_config", None)
        base: Any = self.module
        if peft_configs and hasattr(base, "get_base_model"):
            base = base.get_base_model()
        if any(c.is_prompt_learning for c in (peft_configs or {}).values()):
            raise TypeError("Adapters that prepend virtual tokens (prompt learning) are not supported; use LoRA.")
        config = getattr(base, "config", None)
        if config is None:
            raise TypeError(
                f"{type(base).__name__} has no config: SequenceProcessor needs a causal LM of transformers."
            )
        if getattr(config, "is_encoder_decoder", False):
            raise TypeError(f"{type(base).__name__} is an encoder-decoder model; only causal LMs are supported.")
        causal = getattr(config, "is_decoder", True) or any(getattr(m, "is_causal", False) for m in base.modules())
        if not causal:
            raise TypeError(
                f"{type(base).__name__} attends to both sides (its config.is_decoder is False); only causal LMs."
            )
        self.base = base  # the causal LM of transformers, inside an adapter's wrapper
        self.text_config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
        self.accepts = frozenset(inspect.signature(base.forward).parameters)
        self._modules = list(self.module.modules())  # looked through at every step

    @property
    def device(self) -> torch.device:
        """Where token ids go: the embedding's device."""
        return self.base.get_input_embeddings().weight.device

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding: ids below it can be looked up."""
        return int(self.base.get_input_embeddings().weight.shape[0])

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens; None if the architecture has no limit."""
        length = getattr(self.text_config, "max_position_embeddings", None)
        return int(length) if length else None

    @property
    def caches_attention(self) -> bool:
        """Whether past tokens are kept in an attention cache that can be padded, repeated and cut.

        A model that cannot be told positions may count the padding as such, and a layer that keeps a state
        (convolutions, linear attention) takes the padding into it, so neither qualifies.
        """
        supports = getattr(self.base, "_supports_default_dynamic_cache", lambda: False)
        if getattr(self.base, "_is_stateful", False) or not supports():
            return False
        layers = DynamicCache(config=self.text_config).layers
        keeps_state = any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)
        return not keeps_state and {"past_key_values", "position_ids"} <= self.accepts

    @property
    def rope_change(self) -> int | None:
        """Tokens up to which a forward uses one set of rotary frequencies, and beyond which it uses another (LongRoPE).

        The longest row of a forward decides for all of its rows, past tokens included. None if there is one set.
        ("dynamic" frequencies change beyond `context`, where no row gets.)
        """
        ropes = getattr(self.text_config, "rope_parameters", None) or {}
        each = [r for r in ropes.values() if isinstance(r, Mapping)] or [ropes]  # one a kind of layer, or one
        bounds = [r["original_max_position_embeddings"] for r in each if r.get("rope_type") == "longrope"]
        return min(bounds, default=None)

    def accepted(self, **inputs: Any) -> dict[str, Any]:
        """Those of a forward's arguments that this model's takes."""
        return {name: value for name, value in inputs.items() if name in self.accepts}

    def recomputed(self, longest: int) -> str | None:
        """Why rows of up to `longest` tokens cannot continue from a cache of their past; None if they can."""
        name = type(self.base).__name__
        if not self.caches_attention:
            return f"{name} has no attention cache to use"
        if self.rope_change is not None and longest > self.rope_change:
            return f"Rows of {name} may pass {self.rope_change} tokens"
        return None

    def eos_ids(self, tokenizer: Any) -> frozenset[int]:
        """Every id that ends a response: generation_config's, else the config's, else the tokenizer's."""
        sources = (getattr(self.base, "generation_config", None), self.text_config, tokenizer)
        for source in sources:
            eos = getattr(source, "eos_token_id", None)
            if eos is not None:
                return frozenset(int(e) for e in (eos if isinstance(eos, list | tuple) else [eos]))
        return frozenset()

    def ignored_settings(self) -> list[str]:
        """What the model's generation_config asks of a sampler, `name=value`; none of it is applied."""
        config = getattr(self.base, "generation_config", None)
        found = ((name, getattr(config, name, None), neutral) for name, neutral in _WARPERS.items())
        return [f"{name}={value}" for name, value, neutral in found if value is not None and value != neutral]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode without gradient; every module's own mode is restored, whatever happens."""
        training = [m for m in self._modules if m.training]
        for module in training:
            module.training = False
        try:
            with torch.no_grad():
                yield
        finally:
            for module in training:
                module.training = True

    def warn_of_dropout(self) -> None:
        """Warn if a dropout is active: logprobs with gradient then differ from those that were sampled."""
        layers = any(isinstance(m, nn.Dropout) and m.training and m.p > 0 for m in self.module.modules())
        if layers or (self.module.training and getattr(self.text_config, "attention_dropout", 0.0) > 0):
            warnings.warn(
                "The model is in training mode with active dropout: its logprobs with gradient are noisy; set the "
                "dropout to 0, or call model.eval() first.",
                RuntimeWarning,
                stacklevel=4,
            )


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DDP, DataParallel and torch.compile."""
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _distributed(model: nn.Module) -> DistributedDataParallel | None:
    """The DDP wrapper, also inside torch.compile."""
    while hasattr(model, "_orig_mod"):
        model = model._orig_mod  # type: ignore[assignment]
    return model if isinstance(model, DistributedDataParallel) else None


def refuse_unsupported(model: object) -> None:
    """`TypeError` with one sentence for wrappers that shard parameters (FSDP, ZeRO) and for what is no module."""
    if type(model).__name__ == "DeepSpeedEngine":
        raise TypeError("DeepSpeed engines are not supported: give the plain model, or one wrapped in DDP.")
    if not isinstance(model, nn.Module):
        raise TypeError(f"The model must be a torch module, not {type(model).__name__}.")
    if any("FSDP" in c.__name__ or "FullySharded" in c.__name__ for m in model.modules() for c in type(m).__mro__):
        raise TypeError("FSDP models are not supported: give the plain model, or one wrapped in DDP.")
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        raise TypeError("ZeRO-3 parameters are sharded and not supported: give the plain model, or one wrapped in DDP.")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device (or the host's allocator) ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    )


def does_not_fit(error: Exception, rows: int, what: str) -> MemoryError | None:
    """What to raise of `what`, one sequence, if memory ran out for it alone; None if fewer than `rows` rows may fit.

    Raises `error` if it is about something else, or if there was no row. None counts as a split (`splits`).
    """
    if not is_out_of_memory(error) or rows == 0:
        raise error
    if rows > 1:
        splits.count += 1
        return None
    failed = MemoryError(
        f"One sequence of {what} does not fit in memory; shorten it, or use a smaller type or a larger device."
    )
    failed.__cause__ = error.with_traceback(None)  # whose frames hold the memory that the next rows need
    return failed


def release() -> None:
    """Give cached blocks back. Not from inside an exception's handler: it holds the failed step's tensors."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
