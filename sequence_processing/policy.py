"""What a configuration asks of one model: the distribution to sample from, and what to measure of it."""

from typing import Any

import torch

from sequence_processing.config import GenerationConfig, check_diagnostics
from sequence_processing.diagnostics import Diagnostics
from sequence_processing.distribution import Policy
from sequence_processing.model import CausalModel


def policy_of(config: GenerationConfig, model: CausalModel, tokenizer: Any) -> Policy:
    """The policy for this model. `ValueError` if its device lacks the type that the head is to have."""
    wide = config.head_dtype == "float64"
    if wide and model.device.type == "mps":
        raise ValueError("head_dtype 'float64' needs a device that has float64, which Apple's does not; use the CPU.")
    asked = Diagnostics(
        names=check_diagnostics(config.diagnostics),
        alternatives=min(config.top_k_alternatives, model.vocab_size),
        eos_ids=model.eos_ids(tokenizer),
    )
    greedy = not config.do_sample or config.temperature == 0
    temperature, top_p = (0.0, 1.0) if greedy else (float(config.temperature), float(config.top_p))
    return Policy(temperature, top_p, asked, torch.float64 if wide else torch.float32)
