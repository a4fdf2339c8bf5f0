"""What comes out: one `Rollout` a sequence, and the [B, G] grids that training and evaluation code works with.

Knows no model and no tokenizer. Invariants: a row of `BatchedSequences.sequences` is prompt ++ response ++ pad, so
`sequences[b, g, prompt_lens[b] : prompt_lens[b] + gen_lens[b][g]]` is the response; the stop token and EOS count in
`gen_lens`; masks come from lengths, never from comparing with the pad token. All measurements are in nats.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Rollout:
    """One finished sequence. The four arrays are float32 of shape [len(response_ids)], in nats.

    They, and the diagnostics, are float64 under `head_dtype="float64"`.
    """

    prompt_index: int
    sample_index: int
    prompt_ids: list[int]
    response_ids: list[int]
    text: str  # the whole response decoded, stop string included, special tokens left out
    logprobs: np.ndarray  # log p(token): temperature 1, no truncation
    entropies: np.ndarray  # Shannon entropy of p
    sampling_logprobs: np.ndarray  # log q(token): temperature, then top-p; -inf outside the nucleus
    sampling_entropies: np.ndarray  # Shannon entropy of q
    finish_reason: str  # eos | stop | length | scored
    stop_offset: int | None = None  # characters of `text` before the stop string
    token_ends: list[int] = field(default_factory=list)  # characters of `text` up to the end of each token
    diagnostics: dict[str, np.ndarray] = field(default_factory=dict)  # by name, see `diagnostics.py`; [n] or [n, k]


@dataclass
class LogprobResults:
    """Measurements of B x G responses, each entry of length gen_lens[b][g].

    Without gradient: float32 tensors, numpy arrays and floats. With gradient: `logprobs`, `entropies` and
    `sequence_logprobs` hold tensors that carry the graph; everything else is detached. Under `head_dtype="float64"`
    tensors and arrays are float64.
    """

    logprobs: list[list[torch.Tensor]]  # [B][G] log p(token)
    entropies: list[list[np.ndarray]] | list[list[torch.Tensor]]  # [B][G] entropy of p
    sequence_logprobs: list[list[float]] | list[list[torch.Tensor]]  # [B][G] sum of logprobs
    sampling_logprobs: list[list[torch.Tensor]] = field(default_factory=list)  # [B][G] log q(token)
    sampling_entropies: list[list[np.ndarray]] = field(default_factory=list)  # [B][G] entropy of q
    old_logprobs: list[list[torch.Tensor]] | None = (
        None  # [B][G] log p(token) in the pass that sampled, if there was one
    )
    # By name, what `GenerationConfig` asked for (`diagnostics.py`): [B][G] of arrays [n], or [n, k] of alternatives.
    diagnostics: dict[str, list[list[np.ndarray]]] = field(default_factory=dict)

    @classmethod
    def from_rollouts(
        cls, rollouts: Iterable[Rollout], G: int, *, device: torch.device | str = "cpu"
    ) -> "LogprobResults":
        """The measurements of `rollouts` on the grid that `BatchedSequences.from_rollouts` makes of them."""
        grid = _grid(rollouts, G)

        def tensors(name: str) -> list[list[torch.Tensor]]:
            return [[torch.tensor(_floats(getattr(r, name)), device=device) for r in group] for group in grid]

        def arrays(name: str) -> list[list[np.ndarray]]:
            return [[_floats(getattr(r, name)) for r in group] for group in grid]

        names = [*dict.fromkeys(name for group in grid for r in group for name in r.diagnostics)]
        logprobs = tensors("logprobs")
        return cls(
            logprobs=logprobs,
            entropies=arrays("entropies"),
            sequence_logprobs=[[float(np.sum(r.logprobs, dtype=np.float64)) for r in group] for group in grid],
            sampling_logprobs=tensors("sampling_logprobs"),
            sampling_entropies=arrays("sampling_entropies"),
            diagnostics={name: [[r.diagnostics[name] for r in group] for group in grid] for name in names},
        )


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some of the responses of a grid, measured with gradient: entry i of each list is of response `rows[i]`.

    Of no responses at all if other ranks have more of them.
    """

    rows: list[tuple[int, int]]  # (b, g)
    logprobs: list[torch.Tensor]  # log p(token), with graph
    entropies: list[torch.Tensor]  # entropy of p, with graph
    sequence_logprobs: list[torch.Tensor]  # sum of logprobs, with graph
    sampling_logprobs: list[torch.Tensor]  # log q(token)
    sampling_entropies: list[np.ndarray]  # entropy of q
    old_logprobs: list[torch.Tensor] | None  # log p(token) in the pass that sampled, if there was one
    zero: torch.Tensor  # 0-d and 0, with graph: where a loss begins, so that there is one without responses as well
    diagnostics: dict[str, list[np.ndarray]] = field(default_factory=dict)  # as in `LogprobResults`, one a response


@dataclass
class BatchedSequences:
    """B prompts with G responses each. See the module's invariants for the layout."""

    sequences: torch.Tensor  # [B, G, total_len] int64
    prompt_lens: list[int]  # [B] tokens
    gen_lens: list[list[int]]  # [B][G] tokens
    attention_masks: torch.Tensor  # [B, G, total_len] int64, 1 on prompt and response
    responses_text: list[list[str]]  # [B][G]
    finish_reasons: list[list[str]] | None = None  # [B][G] eos | stop | length | scored
    stop_offsets: list[list[int | None]] | None = None  # [B][G] characters of the text before the stop string
    prompt_indices: list[int] | None = None  # [B] which of the job's (or call's) prompts each row is
    prompt_keys: list[int] | None = None  # [B] names of the draws
    seed: int | None = None
    sampling_pass: LogprobResults | None = None  # what the pass that sampled measured, detached

    @classmethod
    def from_rollouts(
        cls,
        rollouts: Iterable[Rollout],
        G: int,
        *,
        pad_token_id: int = 0,
        seed: int | None = None,
        prompt_keys: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> "BatchedSequences":
        """Rollouts in any order to a grid: row b is the b-th smallest prompt_index that occurs.

        `prompt_keys` has one entry a row of the grid. `ValueError` if a prompt does not have exactly the samples
        0..G-1, or if its samples disagree about its tokens.
        """
        grid = _grid(rollouts, G)
        lengths = [[len(r.prompt_ids) + len(r.response_ids) for r in group] for group in grid]
        total = max((n for row in lengths for n in row), default=0)
        ids = np.full((len(grid), G, total), pad_token_id, dtype=np.int64)
        for b, group in enumerate(grid):
            for g, rollout in enumerate(group):
                ids[b, g, : lengths[b][g]] = [*rollout.prompt_ids, *rollout.response_ids]
        mask = np.arange(total) < np.asarray(lengths, dtype=np.int64).reshape(len(grid), G, 1)
        return cls(
            sequences=torch.from_numpy(ids).to(device),
            prompt_lens=[len(group[0].prompt_ids) for group in grid],
            gen_lens=[[len(r.response_ids) for r in group] for group in grid],
            attention_masks=torch.from_numpy(mask.astype(np.int64)).to(device),
            responses_text=[[r.text for r in group] for group in grid],
            finish_reasons=[[r.finish_reason for r in group] for group in grid],
            stop_offsets=[[r.stop_offset for r in group] for group in grid],
            prompt_indices=[group[0].prompt_index for group in grid],
            prompt_keys=None if prompt_keys is None else list(prompt_keys),
            seed=seed,
        )


def _floats(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """As float32, or as they are if they are float64 in an array."""
    wide = isinstance(values, np.ndarray) and values.dtype == np.float64
    return np.asarray(values, dtype=np.float64 if wide else np.float32)


def _grid(rollouts: Iterable[Rollout], G: int) -> list[list[Rollout]]:
    by_prompt: dict[int, dict[int, Rollout]] = {}
    for rollout in rollouts:
        samples = by_prompt.setdefault(rollout.prompt_index, {})
        if rollout.sample_index in samples:
            raise ValueError(f"Prompt {rollout.prompt_index} has sample {rollout.sample_index} twice.")
        samples[rollout.sample_index] = rollout
    grid = []
    for index in sorted(by_prompt):
        samples = by_prompt[index]
        if sorted(samples) != list(range(G)):
            raise ValueError(f"Prompt {index} has samples {sorted(samples)}, but a grid with G={G} needs 0 to {G - 1}.")
        group = [samples[g] for g in range(G)]
        if any(list(r.prompt_ids) != list(group[0].prompt_ids) for r in group[1:]):
            raise ValueError(
                f"The samples of prompt {index} have different prompt tokens; a grid needs one prompt a row."
            )
        grid.append(group)
    return grid
