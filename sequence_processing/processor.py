"""`SequenceProcessor`: prompts in, sampled sequences and their measurements out.

Holds the caller's model, tokenizer and configuration and nothing derived from them: whatever changes between two calls
is seen by the second.
"""

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from sequence_processing import gradients, memory, scoring
from sequence_processing.arguments import as_list, checked_pairs, prompt_keys_of, seed_of
from sequence_processing.config import (
    BatchSize,
    GenerationConfig,
    check_batch_size,
    check_count,
    check_limits,
    check_whole,
)
from sequence_processing.containers import BatchedSequences, LogprobResults, MicroBatch, Rollout
from sequence_processing.distribution import Policy
from sequence_processing.grid import array, check_fits, micro_batch_of, pairs_of, results_of
from sequence_processing.model import CausalModel
from sequence_processing.override import overridden
from sequence_processing.pairs import Pair, Size, in_order
from sequence_processing.policy import policy_of
from sequence_processing.prompts import Prompt, PromptError, encode_prompt, encode_response
from sequence_processing.rollout import Engine, OnFailed, OnStep
from sequence_processing.stops import StopStrings, decode

log = logging.getLogger(__name__)

T = TypeVar("T")


class SequenceProcessor:
    """Generation and teacher forcing for one causal LM.

    A tokenizer without a pad token gets its EOS token as one. `TypeError` with one sentence for models that are not
    supported (encoder-decoder, FSDP, ZeRO).
    """

    def __init__(self, model: nn.Module, tokenizer: Any, config: GenerationConfig | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = config or GenerationConfig()
        if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
            tokenizer.pad_token = tokenizer.eos_token
        self._view, self._viewed = CausalModel(model), model
        if ignored := self._view.ignored_settings():
            log.warning("The model's generation_config asks for %s; not applied.", ", ".join(ignored))

    # --- SEED's interface -------------------------------------------------------------------------------------------

    def generate_with_logprobs(
        self,
        prompts: Sequence[Prompt] | None = None,
        G: int = 8,
        dataset_name: str | None = None,
        split: str = "train",
        num_prompts: int | None = None,
        seed: int | None = None,
        with_grad: bool = False,
        gen_batch_size: BatchSize | None = None,
        tf_batch_size: BatchSize | None = None,
        *,
        prompt_keys: Sequence[int] | None = None,
        max_new_tokens: int | Sequence[int] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> tuple[BatchedSequences, LogprobResults]:
        """G responses to each prompt, given or sampled from a dataset, with the four quantities of every token.

        `seed` names the sampled prompts and all draws; None takes a fresh one, recorded in `BatchedSequences.seed`.
        With `with_grad` a second pass computes `logprobs` and `entropies` with their graph, and `old_logprobs` holds
        those of the pass that sampled. `ValueError` if both or neither of `prompts` and `dataset_name` are given.
        """
        if (prompts is None) == (dataset_name is None):
            raise ValueError("Give either prompts or dataset_name: one of the two, and not both.")
        seed = seed_of(seed)
        if prompts is None:
            assert dataset_name is not None
            prompts = self.sample_prompts(dataset_name, split, num_prompts, seed)
        sequences = self.generate_batched(
            prompts,
            G,
            gen_batch_size,
            seed=seed,
            prompt_keys=prompt_keys,
            max_new_tokens=max_new_tokens,
            chat_template_kwargs=chat_template_kwargs,
        )
        if with_grad:
            return sequences, self.teacher_force_logprobs(sequences, with_grad=True, tf_batch_size=tf_batch_size)
        assert sequences.sampling_pass is not None
        return sequences, sequences.sampling_pass

    def generate_batched(
        self,
        prompts: Sequence[Prompt],
        G: int = 8,
        gen_batch_size: BatchSize | None = None,
        *,
        seed: int | None = None,
        prompt_keys: Sequence[int] | None = None,
        max_new_tokens: int | Sequence[int] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> BatchedSequences:
        """G responses to each prompt. Their measurements stay at hand as `sampling_pass`."""
        prompts, G, seed = as_list(prompts), check_count("G", G), seed_of(seed)
        keys = prompt_keys_of(len(prompts), prompt_keys)
        found = list(self._rollouts(prompts, G, gen_batch_size, seed, keys, max_new_tokens, chat_template_kwargs, None))
        device = CausalModel(self.model).device
        sequences = BatchedSequences.from_rollouts(
            found, G, pad_token_id=self.tokenizer.pad_token_id or 0, seed=seed, prompt_keys=keys, device=device
        )
        sequences.sampling_pass = LogprobResults.from_rollouts(found, G, device=device)
        sequences.sampling_pass.old_logprobs = sequences.sampling_pass.logprobs
        return sequences

    def teacher_force_logprobs(
        self,
        sequences: BatchedSequences,
        with_grad: bool = False,
        tf_batch_size: BatchSize | None = None,
        *,
        params_override: Mapping[str, torch.Tensor] | None = None,
    ) -> LogprobResults:
        """The four quantities of the responses in `sequences`, its own or a caller's, under the model as it is now.

        Rows may be padded on either side as their attention mask says. `ValueError` naming the row if a mask has
        holes or disagrees with the lengths, or if a token is none of the model's. Without gradient the model runs in
        eval mode; with gradient in the caller's mode. `params_override`: tensors in the place of the parameters of
        these names, for this call (`override.py`); with gradient the graph leads to them.
        """
        model, pairs, batch_size = self._given(sequences, with_grad, tf_batch_size, params_override)
        if with_grad:
            parts = gradients.micro_batches(model, pairs, self._policy(model), batch_size, self.config.head_dtype)
            measured = in_order(scored for scored, _ in parts)
        else:
            options = (self.config.head_dtype, None, self.config.deterministic)
            measured = in_order(scoring.score(model, pairs, self._policy(model), batch_size, *options))
        results = results_of(measured, [len(group) for group in sequences.gen_lens], with_grad)
        results.old_logprobs = None if sequences.sampling_pass is None else sequences.sampling_pass.logprobs
        return results

    def micro_batches(
        self, sequences: BatchedSequences, tf_batch_size: BatchSize | None = None
    ) -> Iterator[MicroBatch]:
        """What `teacher_force_logprobs(with_grad=True)` gives, `tf_batch_size` rows at a time, longest first.

        Only one graph exists at a time if backward is called on each before the next one is asked for; the gradients
        add up:

            for part in processor.micro_batches(sequences):
                loss = part.zero
                for (b, g), logprobs in zip(part.rows, part.logprobs):
                    loss = loss - advantages[b][g] * logprobs.sum()
                loss.backward()

        Under DDP all ranks get the same number of micro-batches, the last ones of a rank with fewer rows being empty.
        Each backward averages over the ranks, so every rank must call it on every micro-batch; what has been added up
        at the end is the average over the ranks. `ValueError` as of `teacher_force_logprobs`, at once.
        """
        model, pairs, batch_size = self._given(sequences, True, tf_batch_size)
        parts = gradients.micro_batches(model, pairs, self._policy(model), batch_size, self.config.head_dtype)
        return map(partial(micro_batch_of, sequences), parts)  # unlike a generator, map keeps no micro-batch alive

    def sample_prompts(
        self, dataset_name: str, split: str = "train", num_prompts: int | None = None, seed: int | None = None
    ) -> list[str]:
        """`num_prompts` prompts of a dataset, by `random.Random(seed)`, without replacement; None: all, in order."""
        from rlp_datasets import DATASET_REGISTRY

        examples = DATASET_REGISTRY[dataset_name](split=split)
        if num_prompts is None:
            return [example.text for example in examples]
        num_prompts = check_count("num_prompts", num_prompts, least=0)
        seed = None if seed is None else check_whole("seed", seed)
        if num_prompts > len(examples):
            raise ValueError(
                f"num_prompts is {num_prompts}, but split {split!r} of {dataset_name} has only {len(examples)} prompts."
            )
        chosen = random.Random(seed).sample(range(len(examples)), num_prompts)
        return [examples[i].text for i in chosen]

    # --- row by row -------------------------------------------------------------------------------------------------

    def encode(self, prompt: Prompt, chat_template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
        """Token ids of a prompt; `PromptError` if the model cannot take it, too long for its context included."""
        return self._encode(self._tokens_of(), prompt, chat_template_kwargs)

    def encode_pair(self, prompt: str | Sequence[int], response: str | Sequence[int]) -> tuple[list[int], list[int]]:
        """Token ids of a prompt and of a given response, as `score` takes them; `PromptError` if they do not fit."""
        pair = self._encode_pair(self._tokens_of(), prompt, response)
        return pair.prompt_ids, pair.response_ids

    def rollouts(
        self,
        prompts: Sequence[Prompt],
        G: int = 8,
        *,
        seed: int | None = None,
        prompt_keys: Sequence[int] | None = None,
        max_new_tokens: int | Sequence[int] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        on_step: OnStep | None = None,
        on_failed: OnFailed | None = None,
    ) -> Iterator[Rollout]:
        """Yield each of the len(prompts) x G sequences when it is finished, in any order.

        `on_step(new tokens since the last call, live rows)` is called after each decode step; what it raises ends the
        iteration at once. A row that does not fit in memory even by itself is told to `on_failed(prompt index, sample
        index, error)` and left out, or raises that `MemoryError`. A row that would pass the model's context is cut
        there (finish_reason "length"). With `seed=None` the fresh seed is told to the log.
        """
        prompts, G = as_list(prompts), check_count("G", G)
        keys = prompt_keys_of(len(prompts), prompt_keys)
        seed = seed_of(seed)
        return self._rollouts(prompts, G, None, seed, keys, max_new_tokens, chat_template_kwargs, on_step, on_failed)

    def score(
        self,
        pairs: Sequence[tuple[str | Sequence[int], str | Sequence[int]]],
        *,
        on_step: OnStep | None = None,
        on_failed: OnFailed | None = None,
    ) -> Iterator[Rollout]:
        """Measure given (prompt, response) pairs, each text or token ids; yields `Rollout`s in any order.

        Prompt and response are tokenised separately, the response without special tokens. `on_step(tokens, rows)` is
        called after each batch; `on_failed` as for `rollouts`. `PromptError` naming the pair if it is longer than the
        model's context.
        """
        self.config.validate()
        model = CausalModel(self.model)
        encoded = [
            _naming(f"Pair {i}", self._encode_pair, model, prompt, response)
            for i, (prompt, response) in enumerate(checked_pairs(pairs))
        ]
        no_stops = StopStrings(self.tokenizer, ())
        batch_size = self._size_of_scoring(model, encoded, None)
        failed = None if on_failed is None else lambda i, error: on_failed(i, 0, error)
        options = (self.config.head_dtype, failed, self.config.deterministic)
        for batch in scoring.score(model, encoded, self._policy(model), batch_size, *options):
            if on_step is not None:
                on_step(sum(len(encoded[i].response_ids) for i, _ in batch), len(batch))
            for i, measured in batch:
                ids = encoded[i].response_ids
                text, watch = decode(self.tokenizer, ids), no_stops.watch()
                for token in ids:
                    watch.push(token)
                yield Rollout(
                    prompt_index=i,
                    sample_index=0,
                    prompt_ids=encoded[i].prompt_ids,
                    response_ids=ids,
                    text=text,
                    logprobs=array(measured.logprobs),
                    entropies=array(measured.entropies),
                    sampling_logprobs=array(measured.sampling_logprobs),
                    sampling_entropies=array(measured.sampling_entropies),
                    finish_reason="scored",
                    token_ends=watch.token_ends(len(ids), text),
                    diagnostics={name: array(values) for name, values in measured.diagnostics.items()},
                )

    # --- inside -----------------------------------------------------------------------------------------------------

    def _rollouts(
        self,
        prompts: Sequence[Prompt],
        G: int,
        gen_batch_size: BatchSize | None,
        seed: int,
        prompt_keys: Sequence[int],
        max_new_tokens: int | Sequence[int] | None,
        chat_template_kwargs: Mapping[str, Any] | None,
        on_step: OnStep | None,
        on_failed: OnFailed | None = None,
    ) -> Iterator[Rollout]:
        """Checks at once, generates as it is iterated."""
        self.config.validate()
        size = self._size("gen_batch_size", gen_batch_size)
        limits = check_limits(self.config.max_new_tokens if max_new_tokens is None else max_new_tokens, len(prompts), G)
        model = CausalModel(self.model)
        ids = [
            _naming(f"Prompt {i}", self._encode, model, prompt, chat_template_kwargs)
            for i, prompt in enumerate(prompts)
        ]
        engine = Engine(
            model=model,
            policy=self._policy(model),
            eos_ids=frozenset() if self.config.ignore_eos else model.eos_ids(self.tokenizer),
            stops=StopStrings(self.tokenizer, self.config.stop_strings),
            decode=lambda response: decode(self.tokenizer, response),
            head_dtype=self.config.head_dtype,
        )
        if size == "auto":
            size = memory.rows_at_once(model, [len(i) for i in ids], limits)
        rows = engine.rows(ids, G, limits, seed, prompt_keys)
        return engine.run(rows, size, deterministic=self.config.deterministic, on_step=on_step, on_failed=on_failed)

    def _given(
        self,
        sequences: BatchedSequences,
        with_grad: bool,
        tf_batch_size: BatchSize | None,
        override: Mapping[str, torch.Tensor] | None = None,
    ) -> tuple[CausalModel, list[Pair], Size]:
        """A caller's sequences, checked: the model as it is now, all rows, and how many of them at once."""
        self.config.validate()
        model = CausalModel(self.model)
        if override is not None:
            if with_grad and model.distributed is not None:
                raise ValueError(
                    "With gradient, params_override goes past DDP's reduction: give the model inside of it."
                )
            model = CausalModel(overridden(self.model, override))
        pairs = [pair for group in pairs_of(sequences, model.vocab_size) for pair in group]
        check_fits(model, pairs)
        return model, pairs, self._size_of_scoring(model, pairs, tf_batch_size, with_grad)

    def _policy(self, model: CausalModel) -> Policy:
        return policy_of(self.config, model, self.tokenizer)

    def _size(self, name: str, override: BatchSize | None) -> BatchSize:
        return check_batch_size(name, getattr(self.config, name) if override is None else override)

    def _size_of_scoring(
        self, model: CausalModel, pairs: Sequence[Pair], override: BatchSize | None, with_grad: bool = False
    ) -> Size:
        size = self._size("tf_batch_size", override)
        if with_grad and self.config.deterministic:
            return 1
        if size != "auto":
            return size
        return memory.tokens_at_once(model, max((p.length for p in pairs), default=1), with_grad)

    def _tokens_of(self) -> CausalModel:
        """The model, asked for its vocabulary and context only: a look through all of it takes longer than encoding.

        Both are read anew from the model itself; anything else may have changed since the view was made.
        """
        if self._viewed is not self.model:
            self._view, self._viewed = CausalModel(self.model), self.model
        return self._view

    def _encode(
        self, model: CausalModel, prompt: Prompt, chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> list[int]:
        ids = encode_prompt(self.tokenizer, prompt, model.vocab_size, chat_template_kwargs)
        if model.context is not None and len(ids) >= model.context:
            raise PromptError(
                f"The prompt has {len(ids)} tokens, which leaves no room for a response in the model's context of "
                f"{model.context}; shorten it."
            )
        return ids

    def _encode_pair(self, model: CausalModel, prompt: str | Sequence[int], response: str | Sequence[int]) -> Pair:
        pair = Pair(
            encode_prompt(self.tokenizer, prompt, model.vocab_size),
            encode_response(self.tokenizer, response, model.vocab_size),
        )
        if model.context is not None and pair.length > model.context:
            raise PromptError(
                f"The prompt has {len(pair.prompt_ids)} and the response {len(pair.response_ids)} tokens, together "
                f"more than the model's context of {model.context}."
            )
        return pair


def _naming(name: str, encode: Callable[..., T], *args: Any) -> T:
    """`encode(*args)`, a `PromptError` of it beginning with `name`."""
    try:
        return encode(*args)
    except PromptError as error:
        raise PromptError(f"{name}: {error}") from error
