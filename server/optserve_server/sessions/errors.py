"""What can go wrong with a session; each error knows the problem that the API answers with.

SessionError
├── SessionNotFound
├── SessionExpired
├── CheckpointNotFound
├── StepConflict
├── StepNotRetained
├── StateMismatch
├── StateMalformed
├── StateTooLarge
├── StorageFull
├── SessionDamaged
├── VersionMissing
├── IdempotencyConflict
├── QuotaExceeded
└── Invalid
    ├── RequestInvalid
    ├── ParametersInvalid
    ├── GradientsInvalid
    ├── HyperparametersInvalid
    └── ParametersNeeded
"""

import errno
from typing import Any, ClassVar

import structlog

from optserve.wire import problems
from optserve.wire.problems import ProblemType
from optserve_server.naming import nearest, shown
from optserve_server.sessions.storage.errors import Damaged

log = structlog.get_logger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class SessionError(Exception):
    """Base of the sessions' errors. The message says how to mend it; `fields` are further members of the problem."""

    problem: ClassVar[ProblemType]

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.fields = fields


class SessionNotFound(SessionError):
    """No session has this id."""

    problem = problems.SESSION_NOT_FOUND

    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"There is no session {shown(session_id)}: it was deleted, or another server holds it, or it is "
            "another key's. Create one with POST /v1/sessions and, if you kept its state, PUT the state into it."
        )


class SessionExpired(SessionError):
    """The session was not used for its `ttl_seconds`."""

    problem = problems.SESSION_EXPIRED

    def __init__(self, session_id: str, expired_at: str) -> None:
        super().__init__(
            f"Session {shown(session_id)} expired at {expired_at}, `ttl_seconds` after its last step. "
            "Create another one with a longer `ttl_seconds`.",
            expired_at=expired_at,
        )


class CheckpointNotFound(SessionError):
    """The session has no checkpoint of that name."""

    problem = problems.CHECKPOINT_NOT_FOUND

    def __init__(self, name: str, known: list[str]) -> None:
        has = f"It has {', '.join(known[:20])}." if known else "It has none: PUT …/checkpoints/NAME saves one."
        super().__init__(f"The session has no checkpoint {shown(name)}{nearest(name, known)}. {has}")


class StepConflict(SessionError):
    """Not the session's next step, nor its last one sent again unchanged."""

    problem = problems.STEP_CONFLICT

    def __init__(self, step: int, next_step: int) -> None:
        if step == next_step - 1:
            reason = f"Step {step} was taken with another request, or is no longer kept"
        else:
            reason = f"Step {shown(step)} is not next"
        super().__init__(f"{reason}: send step {next_step}.", next_step=next_step)


class StepNotRetained(SessionError):
    """The session cannot go back to that step."""

    problem = problems.STEP_NOT_RETAINED

    def __init__(self, step: int, oldest_step: int, next_step: int) -> None:
        reason = "has not been reached" if step > next_step else "is not kept any more"
        super().__init__(
            f"Step {shown(step)} {reason}: the session can go back to the steps {oldest_step} to {next_step}. "
            "PUT …/checkpoints/NAME keeps a state for longer.",
            oldest_step=oldest_step,
            next_step=next_step,
        )


class StateMismatch(SessionError):
    """A state of another optimizer version or of other parameters."""

    problem = problems.STATE_MISMATCH


class StateMalformed(SessionError):
    """Bytes that are no session's state."""

    problem = problems.MALFORMED_BODY


class StateTooLarge(SessionError):
    """The limit on the memory of all sessions would be passed."""

    problem = problems.STATE_TOO_LARGE

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(
            f"This needs {needed} bytes of hidden state and {free} are free. Delete sessions or checkpoints, "
            "or give the server more with --state-memory.",
            bytes_needed=needed,
            bytes_free=free,
        )


class StorageFull(SessionError):
    """The disk has no room for what must be written before a reply."""

    problem = problems.STORAGE_FULL

    def __init__(self) -> None:
        super().__init__(
            "The server's disk is full, or a limit on its files is reached: nothing was changed, and all earlier steps "
            "are safe. Send the request again when there is room in the server's --data-dir."
        )


class SessionDamaged(SessionError):
    """A file of the session is not what was written."""

    problem = problems.SESSION_DAMAGED

    def __init__(self, session_id: str, damage: Damaged, advice: str = "") -> None:
        """`advice`: what can be done, where that is not to go back to before the damage."""
        self.damage = damage
        fields = {} if damage.step is None else {"step": damage.step}
        if not advice and damage.step is not None:
            advice = f'POST …/restore {{"step": {damage.step}}} goes back to before that.'
        elif not advice:
            advice = (
                "What is left: restore a checkpoint that is sound, or PUT a state that was kept elsewhere into a new "
                "session. `optserve sessions verify` says of each file what can be done."
            )
        reason = f"The files of session {session_id} are damaged ({damage.path.name}: {damage.reason})"
        super().__init__(f"{reason}. {advice}", **fields)


class VersionMissing(SessionError):
    """The optimizer version that the session holds is not there any more."""

    problem = problems.VERSION_NOT_FOUND


class IdempotencyConflict(SessionError):
    """The idempotency key came before, with another body."""

    problem = problems.IDEMPOTENCY_CONFLICT

    def __init__(self, key: str) -> None:
        super().__init__(
            f"The idempotency key {shown(key)} was used for a request with another body; take a new key for a new one."
        )


class QuotaExceeded(SessionError):
    """The owner holds as much as it may."""

    problem = problems.QUOTA_EXCEEDED

    def __init__(self, owner: str, limit: str, at_most: int, used: int, more: int) -> None:
        super().__init__(
            f"The API key {owner!r} has {used} {limit} and may have {at_most}; this session would be {more} more. "
            "Delete sessions that are not needed, or ask whoever runs the server for more.",
            limit=limit,
            at_most=at_most,
            used=used,
        )


class Invalid(SessionError):
    """Something in a request cannot be used."""


class RequestInvalid(Invalid):
    """A field of a request, at the JSON pointer `pointer`."""

    problem = problems.REQUEST_INVALID

    def __init__(self, message: str, pointer: str = "", **fields: Any) -> None:
        if pointer:
            fields["errors"] = [{"pointer": "#" + pointer, "detail": message}]
        super().__init__(message, **fields)


class ParametersInvalid(Invalid):
    """The values of θ."""

    problem = problems.REQUEST_INVALID


class GradientsInvalid(Invalid):
    """The gradients of a step."""

    problem = problems.GRADIENTS_INVALID


class HyperparametersInvalid(Invalid):
    """The hyperparameters of a hand-designed optimizer."""

    problem = problems.HYPERPARAMETERS_INVALID


class ParametersNeeded(Invalid):
    """The optimizer cannot step without θ."""

    problem = problems.PARAMETERS_NEEDED


def session_damaged(session_id: str, damage: Damaged) -> SessionDamaged:
    """What to raise where a session is refused because of damage, which the server's log is told of."""
    log.warning("a session is damaged", session=session_id, file=damage.path.name, reason=damage.reason)
    return SessionDamaged(session_id, damage)


def storage_error(error: OSError) -> Exception:
    """What to raise where something could not be written."""
    return StorageFull() if error.errno in _FULL else error
