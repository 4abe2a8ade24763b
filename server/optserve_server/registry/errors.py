"""What can go wrong in the registry; each error knows the problem that the API answers with.

RegistryError
├── NotFound
│   ├── OptimizerNotFound
│   ├── VersionNotFound
│   ├── AliasNotFound
│   ├── ApiKeyNotFound
│   ├── RunNotFound
│   └── EvaluationNotFound
├── AliasReserved
├── PromotionUnproven
├── PromotionInvalid
├── ApiKeyExists
├── ApiKeyInvalid
├── NameInvalid
├── OuterStepsInvalid
├── RunConflict
├── EvaluationConflict
└── WeightsInvalid
    └── WeightsMalformed
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from optserve.wire import problems
from optserve.wire.problems import ProblemType
from optserve_server.naming import SHOWN, nearest, shown


class RegistryError(Exception):
    """Base of the registry's errors. The message says how to mend it; `fields` are further members of the problem."""

    problem: ClassVar[ProblemType]

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.fields = fields


class NotFound(RegistryError):
    """What a reference names does not exist."""


class OptimizerNotFound(NotFound):
    """There is no optimizer of that name."""

    problem = problems.OPTIMIZER_NOT_FOUND

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(
            f"There is no optimizer {shown(name)}{nearest(name.lower(), known)}. GET /v1/optimizers lists all of them.",
            optimizer=name[:SHOWN],
        )


class VersionNotFound(NotFound):
    """The optimizer exists, but not that version of it."""

    problem = problems.VERSION_NOT_FOUND

    def __init__(self, optimizer: str, number: int | str, newest: int) -> None:
        versions = "only version 1" if newest == 1 else f"versions 1 to {newest}"
        super().__init__(
            f"{optimizer!r} has no version {str(number)[:SHOWN]}; it has {versions}.",
            optimizer=optimizer,
            newest=newest,
        )


class AliasNotFound(NotFound):
    """The optimizer exists, but no such alias points at a version of it."""

    problem = problems.ALIAS_NOT_FOUND

    def __init__(self, optimizer: str, alias: str, known: Sequence[str]) -> None:
        super().__init__(
            f"{optimizer!r} has no alias {shown(alias)}{nearest(alias.lower(), known)}. It has {', '.join(known)}.",
            optimizer=optimizer,
            aliases=list(known),
        )


class ApiKeyNotFound(NotFound):
    """No API key has this id, or no unrevoked one this name."""

    problem = problems.API_KEY_NOT_FOUND

    def __init__(self, id_or_name: str, known: Sequence[str], *, was_revoked: bool) -> None:
        gone = f"The API key {shown(id_or_name)} is revoked already."
        unknown = f"There is no API key {shown(id_or_name)}{nearest(id_or_name, known)}."
        super().__init__(
            f"{gone if was_revoked else unknown} `optserve keys list` and GET /v1/api-keys list all of them."
        )


class RunNotFound(NotFound):
    """No meta-training run has this id."""

    problem = problems.RUN_NOT_FOUND

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"There is no meta-training run {shown(run_id)}. GET /v1/meta-training-runs lists all of them."
        )


class EvaluationNotFound(NotFound):
    """No evaluation has this id."""

    problem = problems.EVALUATION_NOT_FOUND

    def __init__(self, evaluation_id: str) -> None:
        super().__init__(f"There is no evaluation {shown(evaluation_id)}. GET /v1/evaluations lists all of them.")


class AliasReserved(RegistryError):
    """The server moves this alias itself."""

    problem = problems.ALIAS_RESERVED

    def __init__(self, alias: str) -> None:
        super().__init__(
            f"The server moves the alias {alias!r} itself; choose another alias, such as 'champion'.", alias=alias
        )


class PromotionUnproven(RegistryError):
    """A version is to take another champion's place, and nothing proves that it is better."""

    problem = problems.PROMOTION_UNPROVEN

    def __init__(self, version: str, champion: str, reason: str) -> None:
        super().__init__(
            f"{champion} is the champion, and {reason}. Make an evaluation of both (`optserve evaluate {version} "
            f"{champion}`, POST /v1/evaluations) and name it as `evaluation` (--evaluation ID), or put {version} there "
            'all the same with `"force": true` (--force).',
            champion=champion,
        )


class PromotionInvalid(RegistryError):
    """What is said of a promotion makes no sense."""

    problem = problems.REQUEST_INVALID


class ApiKeyExists(RegistryError):
    """An unrevoked API key has this name."""

    problem = problems.API_KEY_EXISTS

    def __init__(self, name: str) -> None:
        super().__init__(f"There is an API key {shown(name)} already; choose another name, or revoke that one first.")


class ApiKeyInvalid(RegistryError):
    """No API key can be made so; the message says what is wrong."""

    problem = problems.REQUEST_INVALID


class NameInvalid(RegistryError):
    """No optimizer or alias can have this name."""

    problem = problems.REQUEST_INVALID


class OuterStepsInvalid(RegistryError):
    """A run cannot be resumed with so few outer steps."""

    problem = problems.REQUEST_INVALID

    def __init__(self, outer_steps: int, least: int) -> None:
        detail = f"outer_steps is {outer_steps}, but the run has {least} already; give as many, or more."
        super().__init__(detail, errors=[{"pointer": "#/outer_steps", "detail": detail}])


class QuotaExceeded(RegistryError):
    """The owner has as many runs as it may."""

    problem = problems.QUOTA_EXCEEDED

    def __init__(self, owner: str, at_most: int, used: int) -> None:
        super().__init__(
            f"The API key {owner!r} has {used} meta-training runs that are not over, and may have {at_most}. Wait for "
            "one to end, or cancel one.",
            limit="runs",
            at_most=at_most,
            used=used,
        )


class RunConflict(RegistryError):
    """The meta-training run is in a status in which this cannot be done."""

    problem = problems.RUN_CONFLICT

    def __init__(self, message: str, status: str) -> None:
        super().__init__(message, run_status=status)


class EvaluationConflict(RegistryError):
    """The evaluation is over, so that there is nothing to cancel."""

    problem = problems.EVALUATION_CONFLICT

    def __init__(self, evaluation_id: str, status: str) -> None:
        super().__init__(
            f"Evaluation {evaluation_id} has {status} already, so there is nothing to cancel.",
            evaluation_status=status,
        )


class WeightsInvalid(RegistryError):
    """The file cannot become a version; the message says what is wrong with it."""

    problem = problems.WEIGHTS_INVALID


class WeightsMalformed(WeightsInvalid):
    """The file is no safetensors file at all."""

    problem = problems.MALFORMED_BODY
