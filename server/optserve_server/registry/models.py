"""The schema of the registry: optimizer → immutable versions → aliases, whose moves are kept for ever; the runs that
write versions; API keys, what they use, and what is done with them.

Triggers in the migrations refuse any change to a version or to an alias's history.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from optserve_server.registry import leases
from optserve_server.registry.leases import Leased

NAME_LENGTH = 64
SHA256_LENGTH = 64


class Timestamp(TypeDecorator[datetime]):
    """A moment in UTC; SQLite keeps no zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """In UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def now() -> datetime:
    """The present moment, in UTC."""
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """Base of all tables. Constraints are named, so that later migrations can alter them."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012
        dict[str, Any]: JSON(none_as_null=True),
        list[dict[str, Any]]: JSON(none_as_null=True),
        datetime: Timestamp(),
    }


class Optimizer(Base):
    """A name whose versions are one optimizer's successive weights φ."""

    __tablename__ = "optimizers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_LENGTH), unique=True)
    description: Mapped[str] = mapped_column(Text)
    """Of its newest version."""
    created_at: Mapped[datetime] = mapped_column(default=now)

    __table_args__ = (CheckConstraint(f"length(name) BETWEEN 1 AND {NAME_LENGTH} AND name = lower(name)", "name"),)


class Version(Base):
    """One immutable φ with its architecture, and where it came from."""

    __tablename__ = "versions"

    id: Mapped[int] = mapped_column(primary_key=True)
    optimizer_id: Mapped[int] = mapped_column(ForeignKey("optimizers.id", ondelete="RESTRICT"))
    number: Mapped[int]
    """1, 2, 3, … within its optimizer."""
    sha256: Mapped[str] = mapped_column(String(SHA256_LENGTH))
    """Of `weights`, in hexadecimal."""
    weights: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)
    """A canonical safetensors file: equal φ and metadata give equal bytes."""
    architecture: Mapped[dict[str, Any]]
    recipe: Mapped[dict[str, Any] | None]
    metrics: Mapped[dict[str, Any]]
    environment: Mapped[dict[str, Any]]
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id", ondelete="RESTRICT"))
    """The version its φ started from."""
    run: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    """The id of the meta-training run that wrote it."""
    outer_step: Mapped[int | None]
    """The run's outer step whose φ this is."""
    created_at: Mapped[datetime] = mapped_column(default=now)

    optimizer: Mapped[Optimizer] = relationship(lazy="joined", innerjoin=True)
    parent: Mapped["Version | None"] = relationship(remote_side="Version.id")

    __table_args__ = (
        UniqueConstraint("optimizer_id", "number"),
        Index(None, "optimizer_id", "sha256"),
        Index(None, "run", "outer_step", unique=True),
        Index(None, "parent_id"),
        CheckConstraint("number >= 1", "number"),
        CheckConstraint(f"length(sha256) = {SHA256_LENGTH}", "sha256"),
        CheckConstraint("length(weights) > 0", "weights"),
        CheckConstraint("parent_id <> id", "parent"),
    )


class Alias(Base):
    """A name that points at one version of an optimizer."""

    __tablename__ = "aliases"

    optimizer_id: Mapped[int] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(String(NAME_LENGTH), primary_key=True)
    number: Mapped[int]

    __table_args__ = (
        ForeignKeyConstraint(
            ["optimizer_id", "number"], ["versions.optimizer_id", "versions.number"], ondelete="RESTRICT"
        ),
        CheckConstraint(f"length(alias) BETWEEN 1 AND {NAME_LENGTH} AND alias = lower(alias)", "alias"),
    )


class AliasMove(Base):
    """One line of the aliases' append-only history: who pointed an alias at which version, and when."""

    __tablename__ = "alias_moves"

    id: Mapped[int] = mapped_column(primary_key=True)
    optimizer_id: Mapped[int] = mapped_column(ForeignKey("optimizers.id", ondelete="RESTRICT"))
    alias: Mapped[str] = mapped_column(String(NAME_LENGTH))
    number: Mapped[int | None]
    """Null: the alias was removed."""
    moved_at: Mapped[datetime] = mapped_column(default=now)
    moved_by: Mapped[str] = mapped_column(Text)
    forced: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Whether it put one champion in the place of another without proof that it is better."""
    evaluation: Mapped[str | None] = mapped_column(String(NAME_LENGTH))
    """The id of the evaluation in which this champion beat the one before."""

    __table_args__ = (
        ForeignKeyConstraint(
            ["optimizer_id", "number"], ["versions.optimizer_id", "versions.number"], ondelete="RESTRICT"
        ),
        Index(None, "optimizer_id", "id"),
        CheckConstraint("length(moved_by) > 0", "moved_by"),
        CheckConstraint("NOT forced OR evaluation IS NULL", "proof"),
    )


class ApiKey(Base):
    """Who may call the API. The key itself is not kept; revoked ones stay, for what was done with them is on record."""

    __tablename__ = "api_keys"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    """Of one key at a time: it is free again once the key is revoked."""
    scope: Mapped[str] = mapped_column(String(8))
    """`client`, or `admin`, which may do all that a client may."""
    sha256: Mapped[str] = mapped_column(String(SHA256_LENGTH), unique=True)
    """Of the key, in hexadecimal; a key is random enough to need no salt."""
    prefix: Mapped[str] = mapped_column(String(16))
    """How the key begins, so that people can tell which it is."""
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """Some seconds behind."""
    revoked_at: Mapped[datetime | None]
    limits: Mapped[dict[str, Any] | None]
    """Those of `optserve.wire.limits.Limits` that are its own."""

    __table_args__ = (
        Index(
            "uq_api_keys_name",
            "name",
            unique=True,
            sqlite_where=text("revoked_at IS NULL"),
            postgresql_where=text("revoked_at IS NULL"),
        ),
        CheckConstraint(f"length(name) BETWEEN 1 AND {NAME_LENGTH}", "name"),
        CheckConstraint("scope IN ('client', 'admin')", "scope"),
        CheckConstraint(f"length(sha256) = {SHA256_LENGTH}", "sha256"),
        CheckConstraint("expires_at > created_at", "expires_at"),
    )


class Usage(Base):
    """What the API keys of one name have used so far; some seconds behind."""

    __tablename__ = "usage"

    owner: Mapped[str] = mapped_column(String(NAME_LENGTH), primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    steps: Mapped[int] = mapped_column(BigInteger)
    bytes_received: Mapped[int] = mapped_column(BigInteger)
    bytes_sent: Mapped[int] = mapped_column(BigInteger)


class AuditEntry(Base):
    """One act of an admin. Triggers refuse any change to it."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    actor: Mapped[str] = mapped_column(Text)
    address: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(String(64))
    target: Mapped[str] = mapped_column(Text)
    details: Mapped[dict[str, Any] | None]
    outcome: Mapped[str] = mapped_column(String(8))

    __table_args__ = (CheckConstraint("outcome IN ('done', 'refused', 'failed')", "outcome"),)


class MetaTrainingRun(Leased, Base):
    """One run of a recipe, by one worker after another."""

    __tablename__ = "meta_training_runs"

    name: Mapped[str] = mapped_column(String(NAME_LENGTH))
    """The optimizer whose next versions it writes."""
    recipe: Mapped[dict[str, Any]]
    """Complete, with all defaults; `start_from` is NAME@N."""
    start_from_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id", ondelete="RESTRICT"))
    """The version whose weights are φ_0."""
    outer_steps: Mapped[int]
    outer_step: Mapped[int] = mapped_column(default=0)
    """How many are made; there is a row of `MetaTrainingMetrics` for each."""
    seconds_per_outer_step: Mapped[float | None]
    """Of the last few."""

    __table_args__ = (
        *leases.constraints(),
        Index(None, "start_from_id"),
        CheckConstraint("outer_step BETWEEN 0 AND outer_steps", "outer_step"),
        CheckConstraint("status <> 'succeeded' OR outer_step = outer_steps", "succeeded"),
    )


class MetaTrainingMetrics(Base):
    """What one outer step of a run measured; a number that is not finite is null."""

    __tablename__ = "meta_training_metrics"

    run_number: Mapped[int] = mapped_column(
        ForeignKey("meta_training_runs.number", ondelete="CASCADE"), primary_key=True
    )
    outer_step: Mapped[int] = mapped_column(primary_key=True)
    meta_loss: Mapped[float | None]
    meta_loss_held_out: Mapped[float | None]
    """L(φ) on held-out tasks, where φ was validated."""
    details: Mapped[dict[str, Any]]
    """Whatever else was measured, by name."""

    __table_args__ = (CheckConstraint("outer_step >= 1", "outer_step"),)


class TrainingCheckpoint(Base):
    """What a run goes on from: its newest training checkpoint."""

    __tablename__ = "training_checkpoints"

    run_number: Mapped[int] = mapped_column(
        ForeignKey("meta_training_runs.number", ondelete="CASCADE"), primary_key=True
    )
    outer_step: Mapped[int]
    data: Mapped[bytes] = mapped_column(LargeBinary)
    """safetensors: φ, the meta-optimizer's state, random state, the inner states of a running unroll."""
    created_at: Mapped[datetime]

    __table_args__ = (
        CheckConstraint("outer_step >= 0", "outer_step"),
        CheckConstraint("length(data) > 0", "data"),
    )


class Evaluation(Leased, Base):
    """Optimizers on tasks against baselines, carried out by one worker after another."""

    __tablename__ = "evaluations"

    plan: Mapped[dict[str, Any]]
    """Complete, with all defaults; its optimizers are NAME@N."""
    cells: Mapped[int]
    """Pairs of a task at one T and an optimizer or baseline."""
    done: Mapped[int] = mapped_column(default=0)
    """How many are finished; there is a row of `EvaluationCell` for each."""
    ranking: Mapped[list[dict[str, Any]] | None]
    """The best first, once all cells are done."""

    __table_args__ = (
        *leases.constraints(),
        CheckConstraint("done BETWEEN 0 AND cells", "done"),
        CheckConstraint("status <> 'succeeded' OR (done = cells AND ranking IS NOT NULL)", "succeeded"),
    )


class EvaluationCell(Base):
    """One optimizer on one task of an evaluation."""

    __tablename__ = "evaluation_cells"

    evaluation_number: Mapped[int] = mapped_column(
        ForeignKey("evaluations.number", ondelete="CASCADE"), primary_key=True
    )
    task: Mapped[int] = mapped_column(primary_key=True)
    """Its place in the list of the plan's tasks at each T, from 0."""
    optimizer: Mapped[str] = mapped_column(Text, primary_key=True)
    curves: Mapped[dict[str, Any]]
    """`optserve.wire.evaluations.Curves`."""
    fingerprint: Mapped[str | None] = mapped_column(String(64), index=True)
    """Of all that the curves depend on: wherever it is the same, so are they. Older cells have none."""

    __table_args__ = (CheckConstraint("task >= 0", "task"),)
