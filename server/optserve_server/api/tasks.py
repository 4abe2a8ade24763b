"""The families of optimizees that optimizers are meta-trained and evaluated on."""

from fastapi import APIRouter

from optserve.wire.bodies import Page, TaskFamilyInfo
from optserve_server.api.dependencies import Cursor, Limit
from optserve_server.api.problems import responses
from optserve_server.tasks import FAMILIES, parameters_schema

router = APIRouter(prefix="/tasks", tags=["tasks"])


@router.get("", summary="List the task families", responses=responses())
def list_tasks(limit: Limit = 100, cursor: Cursor = None) -> Page[TaskFamilyInfo]:
    """Every family of optimizees, what it is, and the JSON schema of its parameters, in the order of their names."""
    names = [name for name in sorted(FAMILIES) if name > (cursor or "")]
    items = [TaskFamilyInfo(name, FAMILIES[name].description, parameters_schema(name)) for name in names[:limit]]
    return Page(items, names[limit - 1] if len(names) > limit else None)
