"""Lines of an OpenAI batch as prompts: what is used, what must agree with the job, and what is told."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter

from jobs.prompts import PromptSource
from jobs.spec import PromptRow
from tests.unit.jobs.test_prompts import jsonl, problems_of, spec, take

CHAT: list[dict[str, Any]] = [{"role": "user", "content": "What is 2 + 3? é😀"}]


def line(custom_id: str = "a", url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    if url == "/v1/chat/completions":
        body = {"messages": CHAT, "model": "gpt-x", **body}
        TypeAdapter(CompletionCreateParamsNonStreaming).validate_python(body)  # as its own library would take it
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def rows(folder: Path, *lines: dict[str, Any], **fields: Any) -> tuple[list[PromptRow], list[str]]:
    source = PromptSource(spec(file=jsonl(folder / "batch.jsonl", *lines), **fields))
    return take(folder, source), source.ignored_columns


def refused(folder: Path, *lines: dict[str, Any], **fields: Any) -> list[str]:
    file = jsonl(folder / "batch.jsonl", *lines)
    found = problems_of(folder, PromptSource(spec(file=file, **fields)))
    return [problem.replace(file, "FILE") for problem in found]


class TestPrompts:
    def test_messages_and_custom_id(self, tmp_path: Path) -> None:
        found, ignored = rows(tmp_path, line(), line("b") | {"answer": "5", "level": 2})
        assert found == [
            PromptRow(custom_id="a", messages=CHAT),
            PromptRow(custom_id="b", messages=CHAT, answer="5"),
        ]
        assert ignored == ["body.model", "level"]

    def test_texts_and_token_ids_of_the_older_endpoint(self, tmp_path: Path) -> None:
        url = "/v1/completions"
        found, ignored = rows(
            tmp_path, line(url=url, prompt="2+3=", model="tiny-arithmetic"), line("b", url=url, prompt=[5, 6])
        )
        assert found == [PromptRow(custom_id="a", prompt="2+3="), PromptRow(custom_id="b", prompt_token_ids=[5, 6])]
        assert ignored == []

    def test_from_standard_input_among_ordinary_lines(self, tmp_path: Path) -> None:
        stdin = io.BytesIO("".join(json.dumps(row) + "\n" for row in ({"prompt": "x"}, line())).encode())
        found = take(tmp_path, PromptSource(spec(file="-"), stdin=stdin))
        assert found == [PromptRow(prompt="x"), PromptRow(custom_id="a", messages=CHAT)]

    def test_a_body_beside_a_prompt_is_a_column_like_any_other(self, tmp_path: Path) -> None:
        assert rows(tmp_path, {"prompt": "x", "body": {"n": 3}}) == ([PromptRow(prompt="x")], ["body"])

    def test_bad_lines_with_their_places(self, tmp_path: Path) -> None:
        assert refused(
            tmp_path,
            line(),
            line("b", url="/v1/embeddings", input="x"),
            {"custom_id": "c", "body": {"model": "m"}},
            {"custom_id": "d", "body": {"messages": "hello"}},
            {"custom_id": "e", "url": "/v1/completions", "body": {"prompt": ["one", "two"]}},
            line("a"),
        ) == [
            "FILE:2 url: '/v1/embeddings' is none of completions; a job takes /v1/chat/completions and /v1/completions",
            "FILE:3 give exactly one of prompt, messages, prompt_token_ids; this row has none of them",
            "FILE:4 messages: input should be a valid list, not 'hello'",
            "FILE:5 prompt: Input should be a valid string",
            "FILE:6 custom_id: 'a' stands already at FILE:1; give each its own",
        ]


class TestSettings:
    def test_what_the_job_does_anyway_is_agreed(self, tmp_path: Path) -> None:
        body = {
            "temperature": 0.5,
            "top_p": 0.9,
            "n": 4,
            "max_tokens": 99,
            "max_completion_tokens": 99,
            "stop": ["\n"],
            "seed": 3,
            "presence_penalty": 0,
            "frequency_penalty": 0.0,
            "tools": [],
            "response_format": {"type": "text"},
        }
        same = {"temperature": 0.5, "top_p": 0.9, "G": 4, "max_new_tokens": 99, "stop_strings": ("\n",), "seed": 3}
        found, ignored = rows(tmp_path, line(**body), line("b", stop="\n", temperature=None), **same)
        assert (len(found), ignored) == (2, ["body.model"])

    @pytest.mark.parametrize(
        ("setting", "given", "job"),
        [
            ({"temperature": 0.2}, "temperature=0.2", "temperature=1.0"),
            ({"n": 2}, "G=2", "G=8"),
            ({"max_completion_tokens": 7}, "max_new_tokens=7", "max_new_tokens=200"),
            ({"top_p": 0.5}, "top_p=0.5", "top_p=1.0"),
            ({"stop": "x"}, 'stop_strings=["x"]', 'stop_strings=["</answer>"]'),
            ({"seed": 9}, "seed=9", "seed=3"),
        ],
    )
    def test_of_all_lines_what_to_give_is_told_once(
        self, tmp_path: Path, setting: dict[str, Any], given: str, job: str
    ) -> None:
        [problem] = refused(tmp_path, *(line(str(i), **setting) for i in range(300)))
        [name] = setting
        assert problem.startswith(f"FILE:1 body.{name}: is ")
        assert f"in every line, but the job has {job}; submit with {given}, or take it out" in problem

    def test_lines_that_differ_cannot_be_one_job(self, tmp_path: Path) -> None:
        lines = [line("a"), line("b", temperature=0.2), line("c", temperature=0.4), line("d", temperature=1)]
        assert refused(tmp_path, *lines) == [
            "FILE:2 body.temperature: is 0.2, and 2 of 4 lines differ from the job's temperature=1.0, not all alike; "
            "a job has one temperature: submit the lines of each value as a job of their own, "
            "or take it out of the lines"
        ]

    @pytest.mark.parametrize(
        "setting",
        [
            {"presence_penalty": 0.5},
            {"logit_bias": {"5": -100}},
            {"response_format": {"type": "json_object"}},
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
        ],
    )
    def test_what_a_job_cannot_do_is_not_passed_over(self, tmp_path: Path, setting: dict[str, Any]) -> None:
        [name] = setting
        [problem] = refused(tmp_path, line(), line("b", **setting))
        assert problem.startswith(f"FILE:2 body.{name}: is ")
        assert problem.endswith("(set in 1 of 2 lines), and a job cannot do that; take it out of the lines")

    def test_what_changes_no_token_is_left_alone_and_told(self, tmp_path: Path) -> None:
        found, ignored = rows(tmp_path, line(model="tiny-arithmetic", user="me", logprobs=True, top_logprobs=5))
        assert len(found) == 1
        assert ignored == ["body.user", "body.logprobs", "body.top_logprobs"]
