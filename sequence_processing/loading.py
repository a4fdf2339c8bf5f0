"""Models by name: a packaged one, a local folder, or a hub id. Weights are safetensors only, and the model's own.

Every failure is a `ModelError` that says whose fault it is: `permanent` if nothing will help on any machine, not
permanent if this machine lacks something (network, disk, memory, the folder). `model_identity` says what a model
*is*, the same on every machine: a hub commit or the digest of its files.
"""

import errno
import hashlib
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file, find_adapter_config_file

from sequence_processing.model import is_out_of_memory

_PACKAGED = Path(__file__).parent / "models"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_MODEL_FILES = ("*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json")
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_SAFE_FILE = re.compile(r"[^/\\]+\.safetensors(\.index\.json)?")


class ModelError(RuntimeError):
    """A model cannot be loaded. `permanent`: on no machine, whatever is done there."""

    def __init__(self, sentence: str, *, permanent: bool) -> None:
        super().__init__(sentence)
        self.permanent = permanent


def load_model(
    name: str,
    *,
    revision: str | None = None,
    adapter: str | None = None,
    merge_adapter: bool = False,
    dtype: str | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """Model in eval mode and tokenizer of a packaged name, local folder or hub id, with a LoRA adapter if one is given.

    `dtype` is the checkpoint's by default, `device` CUDA where there is one. `merge_adapter` adds the adapter into the
    weights: as fast as the base alone, each changed weight rounded once more to `dtype`. Raises `ModelError`.
    """
    if merge_adapter and adapter is None:
        raise ModelError("There is no adapter to merge; name one, or leave merge_adapter out.", permanent=True)
    if dtype is not None and dtype not in _DTYPES:
        raise ModelError(f"Unknown dtype {dtype!r}; it is one of {', '.join(_DTYPES)}.", permanent=True)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    where, options = _source(name), {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(where, **options)
        _check_causal(name, config)
        _check_weights(name, where, config, revision)
        torch_dtype = "auto" if dtype is None else _DTYPES[dtype]
        model = AutoModelForCausalLM.from_pretrained(
            where, config=config, dtype=torch_dtype, use_safetensors=True, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(where, **options)
    except ModelError:
        raise
    except Exception as error:
        raise _explained(f"model {name!r}", error) from error
    try:
        model = model.to(device).eval()
    except RuntimeError as error:
        raise _explained(f"model {name!r}", error) from error
    if adapter is not None:
        model = _adapted(model, name, adapter, merge=merge_adapter)
    return model, tokenizer


def with_adapter(base: Any, name: str, adapter: str) -> Any:
    """`base`, loaded as `name`, with a LoRA adapter over it, in eval mode. The two share the base's parameters.

    `base` itself stays as it is, also if this fails, and takes the next adapter when this one is dropped; only
    its parameters are frozen. Raises `ModelError`.
    """
    return _adapted(base, name, adapter, merge=False)


def model_identity(
    name: str,
    *,
    revision: str | None = None,
    adapter: str | None = None,
    model: Any = None,
    tokenizer: Any = None,
) -> dict[str, str]:
    """What the model is: {"model", "tokenizer", "chat_template"} and "adapter" if there is one, each `kind:hex`.

    `model` and `tokenizer`, if loaded already, save reading them again. Raises `ModelError`.
    """
    where = _source(name)
    try:
        if isinstance(where, Path):
            identity = {"model": _folder_digest(where, _MODEL_FILES)}
        else:
            config = model.config if model is not None else AutoConfig.from_pretrained(where, revision=revision)
            identity = {"model": f"commit:{config._commit_hash}"}
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(where, revision=revision)
    except Exception as error:
        raise _explained(f"model {name!r}", error) from error
    if adapter is not None:
        identity["adapter"] = _adapter_identity(adapter)
    identity["tokenizer"] = _tokenizer_digest(tokenizer)
    identity["chat_template"] = _digest(json.dumps(tokenizer.chat_template, sort_keys=True).encode())
    return identity


def local_folder(name: str) -> Path | None:
    """The folder of this machine that `name` stands for; None for a packaged model or a hub id. Raises `ModelError`."""
    where = _source(name)
    return where if isinstance(where, Path) and where.parent != _PACKAGED else None


def _source(name: str) -> Path | str:
    """A folder if `name` is packaged or looks like a path, else a hub id; `ModelError` if the folder is not there."""
    packaged = _PACKAGED / name
    if "/" not in name and (packaged / "config.json").is_file():
        return packaged
    path = Path(name).expanduser()
    looks_like_path = name.startswith(("/", ".", "~")) or name.count("/") > 1 or path.is_dir()
    if not looks_like_path:
        return name
    if not path.is_dir():
        raise ModelError(f"There is no model folder {name} on this machine; check the path.", permanent=False)
    if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
        raise ModelError(f"The folder {name} has no config.json; it is not a transformers model.", permanent=False)
    return path


def _check_causal(name: str, config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name!r} is an encoder-decoder model ({config.model_type}); only causal LMs work.", permanent=True
        )
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if not known and "AutoModelForCausalLM" not in (getattr(config, "auto_map", None) or {}):
        raise ModelError(f"{name!r} ({config.model_type}) is not a causal language model.", permanent=True)


def _check_weights(name: str, where: Path | str, config: Any, revision: str | None) -> None:
    """Refuse what would make transformers open anything but safetensors of the model itself.

    A config or an index may name a `.bin`, which is pickle, or a file of another folder. An adapter's config beside the
    model's own may lead to another base, and puts weights over it that `model_identity` does not see.
    """
    if find_adapter_config_file(str(where), revision=revision) is not None:
        raise ModelError(
            f"{name!r} is an adapter, or holds one (adapter_config.json): name its base as the model, and it as the "
            "adapter.",
            permanent=True,
        )
    weights = getattr(config, "transformers_weights", None) or SAFE_WEIGHTS_INDEX_NAME
    files = {weights}
    if weights.endswith(".index.json"):
        index = cached_file(
            where,
            weights,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        files |= set(json.loads(Path(index).read_bytes())["weight_map"].values()) if index else set()
    for file in sorted(files):
        if not _SAFE_FILE.fullmatch(file):
            raise ModelError(
                f"The model {name!r} names {file!r} among its weights; only safetensors files beside its config are "
                "loaded.",
                permanent=True,
            )


def _adapted(base: Any, name: str, adapter: str, *, merge: bool) -> Any:
    """`base` with the adapter over it, or, with `merge`, in its weights."""
    from sequence_processing import adapters  # loads peft, which takes its time

    folder = _adapter_folder(adapter)
    try:
        model = adapters.attach(base, folder)
        return adapters.merged(model) if merge else model
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, OSError):  # this machine's fault
            raise _explained(f"adapter {adapter!r}", error) from error
        raise ModelError(
            f"The adapter {adapter!r} does not fit the model {name!r}: {_first_line(error).rstrip('.')}.",
            permanent=True,
        ) from error


def _adapter_folder(adapter: str) -> Path:
    """The adapter's folder, fetched from the hub if it is a hub id; `ModelError` unless it holds safetensors."""
    source = _source(adapter)
    try:
        folder = (
            source if isinstance(source, Path) else Path(snapshot_download(source, allow_patterns=list(_ADAPTER_FILES)))
        )
    except Exception as error:
        raise _explained(f"adapter {adapter!r}", error) from error
    for file in _ADAPTER_FILES:
        if not (folder / file).is_file():
            raise ModelError(f"The adapter {adapter!r} has no {file}.", permanent=not isinstance(source, Path))
    return folder


def _adapter_identity(adapter: str) -> str:
    folder = _adapter_folder(adapter)
    # A folder of the hub's cache is named after its commit.
    return _folder_digest(folder, _ADAPTER_FILES) if isinstance(_source(adapter), Path) else f"commit:{folder.name}"


def _folder_digest(folder: Path, patterns: tuple[str, ...]) -> str:
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    lines = [f"{file.name} {_file_digest(file, file.stat().st_size, file.stat().st_mtime_ns)}" for file in files]
    return _digest("\n".join(lines).encode())


@lru_cache(maxsize=1024)
def _file_digest(file: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file's content, remembered for as long as its size and time stay (the arguments are the key)."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _tokenizer_digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
    # Padding and truncation are set by calls, not by what the tokenizer is.
    content = {key: value for key, value in content.items() if key not in ("padding", "truncation")}
    content["class"] = "fast" if backend is not None else type(tokenizer).__name__
    content["ends"] = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    return _digest(json.dumps(content, sort_keys=True).encode())


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _explained(what: str, error: Exception) -> ModelError:
    """The sentence and the fault of an error that came up while loading `what`."""
    chain = list(_chain(error))

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(e, kinds) for e in chain)

    if any(is_out_of_memory(e) for e in chain):
        return ModelError(f"The {what} does not fit in this machine's memory.", permanent=False)
    if any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) for e in chain):
        return ModelError(f"The {what} cannot be fetched: this machine's disk is full.", permanent=False)
    if has(GatedRepoError):
        return ModelError(f"The {what} is gated: this machine needs a hub token with access.", permanent=False)
    if has(RevisionNotFoundError):
        return ModelError(f"The hub has no such revision of the {what}.", permanent=True)
    if has(RepositoryNotFoundError):
        return ModelError(f"The hub has no {what}, or it is private; check the name.", permanent=True)
    if has(HFValidationError):
        return ModelError(f"The {what} is neither a folder nor a well-formed hub id.", permanent=True)
    if has(LocalEntryNotFoundError, ConnectionError):
        return ModelError(
            f"The {what} is not in this machine's cache and the hub cannot be reached from here.", permanent=False
        )
    if "trust_remote_code" in str(error):
        return ModelError(f"The {what} needs code of its own, which is not allowed here.", permanent=False)
    if has(EntryNotFoundError) or ("safetensors" in str(error) and isinstance(error, OSError)):
        return ModelError(f"The {what} has no weights as safetensors: {_first_line(error)}", permanent=True)
    # Anything else may be this machine's: its device, its versions of libraries.
    return ModelError(f"The {what} cannot be loaded here: {_first_line(error)}", permanent=False)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
