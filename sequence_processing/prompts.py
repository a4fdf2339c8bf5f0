"""A prompt in any of its three forms - text, chat messages, token ids - to token ids.

Text goes through the tokenizer with its defaults, and never gets a second BOS; messages are templated straight to ids;
ids are taken as they are. Every complaint is a `PromptError` of one sentence.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from sequence_processing.config import whole

Prompt: TypeAlias = str | Sequence[int] | Sequence[Mapping[str, Any]]


class PromptError(ValueError):
    """A prompt (or a given response) that the model cannot take: the prompt's fault, not the job's."""


def encode_prompt(
    tokenizer: Any, prompt: Prompt, vocab_size: int, chat_template_kwargs: Mapping[str, Any] | None = None
) -> list[int]:
    """Token ids of `prompt`, at least one, each below `vocab_size`; raises `PromptError`."""
    if isinstance(prompt, str):
        ids = _encode_text(tokenizer, prompt)
    else:
        items = _items(prompt, "prompt")
        if items and all(isinstance(item, Mapping) for item in items):
            ids = _encode_messages(tokenizer, items, dict(chat_template_kwargs or {}))
        else:
            ids = items
    if not ids:
        raise PromptError("The prompt has no tokens and the model has no BOS token to begin with; give it some text.")
    return checked_ids(ids, vocab_size, "prompt")


def encode_response(tokenizer: Any, response: str | Sequence[int], vocab_size: int) -> list[int]:
    """Token ids of a given response, without special tokens; may be empty; raises `PromptError`."""
    if isinstance(response, str):
        ids = tokenizer(response, add_special_tokens=False, verbose=False)["input_ids"]
    else:
        ids = _items(response, "response")
    return checked_ids(ids, vocab_size, "response")


def checked_ids(ids: Sequence[Any], vocab_size: int, what: str) -> list[int]:
    """`ids` as a list of int; `PromptError` if one is no token of the model."""
    checked = []
    for place, item in enumerate(ids):
        token = whole(item)
        if token is None:
            raise PromptError(f"The {what} must be text, token ids or messages; its item {place} is {item!r:.80}.")
        if not 0 <= token < vocab_size:
            raise PromptError(
                f"Token id {token} at position {place} of the {what} is outside the model's vocabulary of {vocab_size}."
            )
        checked.append(token)
    return checked


def _items(value: Any, what: str) -> list[Any]:
    """What `value` lists; `PromptError` for what is no list, and for bytes, which would list as numbers."""
    items = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(items, bytes | bytearray) or not isinstance(items, Iterable):
        raise PromptError(f"The {what} must be text, token ids or messages, not {value!r:.80}.")
    return list(items)


def _encode_text(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    if not ids:
        return [bos]
    # The text begins with the BOS token (a template wrote it) and the tokenizer put one more before it.
    doubled = text.startswith(tokenizer.bos_token) and ids[:2] == [bos, bos]
    return ids[1:] if doubled else ids


def _encode_messages(tokenizer: Any, messages: list[Mapping[str, Any]], kwargs: dict[str, Any]) -> list[int]:
    if getattr(tokenizer, "chat_template", None) is None:
        raise PromptError(
            "The prompt is chat messages, but the model's tokenizer has no chat template; give text instead."
        )
    prefill = messages[-1].get("role") == "assistant"
    options = {"add_generation_prompt": not prefill, "continue_final_message": prefill, **kwargs}
    try:
        ids: list[int] = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
    except Exception as error:  # a template is a program of the model's author: it may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PromptError(f"The model's chat template refused the messages: {reason}") from error
    return ids
