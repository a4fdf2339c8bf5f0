"""The batched core: a causal language model in; sampled sequences and their measurements out. It knows no job.

Names resolve on first use, so that importing the package (or its plain containers) loads neither torch nor
transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sequence_processing.config import GenerationConfig
    from sequence_processing.containers import BatchedSequences, LogprobResults, MicroBatch, Rollout
    from sequence_processing.loading import ModelError, load_model, model_identity
    from sequence_processing.override import step_along
    from sequence_processing.processor import SequenceProcessor
    from sequence_processing.prompts import PromptError
    from sequence_processing.stops import StopAfterAnswer

__all__ = [
    "BatchedSequences",
    "GenerationConfig",
    "LogprobResults",
    "MicroBatch",
    "ModelError",
    "PromptError",
    "Rollout",
    "SequenceProcessor",
    "StopAfterAnswer",
    "load_model",
    "model_identity",
    "step_along",
]

_HOME = {
    "GenerationConfig": "config",
    "BatchedSequences": "containers",
    "LogprobResults": "containers",
    "MicroBatch": "containers",
    "Rollout": "containers",
    "ModelError": "loading",
    "load_model": "loading",
    "model_identity": "loading",
    "SequenceProcessor": "processor",
    "PromptError": "prompts",
    "StopAfterAnswer": "stops",
    "step_along": "override",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
