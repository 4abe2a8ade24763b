"""What a server can be told: by command line options, `OPTSERVE_…` environment variables, or an `optserve.toml`."""

import ipaddress
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import ByteSize, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from optserve.connection import API_KEY_VARIABLE, URL_VARIABLE
from optserve.wire.limits import Limits
from optserve_server.naming import nearest

FILE = "optserve.toml"
ENVIRONMENT_PREFIX = "OPTSERVE_"


class SettingsInvalid(ValueError):
    """A setting is unknown or has an unusable value; the message names it, and what comes near."""


class Settings(BaseSettings):
    """The settings of one server process."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, toml_file=FILE, extra="forbid", use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """The address to listen at."""
    port: int = Field(default=8000, ge=0, le=65535)
    """The port to listen at; 0 for any that is free."""
    uds: Path | None = None
    """A Unix socket to listen at instead of an address."""
    data_dir: Path = Path("optserve-data")
    """Where the server keeps what is not in the database."""
    database_url: str = ""
    """`sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST/DATABASE`; empty, an SQLite file in `data_dir`."""
    default_optimizer: str = "hierarchical"
    """What a session gets that names no optimizer."""
    insecure: bool = False
    """Serve everybody who reaches the server as long as there is no API key, other machines too."""
    state_memory: ByteSize | None = Field(default=None, ge=1 << 20)
    """The most memory for hidden states, such as `8GiB`; absent, half of what the process may use."""
    durability: Literal["synced", "relaxed"] = "synced"
    """Whether a step is synced to the disk before its reply or only written: then a power cut may take the last."""
    park_after: float = Field(default=600.0, gt=0)
    """Seconds after which the hidden state of a session that idles leaves memory; its next step brings it back."""
    max_body_bytes: ByteSize = Field(default=ByteSize(1 << 30), ge=1 << 20)
    """The longest body of a request."""
    body_memory: ByteSize | None = Field(default=None, ge=1 << 20)
    """The most bytes of requests' bodies at once; absent, a quarter of the memory that the process may use."""
    max_sessions: int | None = Field(default=10_000, ge=0)
    """Of one API key, as the next four are; a key can have others of its own."""
    max_coordinates: int | None = Field(default=None, ge=0)
    """Of all its sessions together; absent, as many as there is room for."""
    max_bytes_in_flight: ByteSize | None = None
    """Bytes of the bodies of its requests that are not answered yet; absent, as many as there is room for."""
    max_requests_per_second: float | None = Field(default=None, gt=0)
    """On average; what was not used for a second may come at once."""
    max_runs: int | None = Field(default=100, ge=0)
    """Meta-training runs at once, those that wait too."""
    metrics_token: SecretStr | None = Field(default=None, min_length=16)
    """What reads `/metrics` of a server with API keys, sent as `Authorization: Bearer`; an admin's key does too."""

    workers: int = Field(default=1, ge=0, le=256)
    """Worker processes that the server starts beside itself."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """What workers compute on; `auto` is a GPU where there is one."""
    threads: int = Field(default=1, ge=1, le=1024)
    """CPU threads of a worker; another number may change the last bits of φ."""
    worker_memory: ByteSize | None = Field(default=None, ge=1 << 20)
    """What a recipe may need at most, where workers run on other machines; absent, what this one has."""

    @property
    def database(self) -> str:
        """The database's URL."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'optserve.db'}"

    @property
    def sessions(self) -> Path:
        """The directory of the sessions."""
        return self.data_dir / "sessions"

    @property
    def limits(self) -> Limits:
        """Those of an API key that has no others."""
        return Limits(
            self.max_sessions,
            self.max_coordinates,
            self.max_bytes_in_flight,
            self.max_requests_per_second,
            self.max_runs,
        )

    @property
    def may_be_open(self) -> bool:
        """Whether a server without API keys may serve everybody who reaches it: only on this machine, unless told."""
        return self.insecure or self.uds is not None or _is_loopback(self.host)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options go before environment variables, and these before the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load(**options: Any) -> Settings:
    """The settings, from these options (None: not given), the environment and the file.

    Raises:
        SettingsInvalid: names the setting.
    """
    _require_known_variables()
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsInvalid(
            "; ".join(_explain(one["loc"], one["msg"], one["type"]) for one in error.errors())
        ) from error
    except ValueError as error:  # TOML that cannot be read
        raise SettingsInvalid(f"{FILE}: {error}") from error


def _require_known_variables() -> None:
    # pydantic-settings passes over what it does not know, and a misspelt limit would be none.
    known = [URL_VARIABLE, API_KEY_VARIABLE, *(ENVIRONMENT_PREFIX + name.upper() for name in Settings.model_fields)]
    for name in os.environ:
        if name.upper().startswith(ENVIRONMENT_PREFIX) and name.upper() not in known:
            raise SettingsInvalid(
                f"the environment has {name}, which is no setting{nearest(name.upper(), known)}; unset it"
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _explain(location: tuple[int | str, ...], message: str, kind: str) -> str:
    name = ".".join(map(str, location))
    if kind != "extra_forbidden":
        return f"setting {name!r}: {message}"
    return f"there is no setting {name!r}{nearest(name, Settings.model_fields)}"
