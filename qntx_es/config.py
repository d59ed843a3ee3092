"""What may be set from outside, read once at the edge and frozen.

Flags win over the environment (`QNTX_…`), the environment over `qntx.toml`, the file over the
defaults here. Nothing below the edge reads the environment.
"""

import getpass
import os
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qntx_es.attestation import problems_of
from qntx_es.errors import QntxError, did_you_mean

DATABASE_URL = "sqlite:///qntx.db"
FILE = "qntx.toml"
WINDOW = r"^([1-9]\d{0,5})?[smhd]$"
RATE = r"^[1-9]\d{0,8}/([1-9]\d{0,5})?[smhd]$"


class InvalidConfig(QntxError):
    """A setting is unknown or has a value it cannot have."""


class QueueSettings(BaseModel):
    """The limits of a queue: at once, starts in any window (`"100/m"`), and its share of turns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: int | None = Field(default=None, ge=0, lt=2**31)
    rate: str | None = Field(default=None, pattern=RATE)
    weight: int = Field(default=1, ge=1, le=1_000)


class BudgetSettings(BaseModel):
    """How much of a unit may be spent in any window, such as `"1d"`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: str = Field(default="EUR", max_length=64)
    amount: float = Field(ge=0, le=1_000_000)
    window: str = Field(default="1d", pattern=WINDOW)


class Settings(BaseModel):
    """The framework's settings. `domains` is a whitelist: nothing else is imported."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    database_url: str = DATABASE_URL
    domains: tuple[str, ...] = ()
    job_threads: int = Field(default=4, ge=1, le=256)
    queues: Mapping[str, QueueSettings] = Field(default_factory=dict)
    budgets: Mapping[str, BudgetSettings] = Field(default_factory=dict)
    lock_seconds: float = Field(default=10.0, ge=0.01, le=3_600)
    lease_seconds: float = Field(default=15.0, ge=0.1, le=3_600)
    batch_seconds: float = Field(default=60.0, ge=0.1, le=86_400)
    drain_seconds: float = Field(default=10.0, ge=0, le=3_600)
    ax_seconds: float = Field(default=5.0, ge=0.01, le=3_600)
    scrub_entities_per_minute: int = Field(default=60, ge=0, le=60_000)


def read_settings(
    flags: Mapping[str, Any], *, environment: Mapping[str, str] = os.environ
) -> Settings:
    """Return the settings in force. Raises `InvalidConfig`, naming the setting and its place."""
    path = flags.get("config") or environment.get("QNTX_CONFIG")
    found = _from_file(Path(path or FILE), is_asked_for=path is not None)
    for name in Settings.model_fields:
        if (value := environment.get(f"QNTX_{name.upper()}")) is not None:
            found[name] = value
    found |= {name: value for name, value in flags.items() if value is not None}
    found.pop("config", None)
    if isinstance(found.get("domains"), str):
        found["domains"] = [one.strip() for one in found["domains"].split(",") if one.strip()]
    try:
        return Settings.model_validate(found)
    except ValidationError as error:
        raise InvalidConfig(f"settings: {problems_of(error)}") from error


def somebody() -> str:
    """Return who runs this process: the actor of what nobody in particular has asked for."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a user of a container, without a name
        name = f"uid{os.getuid()}"
    return f"{name}@{socket.gethostname()}"


def _from_file(path: Path, *, is_asked_for: bool) -> dict[str, Any]:
    if not path.exists():
        if is_asked_for:
            raise InvalidConfig(f"there is no configuration at {path}")
        return {}
    try:
        sections = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{path} is no TOML: {error}") from error
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be read: {error.strerror}") from error
    found = {}
    for section, keys in sections.items():
        for key, value in (keys if isinstance(keys, dict) else {"": keys}).items():
            setting = _FILE_KEYS.get((section, key))
            if setting is None:
                name = f"{section}.{key}".removesuffix(".")
                known = [".".join(one) for one in _FILE_KEYS]
                raise InvalidConfig(f"{path}: no setting `{name}`{did_you_mean(name, known)}")
            found[setting] = value
    return found


_FILE_KEYS = {
    ("database", "url"): "database_url",
    ("database", "lock_seconds"): "lock_seconds",
    ("domains", "enabled"): "domains",
    ("pulse", "threads"): "job_threads",
    ("pulse", "queues"): "queues",
    ("pulse", "budgets"): "budgets",
}
