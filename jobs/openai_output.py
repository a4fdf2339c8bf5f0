"""A job's results as the output lines of an OpenAI batch: one line a prompt, its samples the `choices`.

A prompt that failed is a line with an `error` and no response. `logprobs` are the model's own (log p: temperature 1,
nothing truncated), the token beside each is its piece of the text; a job that did not keep them has null there.
`top_logprobs` are filled where the job kept alternatives. A job knows their ids and not their texts, so one that was
not taken is called `token_id:17`, as vLLM's `return_tokens_as_token_ids` does.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from jobs.jsonl import read_jsonl
from jobs.parquet import read_rows

if TYPE_CHECKING:
    from jobs.results import Contents, ResultFile

_FINISH = {"eos": "stop", "stop": "stop", "scored": "stop", "length": "length"}
_LEAST = -9999.0  # what that format has for a probability too small to tell


def output_lines(contents: Contents, files: Iterable[ResultFile], created: float) -> Iterator[dict[str, Any]]:
    """The lines of these files as plain data, in order of their prompts, one prompt in memory at a time.

    Args:
        contents: the job; `model` is what its spec calls it.
        files: of the job, all of them here.
        created: when it was submitted, in seconds since 1970.

    Raises ResultsError if a file is missing or damaged.
    """
    head = {"object": "chat.completion", "created": int(created), "model": contents.spec["model"]}
    for index, group in groupby(_told(files), key=_index):
        yield _line(f"{contents.job_id}-{index}", head, list(group))


def _told(files: Iterable[ResultFile]) -> Iterator[dict[str, Any]]:
    """Rows and prompt errors together, in order of their prompts, as each of the two are in a file."""
    for file in files:
        errors = read_jsonl(file.errors) if file.errors is not None else ()
        yield from heapq.merge(read_rows(file.path), errors, key=_index)


def _index(told: dict[str, Any]) -> int:
    return int(told["prompt_index"])


def _line(name: str, head: dict[str, Any], told: list[dict[str, Any]]) -> dict[str, Any]:
    """The line of one prompt, of its rows or of its error."""
    rows = [row for row in told if "error" not in row]
    errors = [row["error"] for row in told if "error" in row]
    body = {"id": f"chatcmpl-{name}", **head, "choices": [_choice(row) for row in rows], "usage": _usage(rows)}
    response = {"status_code": 200, "request_id": f"req-{name}", "body": body}
    return {
        "id": f"batch_req-{name}",
        "custom_id": told[0]["custom_id"],
        "response": response if rows else None,
        "error": {"code": "prompt_error", "message": "; ".join(errors)} if errors else None,
    }


def _choice(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "index": row["sample_index"],
        "message": {"role": "assistant", "content": row["response"], "refusal": None},
        "finish_reason": _FINISH[row["finish_reason"]],
        "logprobs": None if row["logprobs"] is None else {"content": _tokens(row), "refusal": None},
    }


def _tokens(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The response's tokens. One that ends inside of a character, or has no text (end of sequence), is empty here."""
    text, ends = row["response"], row["token_ends"] or [0] * len(row["logprobs"])  # early versions kept no ends
    tops = _alternatives(row)
    tokens = []
    for start, end, logprob in zip([0, *ends], ends, row["logprobs"], strict=False):  # one end fewer than there are
        token = _token(text[start:end], logprob)
        top = [token if i is None else _token(f"token_id:{i}", value, known=False) for i, value in next(tops, ())]
        tokens.append({**token, "top_logprobs": top})
    return tokens


def _alternatives(row: dict[str, Any]) -> Iterator[list[tuple[int | None, float]]]:
    """At each place the (id, log p) of the most probable tokens, if the job kept them; None: the one that was taken."""
    if row.get("top_ids") is not None:
        for taken, ids, logprobs in zip(row["response_ids"], row["top_ids"], row["top_logprobs"], strict=True):
            yield [(None if i == taken else i, logprob) for i, logprob in zip(ids, logprobs, strict=True)]


def _token(text: str, logprob: float | None, *, known: bool = True) -> dict[str, Any]:
    """`known`: `text` is the token's own."""
    least = logprob if logprob is not None and logprob > _LEAST else _LEAST
    return {"token": text, "logprob": least, "bytes": list(text.encode()) if known else None}


def _usage(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Tokens: of the prompt once, of all its responses together."""
    prompt = len(rows[0]["prompt_ids"]) if rows else 0
    completion = sum(len(row["response_ids"]) for row in rows)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
