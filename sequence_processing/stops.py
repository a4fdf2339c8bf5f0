"""Where a response ends: stop strings, matched on its text so that tokenisation cannot hide them.

Text is decoded token by token and a character is withheld until all its bytes are there. Special tokens add no text; a
stop string that lies within one special token is found by its id. Only the response is looked at, never the prompt.
"""

import codecs
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from tokenizers.decoders import ByteLevel
from transformers import LogitsProcessor


class TextStream(Protocol):
    """Text of a growing token sequence: `push` returns the characters that this token completed."""

    def push(self, token: int) -> str: ...


class ByteStream:
    """Incremental UTF-8 over a tokenizer whose tokens are known byte strings."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._utf8.decode(self._token_bytes(token))


class WindowStream:
    """Any other tokenizer: decode the last few tokens with and without the new one, and return the difference.

    The window keeps the tokens of the last piece in front, as many tokenizers strip or join at the left edge.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._shown: list[int] = []  # decoded and returned before
        self._held: list[int] = []  # not yet a whole character

    def push(self, token: int) -> str:
        self._held.append(token)
        before = decode(self._tokenizer, self._shown)
        now = decode(self._tokenizer, self._shown + self._held)
        if now.endswith("\ufffd") or len(now) <= len(before):
            return ""
        self._shown, self._held = self._held, []
        return now[len(before) :]


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of `ids`: special tokens left out, no clean-up of spaces."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


class StopStrings:
    """The stop strings of one call, ready to watch any number of rows."""

    def __init__(self, tokenizer: Any, stop_strings: Sequence[str]) -> None:
        self.strings = tuple(stop_strings)
        self.tail = max((len(s) for s in self.strings), default=1) - 1
        special = _special_ids(tokenizer)
        self.special_stops = {i for i in special if any(s in tokenizer.decode([i]) for s in self.strings)}
        self._tokenizer = tokenizer
        self._token_bytes = _byte_table(tokenizer, special)

    def watch(self) -> "StopWatch":
        """A watch for one new response."""
        stream = WindowStream(self._tokenizer) if self._token_bytes is None else ByteStream(self._token_bytes)
        return StopWatch(self, stream)


class StopWatch:
    """Follows one response; `offset` is set once its text contains a stop string, `ends` has one entry a token."""

    def __init__(self, stops: StopStrings, stream: TextStream) -> None:
        self._stops = stops
        self._stream = stream
        self._tail = ""  # the end of the text, as much as a stop string can reach back into
        self._length = 0  # characters of text so far
        self.ends: list[int] = []  # characters of text after each token
        self.offset: int | None = None

    def push(self, token: int) -> bool:
        """Take the next token; True once a stop string stands in the text."""
        if self.offset is not None:
            return True
        if token in self._stops.special_stops:
            self.offset = self._length
        elif piece := self._stream.push(token):
            window = self._tail + piece
            self._length += len(piece)
            found = [at for s in self._stops.strings if (at := window.find(s)) >= 0]
            if found:
                self.offset = self._length - len(window) + min(found)
            self._tail = window[max(0, len(window) - self._stops.tail) :]
        self.ends.append(self._length)
        return self.offset is not None

    def token_ends(self, count: int, text: str) -> list[int]:
        """Characters of `text` up to the end of each of the response's `count` tokens; the last one closes the text."""
        ends = [min(end, len(text)) for end in self.ends] + [len(text)] * (count - len(self.ends))
        return [*ends[:-1], len(text)] if ends else []


class StopAfterAnswer(LogitsProcessor):
    """For `model.generate(logits_processor=[...])`: after a stop string in a row's response, only EOS is left to it.

    The prompt is what the first call of a `generate` sees, so that a tag in the prompt's instructions stops nothing.
    Rows must keep their place between steps: with beam search give `prompt_len`, in tokens, padding included.
    `eos_token_id` is the EOS that is left: one that the `generate` call ends at, the tokenizer's by default.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop_strings: Sequence[str] = ("</answer>",),
        prompt_len: int | None = None,
        eos_token_id: int | None = None,
    ) -> None:
        eos = tokenizer.eos_token_id if eos_token_id is None else eos_token_id
        if eos is None:
            raise ValueError("StopAfterAnswer needs an EOS token; set tokenizer.eos_token, or give eos_token_id.")
        self._stops = StopStrings(tokenizer, stop_strings)
        self._eos = int(eos)
        self._prompt_len = prompt_len
        self._seen: torch.Tensor | None = None
        self._watches: list[StopWatch] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`input_ids` [rows, length] so far, `scores` [rows, V] of the next token; returns scores [rows, V]."""
        seen = self._seen
        if seen is not None and seen.shape == input_ids[:, :-1].shape and torch.equal(seen, input_ids[:, :-1]):
            new_tokens = input_ids[:, -1:]
        else:
            start = input_ids.shape[1] if self._prompt_len is None else self._prompt_len
            self._watches = [self._stops.watch() for _ in range(input_ids.shape[0])]
            new_tokens = input_ids[:, start:]
        self._seen = input_ids
        for watch, tokens in zip(self._watches, new_tokens.tolist(), strict=True):
            for token in tokens:
                watch.push(token)
        stopped = [row for row, watch in enumerate(self._watches) if watch.offset is not None]
        if not stopped:
            return scores
        scores = scores.clone()
        scores[stopped] = -torch.inf
        scores[stopped, self._eos] = 0.0
        return scores


def _special_ids(tokenizer: Any) -> set[int]:
    """Every id that decoding leaves out: a role's (EOS, pad, ...), or added as special without a role."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {int(i) for i in tokenizer.all_special_ids} | {int(i) for i, token in added.items() if token.special}


def _byte_table(tokenizer: Any, special: set[int]) -> Callable[[int], bytes] | None:
    """Bytes of each token if the tokenizer's decoder is byte-level BPE; None if it is anything else."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.decoder, ByteLevel):
        return None
    byte_of = _byte_of_character()
    known: dict[int, bytes] = dict.fromkeys(special, b"")

    def token_bytes(token: int) -> bytes:
        if token not in known:
            piece = tokenizer.convert_ids_to_tokens(token)
            if piece is None:  # a row of the embedding that no token uses
                known[token] = b""
            elif all(c in byte_of for c in piece):
                known[token] = bytes(byte_of[c] for c in piece)
            else:  # an added token, written as it is
                known[token] = piece.encode()
        return known[token]

    return token_bytes


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-in of each byte, inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(hidden)}
