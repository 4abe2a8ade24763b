"""What a session is made from: an optimizer version, and what the training loop asks for."""

from dataclasses import dataclass, field
from typing import Any

from optserve.wire.api_keys import ANONYMOUS
from optserve.wire.gradients import DTYPES
from optserve_server.naming import nearest, shown
from optserve_server.optimizers import Optimizer, Phi, weights, with_hyperparameters
from optserve_server.optimizers.fused import FixedPhi
from optserve_server.sessions.errors import HyperparametersInvalid, RequestInvalid
from optserve_server.sessions.guard_options import GuardOptions

MAX_TEXT_CHARACTERS = 256  # of a label or a checkpoint's name
MAX_TTL_SECONDS = 366 * 86400.0
MAX_STEPS = 2**53  # the largest number of steps that JSON tells apart


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """One optimizer version, decoded: everything that serving it takes."""

    name: str
    number: int
    sha256: str
    optimizer: Optimizer
    phi: Phi

    @classmethod
    def of(cls, name: str, number: int, sha256: str, file: bytes) -> "ServedVersion":
        """The version whose weights file this is.

        Raises:
            ValueError: it is none.
        """
        optimizer, phi, _ = weights.decode(file)
        return cls(name, number, sha256, optimizer, FixedPhi(phi))


@dataclass(frozen=True, slots=True)
class Plan:
    """What a training loop asks of its session, and whose it is."""

    dtype: str = "float32"
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    horizon: int | None = None
    label: str = ""
    ttl_seconds: float = 86400.0
    owner: str = ANONYMOUS
    guard: GuardOptions | None = None

    def check(self) -> None:
        """Check everything but the hyperparameters, which only the optimizer knows.

        Raises:
            RequestInvalid: names the field and its range.
        """
        if self.dtype not in DTYPES:
            raise RequestInvalid(
                f"`dtype` is {shown(self.dtype)}{nearest(self.dtype, DTYPES)}; it is one of {', '.join(DTYPES)}.",
                "/dtype",
            )
        if self.horizon is not None and not 1 <= self.horizon <= MAX_STEPS:
            raise RequestInvalid("`horizon` is a number of steps, at least 1.", "/horizon")
        require_label(self.label)
        require_ttl(self.ttl_seconds)


def require_label(label: str) -> None:
    """Check a label.

    Raises:
        RequestInvalid: too long, or not printable.
    """
    if len(label) > MAX_TEXT_CHARACTERS or not label.isprintable():
        raise RequestInvalid(f"`label` has at most {MAX_TEXT_CHARACTERS} printable characters.", "/label")


def require_ttl(ttl_seconds: float) -> None:
    """Check how long a session lives.

    Raises:
        RequestInvalid: not a number in the range.
    """
    if not 0 < ttl_seconds <= MAX_TTL_SECONDS:
        raise RequestInvalid(f"`ttl_seconds` is above 0 and at most {MAX_TTL_SECONDS:.0f}.", "/ttl_seconds")


def configured(optimizer: Optimizer, changes: dict[str, Any]) -> Optimizer:
    """The optimizer with other hyperparameters.

    Raises:
        HyperparametersInvalid: an unknown name or a bad value; names it and what comes near.
    """
    try:
        return with_hyperparameters(optimizer, changes)
    except (ValueError, OverflowError) as error:
        raise HyperparametersInvalid(str(error)) from error
