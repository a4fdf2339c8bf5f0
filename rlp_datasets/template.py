"""The R1-style template that all datasets named `*_r1_template` share.

A prompt ends in `<think>`, so that a model continues with its reasoning; a response in the template's form reads
` … </think> <answer> … </answer>`. It is short on purpose: every prompt of every job pays for it.
"""

from __future__ import annotations

_PROMPT = "Think in <think> </think>, then answer in <answer> </answer>.\nUser: {question}\nAssistant: <think>"


def r1_prompt(question: str) -> str:
    """The full prompt for `question`, ending in `<think>`."""
    return _PROMPT.replace("{question}", question)


def r1_response(reasoning: str, answer: str) -> str:
    """The response the template asks for, as it follows `r1_prompt`, `</answer>` last."""
    return f" {reasoning} </think> <answer> {answer} </answer>"
