"""The families of optimizees that optimizers are meta-trained and evaluated on."""

from fastapi import APIRouter

from optserve.wire.bodies import Page, TaskFamilyInfo
from optserve_server.api.dependencies import Cursor, Limit
from optserve_server.api.problems import responses
from optserve_server.tasks import families, parameters_schema

router = APIRouter(prefix="/tasks", tags=["tasks"])


@router.get("", summary="List the task families", responses=responses())
def list_tasks(limit: Limit = 100, cursor: Cursor = None) -> Page[TaskFamilyInfo]:
    """Every family of optimizees, what it is, and the JSON schema of its parameters, in the order of their names.

    A family of an installed package that cannot be used has the reason for its description, and an empty schema.
    """
    names = [name for name in sorted({**families().usable, **families().unusable}) if name > (cursor or "")]
    return Page([_info(name) for name in names[:limit]], names[limit - 1] if len(names) > limit else None)


def _info(name: str) -> TaskFamilyInfo:
    if name in families().unusable:
        return TaskFamilyInfo(name, families().unusable[name], {})
    return TaskFamilyInfo(name, families().usable[name].description, parameters_schema(name))
