"""Tiny random models of several architectures, a byte-level tokenizer, and a naive float64 reference."""

import copy
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils._python_dispatch import TorchDispatchMode

from sequence_processing import BatchedSequences

EOS = 256
VOCAB = 272  # bytes, EOS, a few merges, and rows that no token uses

MERGES = [("<", "/"), ("a", "n"), ("s", "w"), ("e", "r"), (">", "Ċ"), ("</", "an"), ("sw", "er"), ("t", "h")]


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE: 256 bytes, <eos>, and merges that let `>` melt into the newline after it."""
    vocab = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab["<eos>"] = EOS
    for left, right in MERGES:
        vocab[left + right] = len(vocab)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
EXPERTS = {"num_experts_per_tok": 2, "head_dim": 8}
WINDOW = 6  # tokens; shorter than most prompts of the tests

CONFIGS = {
    "qwen2": {**LLAMA_LIKE, "tie_word_embeddings": True},
    "qwen3": {**LLAMA_LIKE, "head_dim": 8},
    "llama": {**LLAMA_LIKE, "num_key_value_heads": 4},
    "mistral": {**LLAMA_LIKE, "sliding_window": WINDOW},
    "gemma2": {  # a soft-cap after the head
        **LLAMA_LIKE,
        "head_dim": 8,
        "sliding_window": WINDOW,
        "final_logit_softcapping": 2.0,
    },
    "gemma3_text": {
        **LLAMA_LIKE,
        "head_dim": 8,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi3": LLAMA_LIKE,
    "olmo2": LLAMA_LIKE,
    "mixtral": {**LLAMA_LIKE, **EXPERTS, "num_local_experts": 4},
    "qwen3_moe": {**LLAMA_LIKE, **EXPERTS, "num_experts": 4, "moe_intermediate_size": 24},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": None},
    "gpt_neox": LLAMA_LIKE,
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},  # takes no position_ids
    "lfm2": {  # a layer that keeps a state beside one that attends, and no mark of it on the class
        **LLAMA_LIKE,
        "layer_types": ["conv", "full_attention"],
    },
}

ROPE_CHANGE = 24  # tokens; beyond them phi3's positions turn otherwise
PHI3 = {
    "original_max_position_embeddings": ROPE_CHANGE,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0, 3.0, 4.0, 8.0],
    },
}


def make_model(kind: str = "qwen2", seed: int = 0, **settings: object) -> torch.nn.Module:
    """A random model in eval mode, its weights large enough that distributions are not flat and past tokens matter."""
    torch.manual_seed(seed)
    base = {"vocab_size": VOCAB, "eos_token_id": EOS, "pad_token_id": None, "bos_token_id": None}
    config = transformers.CONFIG_MAPPING[kind](**{**base, **CONFIGS.get(kind, {}), **settings})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.std() < 0.05:  # Mamba's are large from the start
                parameter.mul_(4)
    return model


def with_range(model: torch.nn.Module, nats: float) -> torch.nn.Module:
    """The model with its head scaled until the logits of a token span `nats` on average."""
    ids = (torch.arange(40)[None] * 5 + 3) % model.config.vocab_size
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        for _ in range(8):  # more than once for soft-caps
            logits = model(input_ids=ids, use_cache=False).logits[0]
            factor = nats / (logits.amax(-1) - logits.amin(-1)).mean()
            head.mul_(factor)
    assert abs(factor - 1) < 0.05, f"Its logits do not come to span {nats} nats: another factor of {factor} is missing."
    return model


class Widened(TorchDispatchMode):
    """Nothing is narrowed to float32 in here, as norms, rotary positions and softmax do also in a float64 model."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") == torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def doubled(model: torch.nn.Module) -> torch.nn.Module:
    """A float64 copy, to be run inside `Widened`."""
    double = copy.deepcopy(model).double()
    for module in double.modules():
        if isinstance(module, transformers.PreTrainedModel):
            module.config._experts_implementation = "eager"  # the others have no float64
    return double


def naive_quantities(logits: np.ndarray, tokens: Sequence[int], temperature: float, top_p: float) -> SimpleNamespace:
    """The four quantities, token by token in plain loops over float64 `logits` [n, V]."""
    out = SimpleNamespace(logprobs=[], entropies=[], sampling_logprobs=[], sampling_entropies=[])
    for row, token in zip(logits, tokens, strict=True):
        p = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        q = naive_q(row, temperature, top_p)
        out.logprobs.append(np.log(p[token]))
        out.entropies.append(-sum(x * np.log(x) for x in p if x > 0))
        out.sampling_logprobs.append(np.log(q[token]) if q[token] > 0 else -np.inf)
        out.sampling_entropies.append(-sum(x * np.log(x) for x in q if x > 0))
    return out


def naive_q(row: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """q by its definition: keep a token if the mass of strictly more probable ones is at most top_p."""
    if temperature == 0:
        return np.eye(len(row))[int(np.argmax(row))]
    z = (row - row.max()) / temperature
    p = np.exp(z) / np.exp(z).sum()
    kept = np.array([p[p > x].sum() <= top_p for x in p])
    return np.where(kept, p, 0) / p[kept].sum()


def ranked_q(row: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """`naive_q` for a row without ties, by one sort."""
    p = np.exp((row - row.max()) / temperature)
    p /= p.sum()
    order = np.argsort(-p)
    before = np.cumsum(p[order]) - p[order]
    kept = np.zeros(len(p), dtype=bool)
    kept[order[before <= top_p]] = True
    return np.where(kept, p, 0) / p[kept].sum()


def double_logits(double: torch.nn.Module, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> torch.Tensor:
    """Float64 logits [len(response), V] of one unpadded sequence, by one forward pass of `doubled(model)`."""
    with Widened():
        logits = double(input_ids=torch.tensor([[*prompt_ids, *response_ids]]), use_cache=False).logits[0]
    assert logits.dtype == torch.float64
    return logits[len(prompt_ids) - 1 : -1] if response_ids else logits[:0]


def reference(model, prompt_ids, response_ids, temperature=1.0, top_p=1.0) -> SimpleNamespace:
    """The four quantities of one unpadded sequence, its forward pass in float64 too."""
    with torch.no_grad():
        logits = double_logits(doubled(model).eval(), prompt_ids, response_ids)
    return naive_quantities(logits.numpy(), response_ids, temperature, top_p)


def prefix_logits(double, prompt_ids, response_ids) -> torch.Tensor:
    """[len(response), V]: each response token's logits by a forward over what stands before it, and nothing else."""
    ids = [*prompt_ids, *response_ids]
    ends = range(len(prompt_ids), len(ids))
    with Widened():
        return torch.stack([double(input_ids=torch.tensor([ids[:n]]), use_cache=False).logits[0, -1] for n in ends])


def given(rows, *, left=False, pad=EOS):
    """BatchedSequences of [[(prompt_ids, response_ids), ...], ...] as a caller would make them."""
    total = max(len(p) + len(r) for group in rows for p, r in group)
    ids = torch.full((len(rows), len(rows[0]), total), pad)
    mask = torch.zeros_like(ids)
    for b, group in enumerate(rows):
        for g, (p, r) in enumerate(group):
            n = len(p) + len(r)
            at = slice(total - n, total) if left else slice(0, n)
            ids[b, g, at], mask[b, g, at] = torch.tensor([*p, *r]), 1
    return BatchedSequences(
        sequences=ids,
        prompt_lens=[len(group[0][0]) for group in rows],
        gen_lens=[[len(r) for _, r in group] for group in rows],
        attention_masks=mask,
        responses_text=[["" for _ in group] for group in rows],
    )


def naive_gradients(model, rows, weight=0.3):
    """Gradients in float64 of sum(logprobs) + weight * sum(entropies), sequence by sequence."""
    double = doubled(model)
    for group in rows:
        for prompt, response in group:
            if response:
                log = double_logits(double, prompt, response).log_softmax(-1)
                picked = log[range(len(response)), response]
                (picked.sum() - weight * (log.exp() * log).sum()).backward()
    return {name: p.grad for name, p in double.named_parameters() if p.requires_grad}
