"""What a job is, as data: no code, no import path. Field names are the flags of `seqproc submit` with dashes.

A JobSpec says where its prompts come from in exactly one way: `prompts` (inline), `file`, or `dataset`.
`resolve()` settles what was left open (the seeds), so that the same resolved spec always means the same sequences.
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
import secrets
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from jobs.diagnostics import Diagnostic, split_names
from jobs.errors import SpecError
from jobs.rewards.registry import unknown
from jobs.webhook_target import Target
from rlp_datasets import is_external

Measurement = Literal["logprobs", "entropies", "sampling_logprobs", "sampling_entropies"]
MEASUREMENTS: tuple[Measurement, ...] = ("logprobs", "entropies", "sampling_logprobs", "sampling_entropies")

BatchSize = PositiveInt | Literal["auto"]

QUEUE = r"^[A-Za-z0-9._-]{1,64}$"
"""What the name of a queue looks like."""

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_MAX_LABEL = 256
_NOT_OF_THE_SEQUENCES = {"prompts", "file", "columns", "source", "idempotency_key", "ttl", "webhook"}
_STORED, _REMOTE = "stored", "remote"  # validation contexts


class PromptRow(BaseModel):
    """One prompt as the user brings it: a line of JSONL, a row of Parquet, an element of `prompts`.

    Exactly one of `prompt` (text, tokenised as it stands), `messages` (chat, templated on the worker) and
    `prompt_token_ids`. Columns that are not named here are left alone.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    custom_id: str | None = Field(None, min_length=1, max_length=512)
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = Field(None, min_length=1)
    prompt_token_ids: list[int] | None = Field(None, min_length=1)
    answer: str | None = None
    response: str | None = None  # kind "score": the text, or …
    response_token_ids: list[int] | None = None  # … the tokens, to be measured

    @model_validator(mode="before")
    @classmethod
    def _as_fields(cls, data: Any) -> Any:
        """A plain text is a prompt, a list of messages a chat, a list of numbers token ids."""
        if isinstance(data, str):
            return {"prompt": data}
        if isinstance(data, list):
            return {"messages": data} if data and isinstance(data[0], dict) else {"prompt_token_ids": data}
        return data

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        given = [n for n in ("prompt", "messages", "prompt_token_ids") if getattr(self, n) is not None]
        if len(given) != 1:
            found = f"has {' and '.join(given)}" if given else "has none of them"
            raise ValueError(f"give exactly one of prompt, messages, prompt_token_ids; this row {found}")
        if self.response is not None and self.response_token_ids is not None:
            raise ValueError("give response or response_token_ids, not both")
        for name in ("prompt_token_ids", "response_token_ids"):
            if any(not 0 <= token < 2**31 for token in getattr(self, name) or ()):
                raise ValueError(f"{name} holds a number that is no token id")
        for name in ("custom_id", "prompt", "answer", "response"):
            _refuse_half_characters(name, getattr(self, name))
        return self

    @field_validator("messages")
    @classmethod
    def _roles(cls, messages: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        for i, message in enumerate(messages or ()):
            if not isinstance(message.get("role"), str) or "content" not in message:
                raise ValueError(f"message {i} needs a role (text) and content")
        try:
            text = json.dumps(messages, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"messages must be plain JSON data: {error}") from None
        _refuse_half_characters("messages", text)
        return messages


class JobSpec(BaseModel):
    """A job to submit. Generation settings mean what they mean in the core's GenerationConfig."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["generate", "score"] = Field("generate", description="sample responses, or measure given ones")
    model: str = Field(min_length=1, max_length=512, description="hub id, local folder, or tiny-arithmetic")
    revision: str | None = Field(None, description="hub revision: branch, tag or commit")
    adapter: str | None = Field(None, description="peft LoRA adapter: hub id or local folder")
    merge_adapter: bool = Field(False, description="add the adapter into the weights: faster, rounded once more")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: as the checkpoint")
    tokenizer: str | None = Field(
        None,
        pattern=r"^(any|sha256:[0-9a-f]{64})$",
        description="what the model's tokenizer must be, as a manifest's identity tells it; any: whatever it is",
    )

    prompts: list[PromptRow] | None = Field(None, min_length=1, description="inline prompts")
    file: str | None = Field(None, description="JSONL, CSV or Parquet file of prompts; - is standard input (JSONL)")
    dataset: str | None = Field(
        None, description="a registered dataset, hf:NAME[:CONFIG] of the hub, or disk:FOLDER of save_to_disk"
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="which column is which field of a prompt, as prompt=question,answer=gold"
    )
    split: str = Field("train", description="split of the dataset")
    num_prompts: int | None = Field(None, ge=1, description="how many prompts to draw from the dataset; default: all")
    replacement: bool = Field(False, description="draw num_prompts with replacement, of any source; G is then 1")
    prompt_seed: int | None = Field(None, description="seed of that draw; default: the seed")
    source: str | None = Field(
        None, min_length=1, max_length=_MAX_LABEL, description="an ended job whose sequences are to be scored"
    )

    G: int = Field(8, ge=1, le=65_536, description="responses per prompt")
    temperature: float = Field(1.0, ge=0, allow_inf_nan=False, description="sampling temperature; 0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling: mass to keep")
    max_new_tokens: int = Field(200, ge=1, description="longest response, in tokens")
    do_sample: bool = Field(True, description="sample, or take the most probable token")
    stop_strings: tuple[str, ...] = Field(("</answer>",), description="texts that end a response")
    ignore_eos: bool = Field(False, description="go on past end-of-sequence tokens; stop strings still stop")
    deterministic: bool = Field(False, description="batches and neighbours change no bit of a row; slower")
    gen_batch_size: BatchSize = Field("auto", description="sequences decoded at once; auto: as many as memory holds")
    tf_batch_size: BatchSize = Field("auto", description="sequences scored at once; auto: as many as memory holds")
    head_dtype: Literal["auto", "float32"] = Field(
        "auto", description="type of the product that makes the logits; float32 is never rounded to less, and slower"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="extra arguments of the chat template")
    measurements: tuple[Measurement, ...] = Field(MEASUREMENTS, description="which per-token quantities to keep")
    diagnostics: tuple[Diagnostic, ...] = Field((), description="what else to keep of every token; with commas between")
    top_k_alternatives: int = Field(0, ge=0, le=100, description="keep so many most probable tokens at every place")
    rewards: tuple[str, ...] = Field((), max_length=32, description="rewards to judge each response by: math_answer, …")
    resample_equal: int = Field(
        0, ge=0, le=100, description="times to sample a prompt anew while its responses' first reward is the same"
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="seed of every draw; default: a fresh one, recorded")

    name: str | None = Field(None, max_length=_MAX_LABEL, description="a name for people")
    labels: dict[str, str] = Field(default_factory=dict, description="key=value pairs to find the job by")
    priority: int = Field(0, ge=-1000, le=1000, description="higher goes first")
    queue: str = Field("default", pattern=QUEUE, description="which workers may take it")
    shard_size: int = Field(16, ge=1, le=100_000, description="prompts per shard, the unit of work and of commit")
    ttl: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="days to keep the job after its end; gc deletes it then"
    )
    webhook: str | None = Field(
        None, max_length=2000, description="https address to tell of the job's end, at a host that the operator allows"
    )
    idempotency_key: str | None = Field(None, min_length=1, max_length=255, description="submit once under this key")

    @field_validator("model", "adapter")
    @classmethod
    def _model_id(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Local folders must exist and become absolute; anything else must look like a hub id."""
        if value is None or info.context == _STORED:
            return value
        path = Path(value).expanduser()
        is_here = info.context != _REMOTE or path.is_absolute()  # a name from elsewhere is no folder of this directory
        if is_here and path.is_dir():
            needed = "adapter_config.json" if info.field_name == "adapter" else "config.json"
            if not (path / needed).is_file():
                raise ValueError(f"the folder {value} has no {needed}; name the folder that save_pretrained wrote")
            return str(path.resolve())
        if value.startswith(("/", "./", "../", "~")) or (is_here and path.exists()):
            raise ValueError(f"no folder of a model at {value}; give an existing folder or a hub id like org/name")
        if not _HUB_ID.fullmatch(value) or ".." in value or "--" in value or len(value) > 200:
            raise ValueError(f"{value!r} is neither an existing folder nor a hub id like org/name")
        return value

    @field_validator("gen_batch_size", "tf_batch_size", mode="wrap")
    @classmethod
    def _batch_size(cls, value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError:
            raise ValueError(f"must be a whole number, 1 or more, or auto, not {reprlib.repr(value)}") from None

    @field_validator("stop_strings")
    @classmethod
    def _stops(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not stop for stop in value):
            raise ValueError("an empty stop string would stop every response at once; leave it out")
        return value

    @field_validator("diagnostics", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return split_names(value)

    @field_validator("rewards")
    @classmethod
    def _installed(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        """Each once, and one that a worker of this installation finds by its name."""
        wrong = [why for why in map(unknown, value) if why is not None] if info.context != _STORED else []
        if wrong:
            raise ValueError("; ".join(wrong))
        return tuple(dict.fromkeys(value))

    @field_validator("webhook")
    @classmethod
    def _webhook(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.context != _STORED:
            Target.of(value)
        return value

    @field_validator("columns")
    @classmethod
    def _columns(cls, value: dict[str, str]) -> dict[str, str]:
        for name, column in value.items():
            if name not in PromptRow.model_fields:
                raise ValueError(f"a prompt has no field {name!r}; its fields are {', '.join(PromptRow.model_fields)}")
            if not column:
                raise ValueError(f"{name} is given no column; write {name}=COLUMN, or leave it out")
        return value

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: dict[str, str]) -> dict[str, str]:
        if len(value) > 64 or any(not k or len(k) > _MAX_LABEL or len(v) > _MAX_LABEL for k, v in value.items()):
            raise ValueError(f"at most 64 labels, each key and value of at most {_MAX_LABEL} characters")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [n for n in ("prompts", "file", "dataset", "source") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"prompts come from one place, but {' and '.join(given)} are given")
        if self.merge_adapter and self.adapter is None:
            raise ValueError("merge_adapter needs an adapter; name one, or leave merge_adapter out")
        if self.num_prompts is not None and self.dataset is None and given and not self.replacement:
            raise ValueError("num_prompts and prompt_seed draw from a dataset; for a file, submit the lines you want")
        registered = self.dataset is not None and not is_external(self.dataset)
        if self.kind == "score" and registered:
            raise ValueError(
                "kind score needs responses: give a file or prompts with `response` or `response_token_ids`"
            )
        if self.source is not None and self.kind != "score":
            raise ValueError("source names the job whose sequences are scored: that is kind score")
        if self.columns and registered:
            raise ValueError(
                f"columns are of files and of hf: and disk: datasets; {self.dataset} makes its own prompts"
            )
        return self

    @model_validator(mode="after")
    def _batches(self) -> Self:
        if self.replacement and self.num_prompts is None:
            raise ValueError("replacement needs num_prompts: how many prompts are to be drawn")
        if self.replacement and self.kind == "score":
            raise ValueError("replacement draws prompts to sample from; kind score measures each response once")
        if not self.resample_equal:
            return self
        if self.kind == "score" or not self.rewards:
            raise ValueError("resample_equal needs kind generate and a reward: the first one of rewards decides")
        if self.G == 1 or self._is_iid or self.temperature == 0 or not self.do_sample:
            raise ValueError("resample_equal needs responses that can differ: G of 2 or more, and no greedy decoding")
        return self

    @property
    def _is_iid(self) -> bool:
        """Whether one response to each draw is meant, because nothing else was said."""
        return self.replacement and "G" not in self.model_fields_set

    @classmethod
    def parse(cls, data: dict[str, Any], *, remote: bool = False) -> JobSpec:
        """A JobSpec from plain data; raises SpecError with one `field: message` line for each problem.

        `remote`: it comes from another machine, where relative names mean nothing here.
        """
        try:
            return cls.model_validate(data, context=_REMOTE if remote else None)
        except ValidationError as error:
            raise SpecError(problems(error)) from None

    @classmethod
    def of_stored(cls, data: dict[str, Any]) -> JobSpec:
        """The spec of a stored job, on any machine: whether its folders exist here is not asked.

        Raises pydantic's ValidationError if it cannot be read.
        """
        return cls.model_validate(data, context=_STORED)

    def resolve(self) -> JobSpec:
        """With every seed settled; what is stored, and what the digest is taken of.

        A fresh seed under an idempotency key follows from the key, so that submitting again means the same job.
        """
        seed = self.seed
        if seed is None:
            key = self.idempotency_key
            fresh = secrets.token_bytes(6) if key is None else hashlib.sha256(key.encode()).digest()[:6]
            seed = int.from_bytes(fresh, "big")
        settled: dict[str, Any] = {"seed": seed}
        if self.kind == "score" or self._is_iid:
            settled["G"] = 1
        if self.kind != "score" or self.dataset is not None:
            settled["prompt_seed"] = seed if self.prompt_seed is None else self.prompt_seed
        return self.model_copy(update=settled)

    def stored(self) -> dict[str, Any]:
        """Plain data of the spec without its prompts: those are the snapshot."""
        return self.model_dump(mode="json", exclude={"prompts"})

    def digest(self) -> str:
        """sha256 of what decides the sequences and where they go: everything but the way the prompts came in.

        Of what is not by default: so a field that a later version brings changes no digest of a spec without it.
        """
        data = self.model_dump(mode="json", exclude=_NOT_OF_THE_SEQUENCES, exclude_defaults=True)
        return hashlib.sha256(json.dumps(data, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _refuse_half_characters(name: str, text: str | None) -> None:
    """A lone surrogate can stand in a Python text, but in no file and no tokenizer."""
    if text is None or text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds half a character (a lone surrogate, \\u{ord(text[error.start]):04x})") from None


def problems(error: ValidationError) -> list[str]:
    """Pydantic's findings as `field: message` lines."""
    lines = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"there is no such field; fields are {', '.join(JobSpec.model_fields)}"
        elif item["type"] == "missing":
            message = "is required"
        elif not isinstance(item["input"], dict | list) and item["type"] != "value_error":
            message = f"{message[0].lower()}{message[1:]}, not {reprlib.repr(item['input'])}"
        lines.append(f"{place}: {message}" if place else message)
    return lines
