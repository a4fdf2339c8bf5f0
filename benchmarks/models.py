"""The models: random weights in real shapes, with a tokenizer trained on GSM8K, made once and kept in a cache folder.

Speed does not depend on what the weights say. `halfb` is the shape of Qwen2.5-0.5B; on `tiny` only the overhead beside
the arithmetic is left. The folder is named after the text that the tokenizer learned, so that another copy of the
data makes another folder.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from benchmarks.workload import TEMPLATE

EOS = "<|endoftext|>"
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 1024,
        "vocab_size": 4096,
    },
    "halfb": {  # Qwen2.5-0.5B
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "vocab_size": 151936,
    },
    "1.5b": {  # Qwen2.5-1.5B
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": 151936,
    },
}
_VOCABULARY = 4000  # of the tokenizer: smaller than the smallest model's


def config(shape: str, eos_token_id: int = 0) -> Qwen2Config:
    """Qwen2 in one of `SHAPES`, input and output embeddings tied."""
    return Qwen2Config(
        **SHAPES[shape],
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        hidden_act="silu",
        eos_token_id=eos_token_id,
        pad_token_id=eos_token_id,
        bos_token_id=None,
    )


def folder(shape: str, cache: Path, texts: list[str]) -> Path:
    """The folder under `cache` with the bfloat16 model of `shape` and the tokenizer of `texts`; made if missing."""
    learned = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8]
    target = cache / f"{shape}-{learned}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=cache, prefix=f".{target.name}-"))
    try:
        tokenizer = trained_tokenizer(texts)
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config(shape, tokenizer.eos_token_id)).to(torch.bfloat16)
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def trained_tokenizer(texts: Iterable[str]) -> Any:
    """A byte-level BPE of 4,000 tokens learned from `texts` and the template."""
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe = _byte_level()
    bpe.train_from_iterator([*texts, *[TEMPLATE] * 200], trainer)
    return _wrapped(bpe)


def byte_tokenizer() -> Any:
    """One token a byte and an EOS, nothing to learn: for where there is no data."""
    bpe = _byte_level()
    alphabet = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bpe.model = tokenizer_models.BPE(vocab=alphabet, merges=[])
    bpe.add_special_tokens([EOS])
    return _wrapped(bpe)


def _byte_level() -> Tokenizer:
    bpe = Tokenizer(tokenizer_models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return bpe


def _wrapped(bpe: Tokenizer) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS, pad_token=EOS, padding_side="left")
