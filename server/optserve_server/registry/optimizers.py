"""Every query on optimizers and their versions.

Each function takes the SQLAlchemy session of a transaction; those that write need `Database.session(write=True)`, and
lock the optimizer's row first, so that numbers have no gaps.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased, undefer

from optserve_server.naming import is_name
from optserve_server.optimizers import HAND_DESIGNED
from optserve_server.registry import aliases, references
from optserve_server.registry.aliases import SERVER
from optserve_server.registry.errors import NameInvalid, OptimizerNotFound, VersionNotFound, WeightsInvalid
from optserve_server.registry.models import Alias, Optimizer, Version
from optserve_server.registry.references import BEST, CHAMPION, LATEST
from optserve_server.registry.weight_files import WeightsFile

HELD_OUT = "meta_loss_held_out"
"""The metric by which `best` is chosen: the meta-loss on held-out tasks."""

_NAMES_COMPARED = 1000  # how many names a message looks through for a near miss


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """One version with all that serving it takes, free of the transaction it was read in."""

    name: str
    number: int
    sha256: str
    weights: bytes
    architecture: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Entry:
    """An optimizer with the versions a list tells of; `served` is what its bare name means."""

    optimizer: Optimizer
    latest: int
    champion: int | None
    served: Version


# --- reading ----------------------------------------------------------------------------------------------------------


def resolve(db_session: Session, reference: str) -> StoredVersion:
    """The version that NAME (`champion`, else the newest), NAME@7 or NAME@ALIAS stands for.

    Raises:
        OptimizerNotFound, VersionNotFound, AliasNotFound: the message names what comes near.
        NameInvalid: the reference ends in @.
    """
    version = get_referenced(db_session, reference, with_weights=True)
    return StoredVersion(
        name=version.optimizer.name,
        number=version.number,
        sha256=version.sha256,
        weights=version.weights,
        architecture=version.architecture,
        created_at=version.created_at,
    )


def get_referenced(db_session: Session, reference: str, *, with_weights: bool = False) -> Version:
    """The same as it is stored; its weights come along only where they are asked for.

    Raises:
        OptimizerNotFound, VersionNotFound, AliasNotFound: the message names what comes near.
        NameInvalid: the reference ends in @.
    """
    parsed = references.parse(reference)
    if parsed.number is not None:
        number = parsed.number
    elif parsed.alias is not None:
        number = aliases.get_alias(db_session, get_optimizer(db_session, parsed.name), parsed.alias).number
    else:
        number = get_entry(db_session, parsed.name).served.number
    return get_version(db_session, parsed.name, number, with_weights=with_weights)


def list_entries(db_session: Session, *, limit: int, after: str = "") -> list[Entry]:
    """At most `limit` optimizers in the order of their names, beginning behind the name `after`."""
    query = _entries().where(Optimizer.name > after).order_by(Optimizer.name).limit(limit)
    return [Entry(*row) for row in db_session.execute(query)]


def get_entry(db_session: Session, name: str) -> Entry:
    """One optimizer as a list tells of it.

    Raises:
        OptimizerNotFound: there is none of that name.
    """
    optimizer = get_optimizer(db_session, name)
    return Entry(*db_session.execute(_entries().where(Optimizer.id == optimizer.id)).one())


def get_optimizer(db_session: Session, name: str, *, lock: bool = False) -> Optimizer:
    """One optimizer; with `lock`, nobody else writes to it until the transaction ends.

    Raises:
        OptimizerNotFound: there is none of that name.
    """
    optimizer = _find_optimizer(db_session, name, lock=lock)
    if optimizer is None:
        known = db_session.scalars(select(Optimizer.name).order_by(Optimizer.name).limit(_NAMES_COMPARED)).all()
        raise OptimizerNotFound(name, known)
    return optimizer


def get_version(db_session: Session, name: str, number: int, *, with_weights: bool = False) -> Version:
    """One version; its weights come along only where they are asked for.

    Raises:
        OptimizerNotFound, VersionNotFound: there is no such optimizer, or no such version of it.
    """
    optimizer = get_optimizer(db_session, name)
    version = None
    if 1 <= number <= references.NEWEST_NUMBER:
        query = select(Version).where(Version.optimizer_id == optimizer.id, Version.number == number)
        version = db_session.scalar(query.options(undefer(Version.weights)) if with_weights else query)
    if version is None:
        raise VersionNotFound(name, number, _newest(db_session, optimizer))
    return version


def list_versions(
    db_session: Session, optimizer: Optimizer, *, limit: int | None = None, below: int | None = None
) -> Sequence[Version]:
    """Versions without their weights, the newest first: those with a number `below` the given one, at most `limit`."""
    query = select(Version).where(Version.optimizer_id == optimizer.id).order_by(Version.number.desc()).limit(limit)
    if below is not None:
        query = query.where(Version.number < below)
    return db_session.scalars(query).all()


def list_versions_of_runs(db_session: Session, runs: Iterable[str]) -> dict[str, list[int]]:
    """The numbers of the versions that each of these runs has written, the oldest first, by the run's id."""
    query = select(Version.run, Version.number).where(Version.run.in_(runs)).order_by(Version.outer_step)
    found: dict[str, list[int]] = {}
    for run, number in db_session.execute(query):
        found.setdefault(str(run), []).append(number)
    return found


def find_newest_version_of_run(db_session: Session, run: str) -> Version | None:
    """The last version that a run has written, if there is one."""
    query = select(Version).where(Version.run == run).order_by(Version.outer_step.desc()).limit(1)
    return db_session.scalar(query)


def find_version_by_content(db_session: Session, name: str, sha256: str) -> Version | None:
    """The first version of the optimizer with exactly these weights and metadata."""
    query = (
        select(Version)
        .join(Optimizer, Version.optimizer_id == Optimizer.id)
        .where(Optimizer.name == name, Version.sha256 == sha256)
    )
    return db_session.scalars(query.order_by(Version.number).limit(1)).first()


# --- writing ----------------------------------------------------------------------------------------------------------


def claim_name(db_session: Session, name: str) -> Optimizer:
    """The optimizer of this name, created if need be, locked until the transaction ends.

    Raises:
        NameInvalid: no optimizer can have this name.
    """
    references.require_name(name)
    optimizer = _find_optimizer(db_session, name, lock=True)
    if optimizer is not None:
        return optimizer
    optimizer = Optimizer(name=name, description="")
    try:
        with db_session.begin_nested():
            db_session.add(optimizer)
    except IntegrityError:  # another process was first
        return get_optimizer(db_session, name, lock=True)
    return optimizer


def add_version(
    db_session: Session,
    name: str,
    file: WeightsFile,
    *,
    parent: Version | None = None,
    run: str | None = None,
    outer_step: int | None = None,
) -> Version:
    """Add the optimizer's next version, and move `latest` and, if its held-out meta-loss is the lowest, `best`.

    `run` and `outer_step` say which meta-training run wrote it, and after which of its outer steps.

    Raises:
        NameInvalid: no optimizer can have this name, or it belongs to another one that is built in.
        WeightsInvalid: the optimizer's versions so far are of another kind.
    """
    if name in HAND_DESIGNED and file.optimizer.kind != name:
        raise NameInvalid(f"{name!r} is the optimizer designed by hand that is built in; choose another name.")
    optimizer = claim_name(db_session, name)
    _require_kind(db_session, optimizer, file.optimizer.kind)
    version = Version(
        optimizer=optimizer,
        number=_newest(db_session, optimizer) + 1,
        sha256=file.sha256,
        weights=file.data,
        architecture=file.architecture,
        recipe=file.recipe,
        metrics=file.metrics,
        environment=file.environment,
        parent=parent,
        run=run,
        outer_step=outer_step,
    )
    db_session.add(version)
    optimizer.description = file.description or optimizer.description
    db_session.flush()
    aliases.point(db_session, optimizer, LATEST, version, moved_by=SERVER)
    if _is_best(db_session, optimizer, version):
        aliases.point(db_session, optimizer, BEST, version, moved_by=SERVER)
    return version


def _require_kind(db_session: Session, optimizer: Optimizer, kind: str) -> None:
    newest = select(Version).where(Version.optimizer_id == optimizer.id).order_by(Version.number.desc()).limit(1)
    before = db_session.scalar(newest)
    if before is not None and before.architecture["kind"] != kind:
        raise WeightsInvalid(
            f"{optimizer.name!r} is of the kind {before.architecture['kind']!r}, and these weights are of the kind "
            f"{kind!r}; import them under another name."
        )


# --- parts ------------------------------------------------------------------------------------------------------------


def _entries() -> Any:
    latest, champion = aliased(Alias), aliased(Alias)
    return (
        select(Optimizer, latest.number, champion.number, Version)
        .join(latest, (latest.optimizer_id == Optimizer.id) & (latest.alias == LATEST))
        .outerjoin(champion, (champion.optimizer_id == Optimizer.id) & (champion.alias == CHAMPION))
        .join(
            Version,
            (Version.optimizer_id == Optimizer.id) & (Version.number == func.coalesce(champion.number, latest.number)),
        )
    )


def _find_optimizer(db_session: Session, name: str, *, lock: bool) -> Optimizer | None:
    if not is_name(name):
        return None
    query = select(Optimizer).where(Optimizer.name == name)
    return db_session.scalar(query.with_for_update() if lock else query)


def _newest(db_session: Session, optimizer: Optimizer) -> int:
    return db_session.scalar(select(func.max(Version.number)).where(Version.optimizer_id == optimizer.id)) or 0


def _is_best(db_session: Session, optimizer: Optimizer, version: Version) -> bool:
    loss = _held_out_loss(version)
    if loss is None:
        return False
    best = aliases.find_alias(db_session, optimizer, BEST)
    if best is None:
        return True
    lowest = _held_out_loss(get_version(db_session, optimizer.name, best.number))
    return lowest is None or loss < lowest


def _held_out_loss(version: Version) -> float | None:
    loss = version.metrics.get(HELD_OUT)
    if isinstance(loss, bool) or not isinstance(loss, int | float) or not math.isfinite(loss):
        return None
    return float(loss)
