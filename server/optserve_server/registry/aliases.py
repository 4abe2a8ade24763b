"""Every query on aliases and their append-only history.

Writers hold the lock of the optimizer's row (`optimizers.get_optimizer(…, lock=True)`), so that no move is lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from optserve_server.naming import is_name
from optserve_server.registry import references
from optserve_server.registry.errors import AliasNotFound, AliasReserved, PromotionInvalid, PromotionUnproven
from optserve_server.registry.evaluations import why_not_beaten
from optserve_server.registry.models import Alias, AliasMove, Optimizer, Version
from optserve_server.registry.references import CHAMPION

SERVER = "server"
"""Who moves the aliases that no person moves."""


def list_aliases(db_session: Session, optimizer: Optimizer) -> Sequence[Alias]:
    """Where each of the optimizer's aliases points, in the order of their names."""
    return db_session.scalars(select(Alias).where(Alias.optimizer_id == optimizer.id).order_by(Alias.alias)).all()


def list_moves(db_session: Session, optimizer: Optimizer) -> Sequence[AliasMove]:
    """Every move of the optimizer's aliases, the newest first."""
    query = select(AliasMove).where(AliasMove.optimizer_id == optimizer.id).order_by(AliasMove.id.desc())
    return db_session.scalars(query).all()


def find_alias(db_session: Session, optimizer: Optimizer, alias: str) -> Alias | None:
    """One of the optimizer's aliases, if it has it."""
    if not is_name(alias):
        return None
    return db_session.scalar(select(Alias).where(Alias.optimizer_id == optimizer.id, Alias.alias == alias))


def get_alias(db_session: Session, optimizer: Optimizer, alias: str) -> Alias:
    """One of the optimizer's aliases.

    Raises:
        AliasNotFound: it has no such alias; the message names those it has.
    """
    found = find_alias(db_session, optimizer, alias)
    if found is None:
        raise AliasNotFound(optimizer.name, alias, [known.alias for known in list_aliases(db_session, optimizer)])
    return found


@dataclass(frozen=True, slots=True)
class Proof:
    """Why a version may take another champion's place: the id of an evaluation in which it won, or somebody's word."""

    evaluation: str | None = None
    force: bool = False


NO_PROOF = Proof()


def set_alias(
    db_session: Session,
    optimizer: Optimizer,
    alias: str,
    version: Version,
    *,
    moved_by: str,
    proof: Proof = NO_PROOF,
) -> Alias:
    """What a person asks for: point an alias at a version of the optimizer.

    Raises:
        AliasReserved: the server moves this alias itself.
        NameInvalid: no alias can have this name.
        PromotionInvalid: a proof of two kinds, or for another alias than `champion`.
        PromotionUnproven: another version is the champion, and this one's proof is none.
        EvaluationNotFound: there is no evaluation of that id.
    """
    _refuse_reserved(alias)
    references.require_alias(alias)
    if alias == CHAMPION:
        return _promote(db_session, optimizer, version, proof, moved_by=moved_by)
    if proof != NO_PROOF:
        raise PromotionInvalid(f"`evaluation` and `force` are for {CHAMPION!r}; {alias!r} moves without them.")
    return point(db_session, optimizer, alias, version, moved_by=moved_by)


def _promote(db_session: Session, optimizer: Optimizer, version: Version, proof: Proof, *, moved_by: str) -> Alias:
    if proof.evaluation is not None and proof.force:
        raise PromotionInvalid("`evaluation` and `force` exclude each other; send the one that is the reason.")
    before = find_alias(db_session, optimizer, CHAMPION)
    if before is None or before.number == version.number:  # there is nothing to beat
        return point(db_session, optimizer, CHAMPION, version, moved_by=moved_by)
    if not proof.force:
        winner, loser = f"{optimizer.name}@{version.number}", f"{optimizer.name}@{before.number}"
        reason: str | None = f"no evaluation was named in which {winner} beats it"
        if proof.evaluation is not None:
            reason = why_not_beaten(db_session, proof.evaluation, winner=winner, loser=loser)
        if reason is not None:
            raise PromotionUnproven(winner, loser, reason)
    return point(db_session, optimizer, CHAMPION, version, moved_by=moved_by, proof=proof)


def point(
    db_session: Session,
    optimizer: Optimizer,
    alias: str,
    version: Version,
    *,
    moved_by: str,
    proof: Proof = NO_PROOF,
) -> Alias:
    """Point any alias at a version and write the move down; where it points there already, nothing changes."""
    found = find_alias(db_session, optimizer, alias)
    if found is None:
        found = Alias(optimizer_id=optimizer.id, alias=alias, number=version.number)
        db_session.add(found)
    elif found.number == version.number:
        return found
    found.number = version.number
    move = AliasMove(optimizer_id=optimizer.id, alias=alias, number=version.number, moved_by=moved_by)
    move.forced, move.evaluation = proof.force, proof.evaluation
    db_session.add(move)
    db_session.flush()
    return found


def remove_alias(db_session: Session, optimizer: Optimizer, alias: str, *, moved_by: str) -> None:
    """Remove an alias, and write the removal down.

    Raises:
        AliasReserved: the server moves this alias itself.
        AliasNotFound: the optimizer has no such alias.
    """
    _refuse_reserved(alias)
    db_session.delete(get_alias(db_session, optimizer, alias))
    db_session.add(AliasMove(optimizer_id=optimizer.id, alias=alias, number=None, moved_by=moved_by))
    db_session.flush()


def _refuse_reserved(alias: str) -> None:
    if alias in references.KEPT_BY_SERVER:
        raise AliasReserved(alias)
