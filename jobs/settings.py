"""Every setting, in one table: environment variables `SEQPROC_*`, read once where a command or a client starts."""

from __future__ import annotations

import getpass
import os
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import platformdirs
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from jobs.errors import UsageError

WEB_SECRETS = ("token", "tokens")  # settings that let people in to the web: not for workers

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Settings(BaseSettings):
    """Where things are and how workers behave. With nothing set, everything works embedded in `home`."""

    model_config = SettingsConfigDict(env_prefix="SEQPROC_", env_ignore_empty=True, frozen=True, extra="ignore")

    home: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("seqproc")),
        description="Folder of the embedded database, results and logs",
    )
    database_url: str = Field(
        "", repr=False, description="SQLAlchemy URL; default: SQLite file `seqproc.db` in the home"
    )
    redis_url: str = Field(
        "", repr=False, description="Redis that carries rings to workers; default: none, workers look by themselves"
    )
    results_dir: Path | None = Field(None, description="Results root; default: `results` in the home")
    data_dir: Path | None = Field(None, description="Folder with offline datasets (`gsm8k/{train,test}.jsonl`)")
    trusted_models: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Models, `name` or `name@revision`, comma-separated, that may run their own code"
    )
    model_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="Folders, comma-separated, that local models and adapters must lie in; default: any"
    )
    lease_seconds: float = Field(30.0, gt=0, description="A shard whose heartbeat stands still this long is taken back")
    heartbeat_seconds: float = Field(1.0, gt=0, description="Seconds between heartbeats; a cancel is seen within one")
    poll_seconds: float = Field(1.0, gt=0, description="Seconds between looks of an idle worker at the database")
    max_failures: int = Field(3, ge=1, description="A shard that failed this often stays failed")
    age_limit_seconds: float = Field(600.0, gt=0, description="A job not served for this long goes first")
    watchdog_seconds: float = Field(
        600.0, gt=0, description="A worker without progress for this long writes down its stacks and leaves"
    )
    metrics_port: int = Field(
        0, ge=0, lt=65536, description="Port of a worker's Prometheus metrics on loopback; 0: none"
    )
    token: SecretStr | None = Field(
        None, description="The operator's secret for the web server; on any other address than loopback it needs one"
    )
    tokens: Annotated[dict[str, SecretStr], NoDecode] = Field(
        {},
        description="People's own secrets for it, `alice:SECRET,bob:SECRET`; each changes only jobs of that name",
    )
    web_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Names, comma-separated, that the web server answers to besides loopback's; default: see Trust"
    )
    web_max_body: int = Field(4 * 2**30, ge=1, description="Most bytes of prompts that one web request may bring")
    webhook_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Hosts, comma-separated, that may be told of a job's end; default: none"
    )
    webhook_secret: SecretStr | None = Field(None, description="Key of the signature on what they are told")
    tensorboard_dir: Path = Field(
        Path("runs"), description="Folder that `--track tensorboard` writes to; default: `runs` in the present one"
    )

    @field_validator("trusted_models", "model_roots", "web_hosts", "webhook_hosts", mode="before")
    @classmethod
    def _commas(cls, value: object) -> object:
        return tuple(filter(None, (name.strip() for name in value.split(",")))) if isinstance(value, str) else value

    @field_validator("tokens", mode="before")
    @classmethod
    def _names_and_secrets(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        pairs = [entry.strip().partition(":") for entry in value.split(",") if entry.strip()]
        tokens = {name: secret for name, _, secret in pairs}
        operators = info.data.get("token")
        secrets = {*tokens.values(), *([operators.get_secret_value()] if operators else [])}
        if not all(_NAME.fullmatch(name) and secret for name, secret in tokens.items()):
            # Without what was found: it holds secrets.
            raise ValueError("give name:secret pairs like alice:…,bob:…, names of letters, digits and . _ -")
        if len(tokens) < len(pairs) or len(secrets) < len(pairs) + (operators is not None):
            raise ValueError("give every name once, and each a secret of its own, which is not SEQPROC_TOKEN either")
        return tokens

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: str) -> str:
        if value and not _names_a_redis(value):
            # Without what was found: it may hold a password.
            raise ValueError("give a URL like redis://:password@host:6379/0, odd characters of the password as %XX")
        return value

    @classmethod
    def load(cls) -> Settings:
        """Settings from the environment; raises UsageError with a sentence for each variable that does not parse."""
        try:
            return cls()
        except ValidationError as error:
            lines = [
                f"SEQPROC_{'_'.join(map(str, e['loc'])).upper()}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors()
            ]
            raise UsageError("a setting in the environment is wrong\n" + "\n".join(lines)) from None

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.home.expanduser().resolve() / 'seqproc.db'}"

    @property
    def results(self) -> Path:
        return (self.results_dir or self.home / "results").expanduser().resolve()

    @property
    def logs(self) -> Path:
        return self.home.expanduser().resolve() / "logs"


def _names_a_redis(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(
            parts.scheme in ("redis", "rediss")
            and parts.hostname
            and parts.port != 0
            and re.fullmatch(r"/?\d*", parts.path)
            and "@" not in parts.query + parts.fragment  # a ? or # in the password cuts the URL there
            and (parts.password or not parts.username)  # no colon: it was the password that was meant
        )
    except ValueError:
        return False


def current_owner() -> str:
    """The operating system's user: who owns the jobs that this process submits."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's uid without an entry in passwd
        return f"uid-{os.getuid()}"
