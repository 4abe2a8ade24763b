"""Everything the client raises.

OptserveError
├── AddressInvalid              the server's URL cannot be one
├── ConnectionFailed            no reply after every try
├── ReplyInvalid                a reply that is not of this protocol
├── RunFailed                   a meta-training run that was waited for
├── EvaluationFailed            an evaluation that was waited for
└── ProblemError                the server answered with a problem (RFC 9457)
    ├── MalformedBody           400
    ├── Unauthorized            401
    ├── Forbidden               403
    ├── NotFound                404
    │   ├── SessionNotFound
    │   ├── CheckpointNotFound
    │   ├── OptimizerNotFound
    │   ├── VersionNotFound
    │   ├── AliasNotFound
    │   ├── ApiKeyNotFound
    │   ├── RunNotFound
    │   └── EvaluationNotFound
    ├── MethodNotAllowed        405
    ├── RequestTooSlow          408
    ├── StepConflict            409, with `next_step`
    ├── StepNotRetained         409, with `oldest_step` and `next_step`
    ├── StateMismatch           409
    ├── IdempotencyConflict     409
    ├── AliasReserved           409
    ├── PromotionUnproven       409
    ├── ApiKeyExists            409
    ├── RunConflict             409
    ├── EvaluationConflict      409
    ├── SessionExpired          410
    ├── BodyTooLarge            413
    ├── UnsupportedMediaType    415
    ├── RequestInvalid          422
    ├── GradientsInvalid        422, with `parameter` and `index`
    ├── HyperparametersInvalid  422
    ├── ParametersNeeded        422
    ├── WeightsInvalid          422
    ├── RecipeInvalid           422, with `path`
    ├── EvaluationInvalid       422
    ├── QuotaExceeded           429, with `limit` and `at_most`
    ├── HeadersTooLarge         431
    ├── InternalError           500
    ├── SessionDamaged          500, with `step`
    ├── ServerBusy              503
    ├── Draining                503
    ├── NotReady                503, with `checks`
    ├── DatabaseUnavailable     503
    ├── StateTooLarge           507
    └── StorageFull             507

A problem of a type that this version of the client does not know is a plain ProblemError.
"""

import json
from typing import Any, ClassVar

from optserve.wire import problems
from optserve.wire.evaluations import EvaluationSummary
from optserve.wire.meta_training import RunInfo
from optserve.wire.problems import ProblemType


class OptserveError(Exception):
    """Base of everything the client raises."""


class AddressInvalid(OptserveError, ValueError):
    """The server's URL is neither http://HOST:PORT, https://HOST nor unix:///PATH."""


class ConnectionFailed(OptserveError, ConnectionError):
    """The server could not be reached, or did not answer in time.

    Nothing is lost: a session takes the same call again. Of a RemoteOptimizer with several groups, those before the one
    it failed at have been stepped already.
    """


class ReplyInvalid(OptserveError):
    """The reply is not of this protocol: something else answers there, or the server is of another version."""


class RunFailed(OptserveError):
    """A meta-training run that was waited for failed; the message says why, and which version is still good.

    Attributes:
        info: the run as it ended.
    """

    def __init__(self, message: str, info: RunInfo) -> None:
        super().__init__(message)
        self.info = info

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.info)


class EvaluationFailed(OptserveError):
    """An evaluation that was waited for failed; the message says why.

    Attributes:
        info: the evaluation as it ended, without its curves.
    """

    def __init__(self, message: str, info: EvaluationSummary) -> None:
        super().__init__(message)
        self.info = info

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.info)


class ProblemError(OptserveError):
    """The server answered with a problem.

    Attributes:
        type: the stable URN of the problem's kind; `about:blank` where the reply named none.
        status: the HTTP status.
        title: the kind in a few words.
        detail: what is wrong and how to mend it.
        fields: the problem's further members, such as `next_step`.
    """

    problem: ClassVar[ProblemType | None] = None

    def __init__(self, detail: str = "", *, type: str = "", status: int = 0, title: str = "", **fields: Any) -> None:
        known = self.problem
        self.type: str = type or (known.urn if known else "about:blank")
        self.status: int = status or (known.status if known else 0)
        self.title: str = title or (known.title if known else "The server refused the request")
        self.detail: str = detail or (self.__doc__ or self.title).partition("\n")[0]
        self.fields: dict[str, Any] = fields
        super().__init__(self.detail)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.detail, self.type, self.status, self.title, self.fields)


class MalformedBody(ProblemError):
    """The body cannot be parsed."""

    problem = problems.MALFORMED_BODY


class Unauthorized(ProblemError):
    """An API key is needed: pass `api_key` or set OPTSERVE_API_KEY."""

    problem = problems.UNAUTHORIZED


class Forbidden(ProblemError):
    """This API key may not do that: use one of scope admin."""

    problem = problems.FORBIDDEN


class NotFound(ProblemError):
    """There is nothing at this address."""

    problem = problems.NOT_FOUND


class SessionNotFound(NotFound):
    """There is no such session: it was closed, or belongs to another key."""

    problem = problems.SESSION_NOT_FOUND


class CheckpointNotFound(NotFound):
    """The session has no such checkpoint."""

    problem = problems.CHECKPOINT_NOT_FOUND


class OptimizerNotFound(NotFound):
    """There is no such optimizer: `optserve optimizers list` shows all of them."""

    problem = problems.OPTIMIZER_NOT_FOUND


class VersionNotFound(NotFound):
    """The optimizer has no such version."""

    problem = problems.VERSION_NOT_FOUND


class AliasNotFound(NotFound):
    """The optimizer has no such alias."""

    problem = problems.ALIAS_NOT_FOUND


class ApiKeyNotFound(NotFound):
    """There is no such API key."""

    problem = problems.API_KEY_NOT_FOUND


class RunNotFound(NotFound):
    """There is no such meta-training run: `optserve runs list` shows all of them."""

    problem = problems.RUN_NOT_FOUND


class EvaluationNotFound(NotFound):
    """There is no such evaluation."""

    problem = problems.EVALUATION_NOT_FOUND


class MethodNotAllowed(ProblemError):
    """This address does not take that method."""

    problem = problems.METHOD_NOT_ALLOWED


class RequestTooSlow(ProblemError):
    """The request came too slowly, or stopped half-way."""

    problem = problems.REQUEST_TOO_SLOW


class StepConflict(ProblemError):
    """This is not the session's next step, or the last step was sent again with other gradients."""

    problem = problems.STEP_CONFLICT

    @property
    def next_step(self) -> int | None:
        """The only step the session takes next."""
        return self.fields.get("next_step")


class StepNotRetained(ProblemError):
    """The session cannot go back to that step: it is not kept any more, or has not been reached."""

    problem = problems.STEP_NOT_RETAINED

    @property
    def oldest_step(self) -> int | None:
        """The oldest step that can be gone back to."""
        return self.fields.get("oldest_step")

    @property
    def next_step(self) -> int | None:
        """The step the session takes next, the newest that can be gone back to."""
        return self.fields.get("next_step")


class StateMismatch(ProblemError):
    """The state is of another optimizer version or of other parameters."""

    problem = problems.STATE_MISMATCH


class IdempotencyConflict(ProblemError):
    """The idempotency key was used for another request."""

    problem = problems.IDEMPOTENCY_CONFLICT


class AliasReserved(ProblemError):
    """The server keeps this alias itself."""

    problem = problems.ALIAS_RESERVED


class PromotionUnproven(ProblemError):
    """Nothing proves that the version beats the present champion: name an `evaluation`, or say `force=True`."""

    problem = problems.PROMOTION_UNPROVEN


class ApiKeyExists(ProblemError):
    """Another API key has this name: choose another, or revoke that key first."""

    problem = problems.API_KEY_EXISTS


class RunConflict(ProblemError):
    """The meta-training run's status does not allow that."""

    problem = problems.RUN_CONFLICT


class EvaluationConflict(ProblemError):
    """The evaluation is over, so there is nothing to cancel."""

    problem = problems.EVALUATION_CONFLICT


class SessionExpired(ProblemError):
    """The session has expired: create another, with a longer `ttl_seconds`."""

    problem = problems.SESSION_EXPIRED


class BodyTooLarge(ProblemError):
    """The body is longer than this request can be."""

    problem = problems.BODY_TOO_LARGE


class UnsupportedMediaType(ProblemError):
    """The body is of a media type the server does not know."""

    problem = problems.UNSUPPORTED_MEDIA_TYPE


class RequestInvalid(ProblemError, ValueError):
    """The request is not valid."""

    problem = problems.REQUEST_INVALID


class GradientsInvalid(ProblemError, ValueError):
    """The gradients cannot be used; the hidden state is untouched. Raised by the client too, before it sends them."""

    problem = problems.GRADIENTS_INVALID

    @property
    def parameter(self) -> str | None:
        """Name of the parameter whose gradient it is, where there is one to blame."""
        return self.fields.get("parameter")

    @property
    def index(self) -> list[int] | None:
        """Where in that gradient, along each dimension, where one number is to blame."""
        return self.fields.get("index")


class HyperparametersInvalid(ProblemError, ValueError):
    """The hyperparameters cannot be used."""

    problem = problems.HYPERPARAMETERS_INVALID


class ParametersNeeded(ProblemError):
    """The optimizer needs the parameters' values: send them with `session.set_parameters`."""

    problem = problems.PARAMETERS_NEEDED


class WeightsInvalid(ProblemError, ValueError):
    """The weights file cannot be imported."""

    problem = problems.WEIGHTS_INVALID


class RecipeInvalid(ProblemError, ValueError):
    """The recipe is not valid."""

    problem = problems.RECIPE_INVALID

    @property
    def path(self) -> str | None:
        """The key that is wrong, as `meta_optimizer.learning_rate`; empty where it is the whole recipe."""
        return self.fields.get("path")


class EvaluationInvalid(ProblemError):
    """The evaluation cannot be made; the message begins with the key that is wrong."""

    problem = problems.EVALUATION_INVALID


class QuotaExceeded(ProblemError):
    """A limit of this API key is reached."""

    problem = problems.QUOTA_EXCEEDED

    @property
    def limit(self) -> str | None:
        """Which limit: a member of `Limits`."""
        return self.fields.get("limit")

    @property
    def at_most(self) -> float | None:
        """The limit itself."""
        return self.fields.get("at_most")


class HeadersTooLarge(ProblemError):
    """The request's line and headers are too long: too many names in `skip`, or a proxy that adds too much."""

    problem = problems.HEADERS_TOO_LARGE


class InternalError(ProblemError):
    """The server failed: its log says why."""

    problem = problems.INTERNAL


class ServerBusy(ProblemError):
    """The server has no room for another body now: try again in a moment."""

    problem = problems.SERVER_BUSY


class Draining(ProblemError):
    """The server is shutting down: try again in a moment."""

    problem = problems.DRAINING


class NotReady(ProblemError):
    """The server is not ready: something that it needs is away."""

    problem = problems.NOT_READY


class DatabaseUnavailable(ProblemError):
    """The server's database cannot be reached: try again in a moment. Steps go on without it."""

    problem = problems.DATABASE_UNAVAILABLE


class StateTooLarge(ProblemError):
    """There is no room for this hidden state: close sessions, or give the server more memory."""

    problem = problems.STATE_TOO_LARGE


class SessionDamaged(ProblemError):
    """A file of the session is not what was written; the message says to which step the session can go back."""

    problem = problems.SESSION_DAMAGED

    @property
    def step(self) -> int | None:
        """The first step that is lost, where it is known: `session.rewind(step)` gives up what follows."""
        return self.fields.get("step")


class StorageFull(ProblemError):
    """The server's disk is full. Nothing was changed and nothing is lost: send it again when there is room."""

    problem = problems.STORAGE_FULL


def _descendants(base: type[ProblemError]) -> list[type[ProblemError]]:
    return [found for child in base.__subclasses__() for found in (child, *_descendants(child))]


BY_URN: dict[str, type[ProblemError]] = {c.problem.urn: c for c in _descendants(ProblemError) if c.problem}
"""The class of each problem type."""


def from_reply(status: int, content: bytes | bytearray) -> ProblemError:
    """The exception for a reply of status 400 or above, whether or not its body is a problem document."""
    try:
        members = json.loads(content)
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict):
        text = bytes(content[:200]).decode(errors="replace").strip()
        return ProblemError(f"the server answered {status}" + (f": {text}" if text else ""), status=status)
    type_, title, detail = (str(members.pop(name, "") or "") for name in ("type", "title", "detail"))
    members.pop("status", None)
    fields = {name: value for name, value in members.items() if name != "self"}
    detail = detail or title or f"the server answered {status}"
    return BY_URN.get(type_, ProblemError)(detail, type=type_, status=status, title=title, **fields)


def _rebuild(
    class_: type[ProblemError], detail: str, type_: str, status: int, title: str, fields: dict[str, Any]
) -> ProblemError:
    return class_(detail, type=type_, status=status, title=title, **fields)
