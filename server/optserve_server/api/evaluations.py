"""Evaluations: asked for, listed, read, cancelled. Workers carry them out."""

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request, Response, status
from fastapi.concurrency import run_in_threadpool
from pydantic import TypeAdapter
from sqlalchemy.orm import Session

from optserve.wire import API_PREFIX, problems
from optserve.wire.bodies import Page
from optserve.wire.evaluations import EvaluationInfo, EvaluationRequest, EvaluationSummary, Rank
from optserve.wire.gradients import JSON
from optserve_server.api import documents
from optserve_server.api.authorisation import RequiresAdmin, UsesCaller
from optserve_server.api.bodies import JsonRoute
from optserve_server.api.dependencies import Cursor, IdempotencyKey, Limit, UsesDatabase, page_of, read_number
from optserve_server.api.problems import Problem, responses
from optserve_server.evaluation import plans
from optserve_server.evaluation.comparisons import compare
from optserve_server.evaluation.plans import Plan, PlanError
from optserve_server.optimizers import HAND_DESIGNED
from optserve_server.registry import evaluations, optimizers
from optserve_server.registry.database import Database
from optserve_server.registry.leases import find_by_key
from optserve_server.registry.models import Evaluation
from optserve_server.sessions.errors import IdempotencyConflict

router = APIRouter(prefix="/evaluations", tags=["evaluations"], route_class=JsonRoute)

EvaluationId = Annotated[str, Path(description="The evaluation's `id`")]

_INFO = TypeAdapter(EvaluationInfo)
_REQUEST = documents.json_body(TypeAdapter(EvaluationRequest).json_schema(ref_template=documents.SCHEMAS))


@router.post(
    "",
    summary="Ask for an evaluation",
    dependencies=[RequiresAdmin],
    status_code=status.HTTP_202_ACCEPTED,
    openapi_extra={"requestBody": _REQUEST},
    responses=responses(
        problems.MALFORMED_BODY,
        problems.OPTIMIZER_NOT_FOUND,
        problems.VERSION_NOT_FOUND,
        problems.ALIAS_NOT_FOUND,
        problems.IDEMPOTENCY_CONFLICT,
        problems.BODY_TOO_LARGE,
        problems.UNSUPPORTED_MEDIA_TYPE,
        problems.EVALUATION_INVALID,
    ),
)
async def create_evaluation(
    body: Annotated[dict[str, Any], Body()],
    request: Request,
    response: Response,
    caller: UsesCaller,
    database: UsesDatabase,
    idempotency_key: IdempotencyKey = None,
) -> EvaluationSummary:
    """Queue an evaluation of optimizers on tasks, against baselines each at its best learning rate.

    References are resolved now, so that it is of the versions that they mean at this moment.
    """
    fingerprint = hashlib.sha256(await request.body()).hexdigest()
    summary = await run_in_threadpool(_create, database, body, caller.name, idempotency_key, fingerprint)
    response.headers["Location"] = f"{API_PREFIX}/evaluations/{summary.id}"
    return summary


@router.get("", summary="List the evaluations", responses=responses())
def list_evaluations(database: UsesDatabase, limit: Limit = 100, cursor: Cursor = None) -> Page[EvaluationSummary]:
    """Every evaluation without its curves, the newest first."""
    below = read_number(cursor)
    with database.session() as db_session:
        found = evaluations.list_evaluations(db_session, limit=limit + 1, below=below)
    return page_of(found, limit, _summary, lambda evaluation: evaluation.number)


@router.get(
    "/{evaluation_id}",
    summary="Read an evaluation",
    response_model=EvaluationInfo,
    responses=responses(problems.EVALUATION_NOT_FOUND),
)
def get_evaluation(
    evaluation_id: EvaluationId,
    database: UsesDatabase,
    curves: Annotated[bool, Query(description="Whether the curves come along, which can be long")] = True,
) -> Response:
    """One evaluation with every curve that is finished, each baseline's learning rates, and the ranking."""
    with database.session() as db_session:
        evaluation = evaluations.get_evaluation(db_session, evaluation_id)
        found = evaluations.list_curves(db_session, evaluation) if curves else []
    # Written here, in a thread, for a long reply must not hold up the steps of sessions.
    facts = _facts(evaluation)
    compared = compare(facts["tasks"], found) if found and evaluation.ranking is not None else []
    info = EvaluationInfo(**facts, curves=found, comparisons=compared)
    return Response(_INFO.dump_json(info), media_type=JSON)


@router.post(
    "/{evaluation_id}/cancel",
    summary="Cancel an evaluation",
    dependencies=[RequiresAdmin],
    responses=responses(problems.EVALUATION_NOT_FOUND, problems.EVALUATION_CONFLICT),
)
def cancel_evaluation(evaluation_id: EvaluationId, database: UsesDatabase) -> EvaluationSummary:
    """End an evaluation: at once where it waits; where it runs, its worker does so soon. Finished curves stay."""
    with database.session(write=True) as db_session:
        evaluation = evaluations.get_evaluation(db_session, evaluation_id, lock=True)
        evaluations.cancel_evaluation(db_session, evaluation)
        return _summary(evaluation)


def _create(
    database: Database, body: dict[str, Any], owner: str, idempotency_key: str | None, fingerprint: str
) -> EvaluationSummary:
    with database.session(write=True) as db_session:
        evaluation = find_by_key(db_session, Evaluation, owner, idempotency_key) if idempotency_key else None
        if evaluation is None:
            plan = _plan(db_session, body)
            evaluation = evaluations.add_evaluation(
                db_session, plan, owner=owner, idempotency_key=idempotency_key, fingerprint=fingerprint
            )
        if idempotency_key and evaluation.fingerprint != fingerprint:
            raise IdempotencyConflict(idempotency_key)
        return _summary(evaluation)


def _plan(db_session: Session, body: dict[str, Any]) -> Plan:
    """The plan that was asked for, with the versions that its references stand for.

    Raises:
        Problem: it cannot be made.
        RegistryError: a reference stands for nothing.
    """
    try:
        plan = plans.parse(body)
        versions = [_version(db_session, reference) for reference in plan.optimizers]
        return plans.parse({**body, "optimizers": versions})
    except PlanError as error:
        raise Problem(problems.EVALUATION_INVALID, f"{error}.", path=error.path) from error


def _version(db_session: Session, reference: str) -> str:
    version = optimizers.resolve(db_session, reference)
    if version.architecture["kind"] in HAND_DESIGNED:
        raise PlanError("optimizers", f"{version.name} is designed by hand; name it in `baselines`, where it is tuned")
    return f"{version.name}@{version.number}"


def _summary(evaluation: Evaluation) -> EvaluationSummary:
    return EvaluationSummary(**_facts(evaluation))


def _facts(evaluation: Evaluation) -> dict[str, Any]:
    plan = evaluation.plan
    return {
        "id": evaluation.id,
        "status": evaluation.status,
        **{name: plan[name] for name in ("optimizers", "baselines", "steps", "seeds", "seed")},
        "horizons": plan.get("horizons", [plan["steps"]]),  # one that was asked for long ago has no more than one T
        "untuned": plan.get("untuned", []),
        "suite": plan.get("suite"),
        "tasks": plans.described(plan),
        "cells": evaluation.cells,
        "done": evaluation.done,
        "ranking": [Rank(**line) for line in evaluation.ranking or []],
        "error": evaluation.error,
        "worker": evaluation.worker,
        "device": evaluation.device,
        "attempt": evaluation.attempt,
        "owner": evaluation.owner,
        "created_at": evaluation.created_at.isoformat(),
        "started_at": evaluation.started_at.isoformat() if evaluation.started_at else None,
        "finished_at": evaluation.finished_at.isoformat() if evaluation.finished_at else None,
    }
