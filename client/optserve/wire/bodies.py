"""The JSON bodies of requests and replies.

Plain dataclasses, so that the client needs no validation library. The server validates requests with pydantic, which
reads the same classes: `__pydantic_config__` forbids unknown keys and takes the descriptions from the docstrings.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from optserve.wire.guard import GUARD_SCHEMA, GuardEvent
from optserve.wire.schema import REPLY as _REPLY
from optserve.wire.schema import REQUEST as _REQUEST
from optserve.wire.schema import Described
from optserve.wire.schema import Number as _Number
from optserve.wire.schema import TruthValue as _TruthValue
from optserve.wire.schema import WholeNumber as _WholeNumber

T = TypeVar("T")


@dataclass(slots=True)
class Page(Generic[T]):
    """One page of a list."""

    items: list[T]
    next_cursor: str | None = None
    """Send it as `cursor` for the next page; null on the last one."""

    __pydantic_config__: ClassVar[Any] = _REPLY


# --- sessions ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Parameter:
    """One tensor of the optimizee's parameters θ."""

    name: str
    shape: list[_WholeNumber]
    """Its dimensions; `[]` is a single number."""

    __pydantic_config__: ClassVar[Any] = _REQUEST


@dataclass(slots=True)
class SessionRequest:
    """Ask for a session: one training loop's hidden state under one optimizer version."""

    parameters: list[Parameter]
    """The tensors of θ, in the order in which their gradients will be sent."""
    optimizer: str | None = None
    """`NAME`, `NAME@7` or `NAME@ALIAS`; absent, the server's default optimizer."""
    dtype: str = "float32"
    """`float32`, `float16` or `bfloat16`: of gradients and updates on the wire. The hidden state is float32."""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    """Of a hand-designed optimizer, with PyTorch's names and defaults; a learned optimizer takes none."""
    horizon: _WholeNumber | None = None
    """How many steps the loop plans, where it knows."""
    label: str = ""
    ttl_seconds: _Number = 86400
    """The session expires this long after its last step."""
    guard: Annotated[Any, Described(GUARD_SCHEMA)] = None
    """The update guard: a table of `max_update_rms`, `patience` and `fallback`, true for their defaults, or false for
    none. Absent, a learned optimizer has one and a hand-designed one has none."""

    __pydantic_config__: ClassVar[Any] = _REQUEST


@dataclass(slots=True)
class OptimizerReference:
    """Exactly which optimizer: a version never changes."""

    name: str
    version: int
    sha256: str
    """Of the version's weights file."""

    __pydantic_config__: ClassVar[Any] = _REPLY


@dataclass(slots=True)
class GuardInfo:
    """A session's update guard."""

    max_update_rms: float
    """The largest root mean square of one tensor's update, in the parameters' units."""
    patience: int
    """So many steps the loss may be too high; and so many a tensor stays in the fallback without a new cause."""
    fallback: str
    """What takes the place of the optimizer's own updates: `adam`."""

    __pydantic_config__: ClassVar[Any] = _REPLY


@dataclass(slots=True)
class SessionInfo:
    """A session as the server sees it."""

    id: str
    optimizer: OptimizerReference
    next_step: int
    """The only step the session takes next."""
    coordinates: int
    """How many numbers θ has."""
    parameters: list[Parameter]
    dtype: str
    hyperparameters: dict[str, Any]
    horizon: int | None
    label: str
    ttl_seconds: float
    created_at: str
    """RFC 3339, UTC."""
    expires_at: str
    """RFC 3339, UTC; each step moves it."""
    guard: GuardInfo | None = None
    """Null where the session has none."""

    __pydantic_config__: ClassVar[Any] = _REPLY


@dataclass(slots=True)
class SessionPatch:
    """What may change between two steps; absent keys stay as they are."""

    hyperparameters: dict[str, Any] | None = None
    """Merged into the session's own; only of a hand-designed optimizer."""
    label: str | None = None
    ttl_seconds: _Number | None = None

    __pydantic_config__: ClassVar[Any] = _REQUEST


@dataclass(slots=True)
class StepRequest:
    """The JSON form of a step's body."""

    gradients: dict[str, Any]
    """Nested lists of numbers by parameter name, in the parameters' shapes."""
    loss: _Number | None = None

    __pydantic_config__: ClassVar[Any] = _REQUEST


@dataclass(slots=True)
class StepReply:
    """The JSON form of a step's reply."""

    step: int
    updates: dict[str, Any]
    """g_t as nested lists by parameter name: θ_{t+1} = θ_t + g_t."""

    __pydantic_config__: ClassVar[Any] = _REPLY


@dataclass(slots=True)
class CheckpointInfo:
    """A hidden state kept under a name."""

    name: str
    step: int
    """`next_step` when it was saved."""
    created_at: str

    __pydantic_config__: ClassVar[Any] = _REPLY


@dataclass(slots=True)
class RestoreRequest:
    """Go back: to a checkpoint, or to a step."""

    checkpoint: str | None = None
    """The checkpoint's name."""
    step: _WholeNumber | None = None
    """The step that shall come next; the steps from it on are undone."""

    __pydantic_config__: ClassVar[Any] = _REQUEST


@dataclass(slots=True)
class ForkRequest:
    """Make a second session with a copy of the hidden state."""

    step: _WholeNumber | None = None
    """The step that comes next in it; absent, the one that comes next in this session."""

    __pydantic_config__: ClassVar[Any] = _REQUEST


@dataclass(slots=True)
class HistoryItem:
    """One step that a session has taken. What is not finite is null."""

    step: int
    loss: float | None
    """L(θ_t), where it was sent."""
    gradient_norm: float | None
    """‖∇_t‖₂ over all parameters that were sent."""
    update_norm: float | None
    """‖g_t‖₂."""

    __pydantic_config__: ClassVar[Any] = _REPLY


@dataclass(slots=True)
class History:
    """The steps of a session, the oldest first; thinned evenly to at most 2,000, always with the last."""

    items: list[HistoryItem]
    guard_events: list[GuardEvent] = field(default_factory=list)
    """What the session's update guard did, the newest 200, the oldest first."""

    __pydantic_config__: ClassVar[Any] = _REPLY


@dataclass(slots=True)
class Digest:
    """Equal digests prove equal hidden states."""

    step: int
    """The next one."""
    sha256: str

    __pydantic_config__: ClassVar[Any] = _REPLY


# --- optimizers -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class AliasInfo:
    """A name that points at one version."""

    alias: str
    version: int

    __pydantic_config__: ClassVar[Any] = _REPLY


@dataclass(slots=True)
class AliasMove:
    """One line of an alias's history: it was set to `version`, or removed (null)."""

    alias: str
    version: int | None
    moved_at: str
    moved_by: str
    """The name of the API key, `anonymous` on an open server, `server` for what it moves itself."""
    forced: bool = False
    """Whether `champion` was moved without proof that the version beats the one before."""
    evaluation: str | None = None
    """The evaluation in which this champion beat the one before."""

    __pydantic_config__: ClassVar[Any] = _REPLY


@dataclass(slots=True)
class AliasRequest:
    """Point an alias at a version."""

    version: _WholeNumber
    evaluation: str | None = None
    """For `champion`, where another version is it: the id of an evaluation in which this one beat that one."""
    force: _TruthValue = False
    """Or put it there although nothing proves that it is better."""

    __pydantic_config__: ClassVar[Any] = _REQUEST


@dataclass(slots=True)
class VersionSummary:
    """One version in a list."""

    version: int
    sha256: str
    created_at: str
    metrics: dict[str, Any]

    __pydantic_config__: ClassVar[Any] = _REPLY


@dataclass(slots=True)
class OptimizerSummary:
    """One optimizer in a list."""

    name: str
    kind: str
    """Its architecture: `lstm`, `rnnprop`, `adam`, …"""
    learned: bool
    default: bool
    """Whether a session that names no optimizer gets this one."""
    latest: int
    champion: int | None
    description: str

    __pydantic_config__: ClassVar[Any] = _REPLY


@dataclass(slots=True)
class OptimizerInfo(OptimizerSummary):
    """One optimizer with its aliases and versions."""

    uses: list[str]
    """What it can use beside the gradients: `loss`, `horizon`, `parameters`."""
    needs: list[str]
    """What it cannot do without."""
    hyperparameters: dict[str, Any]
    """Of a hand-designed optimizer: names and defaults."""
    aliases: list[AliasInfo]
    alias_history: list[AliasMove]
    versions: list[VersionSummary]


@dataclass(slots=True)
class VersionInfo(VersionSummary):
    """One immutable version: everything needed to know where it came from."""

    optimizer: str
    architecture: dict[str, Any]
    recipe: dict[str, Any] | None
    """What it was meta-trained by; null if unknown, or if it was designed by hand."""
    parent: str | None
    """`NAME@N` of the version its φ started from."""
    run: str | None
    environment: dict[str, Any]
    """What produced it, as far as it is known: torch, device, optserve, commit, python, machine, seed."""


# --- tasks ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class TaskFamilyInfo:
    """A distribution of optimizees to meta-train and evaluate on."""

    family: str
    description: str
    parameters_schema: dict[str, Any]
    """JSON schema of the family's parameters."""

    __pydantic_config__: ClassVar[Any] = _REPLY


# --- health -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Health:
    """Whether the server lives, and whether it is ready to serve."""

    status: str
    version: str
    checks: dict[str, str] = field(default_factory=dict)

    __pydantic_config__: ClassVar[Any] = _REPLY
