"""Every problem the server answers with: RFC 9457 `application/problem+json`, one stable `type` each."""

from dataclasses import dataclass

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:optserve:problem:"


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One kind of problem: its `slug` ends the URN, `status` is the HTTP status, `title` says it in a few words."""

    slug: str
    status: int
    title: str

    @property
    def urn(self) -> str:
        """The stable `type` of RFC 9457, section 3.1.1."""
        return TYPE_PREFIX + self.slug


MALFORMED_BODY = ProblemType("malformed-body", 400, "The body cannot be parsed")
UNAUTHORIZED = ProblemType("unauthorized", 401, "An API key is needed")
FORBIDDEN = ProblemType("forbidden", 403, "This API key may not do that")
NOT_FOUND = ProblemType("not-found", 404, "There is nothing at this address")
SESSION_NOT_FOUND = ProblemType("session-not-found", 404, "There is no such session")
CHECKPOINT_NOT_FOUND = ProblemType("checkpoint-not-found", 404, "The session has no such checkpoint")
OPTIMIZER_NOT_FOUND = ProblemType("optimizer-not-found", 404, "There is no such optimizer")
VERSION_NOT_FOUND = ProblemType("version-not-found", 404, "The optimizer has no such version")
ALIAS_NOT_FOUND = ProblemType("alias-not-found", 404, "The optimizer has no such alias")
API_KEY_NOT_FOUND = ProblemType("api-key-not-found", 404, "There is no such API key")
RUN_NOT_FOUND = ProblemType("run-not-found", 404, "There is no such meta-training run")
EVALUATION_NOT_FOUND = ProblemType("evaluation-not-found", 404, "There is no such evaluation")
METHOD_NOT_ALLOWED = ProblemType("method-not-allowed", 405, "This address does not take that method")
REQUEST_TOO_SLOW = ProblemType("request-too-slow", 408, "The request comes too slowly")
STEP_CONFLICT = ProblemType("step-conflict", 409, "This is not the session's next step")
STEP_NOT_RETAINED = ProblemType("step-not-retained", 409, "The session cannot go back to that step")
STATE_MISMATCH = ProblemType("state-mismatch", 409, "The state is of another optimizer or other parameters")
IDEMPOTENCY_CONFLICT = ProblemType("idempotency-conflict", 409, "The idempotency key was used for another request")
ALIAS_RESERVED = ProblemType("alias-reserved", 409, "The server keeps this alias itself")
PROMOTION_UNPROVEN = ProblemType("promotion-unproven", 409, "Nothing proves that the version beats the champion")
API_KEY_EXISTS = ProblemType("api-key-exists", 409, "Another API key has this name")
RUN_CONFLICT = ProblemType("run-conflict", 409, "The meta-training run's status does not allow that")
EVALUATION_CONFLICT = ProblemType("evaluation-conflict", 409, "The evaluation is over")
SESSION_EXPIRED = ProblemType("session-expired", 410, "The session has expired")
BODY_TOO_LARGE = ProblemType("body-too-large", 413, "The body is longer than this request can be")
UNSUPPORTED_MEDIA_TYPE = ProblemType("unsupported-media-type", 415, "The body is of an unknown media type")
REQUEST_INVALID = ProblemType("request-invalid", 422, "The request is not valid")
GRADIENTS_INVALID = ProblemType("gradients-invalid", 422, "The gradients cannot be used")
HYPERPARAMETERS_INVALID = ProblemType("hyperparameters-invalid", 422, "The hyperparameters cannot be used")
PARAMETERS_NEEDED = ProblemType("parameters-needed", 422, "The optimizer needs the parameters' values")
WEIGHTS_INVALID = ProblemType("weights-invalid", 422, "The weights file cannot be imported")
RECIPE_INVALID = ProblemType("recipe-invalid", 422, "The recipe is not valid")
EVALUATION_INVALID = ProblemType("evaluation-invalid", 422, "The evaluation cannot be made")
QUOTA_EXCEEDED = ProblemType("quota-exceeded", 429, "A limit of this API key is reached")
HEADERS_TOO_LARGE = ProblemType("headers-too-large", 431, "The request's line and headers are too long")
SESSION_DAMAGED = ProblemType("session-damaged", 500, "A file of the session is damaged")
INTERNAL = ProblemType("internal-error", 500, "The server failed")
SERVER_BUSY = ProblemType("server-busy", 503, "The server has no room for another body now")
DRAINING = ProblemType("draining", 503, "The server is shutting down")
NOT_READY = ProblemType("not-ready", 503, "The server is not ready")
DATABASE_UNAVAILABLE = ProblemType("database-unavailable", 503, "The database cannot be reached")
STATE_TOO_LARGE = ProblemType("state-too-large", 507, "There is no room for this hidden state")
STORAGE_FULL = ProblemType("storage-full", 507, "The server's disk is full")

ALL: tuple[ProblemType, ...] = tuple(value for value in list(globals().values()) if isinstance(value, ProblemType))
BY_URN: dict[str, ProblemType] = {problem.urn: problem for problem in ALL}
