"""Plans: everything that decides what an evaluation computes, as JSON or from the command line."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from optserve.wire.evaluations import EvaluatedTask
from optserve_server import descriptions
from optserve_server.descriptions import DescriptionError, Table
from optserve_server.metatraining.tables import TaskShare
from optserve_server.naming import nearest, shown
from optserve_server.optimizers import HAND_DESIGNED

MAX_TASKS, MAX_STEPS, MAX_SEEDS = 100, 1_000_000, 1000


class PlanError(DescriptionError):
    """An evaluation that cannot be made; `path` names the key."""


def _hand_designed(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in HAND_DESIGNED:
            near, known = nearest(name, HAND_DESIGNED), ", ".join(HAND_DESIGNED)
            raise ValueError(f"there is no baseline {shown(name)}{near}; there are {known}")
    return names


class Plan(Table):
    """Optimizers × tasks × seeds, and the baselines that they are compared with.

    Every optimizer gets the same held-out tasks, θ_0 and minibatches; they are drawn from `seed`. A task's `weight` is
    its share in the ranking's scores.
    """

    optimizers: Annotated[tuple[str, ...], Field(min_length=1, max_length=100)]
    tasks: Annotated[tuple[TaskShare, ...], Field(min_length=1, max_length=MAX_TASKS)] = (
        TaskShare(family="quadratic"),
        TaskShare(family="digits-mlp"),
    )
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 100
    seeds: Annotated[int, Field(ge=1, le=MAX_SEEDS)] = 5
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0
    baselines: Annotated[tuple[str, ...], AfterValidator(_hand_designed)] = ("sgd", "nesterov", "rmsprop", "adam")

    @property
    def cells(self) -> int:
        """How many pairs there are of a task and an optimizer or baseline."""
        return len(self.tasks) * (len(self.optimizers) + len(self.baselines))

    @model_validator(mode="after")
    def _distinct(self) -> "Plan":
        names = [*self.optimizers, *self.baselines]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{shown(twice[0])} is there twice; each optimizer has one name")
        return self


def parse(content: Mapping[str, Any]) -> Plan:
    """A plan from its keys.

    Raises:
        PlanError: the first thing wrong with it; an unknown key's message names the nearest known one.
    """
    return descriptions.parse(Plan, content, PlanError)


def parse_task(text: str) -> dict[str, Any]:
    """A task as the command line has it, `digits-mlp` or `digits-mlp:hidden_sizes=[20,20],activation=relu`.

    A value is JSON, or else taken as text.

    Raises:
        PlanError: a parameter has no value, or one that nobody means.
    """
    family, _, rest = text.partition(":")
    parameters = {}
    for assignment in re.split(r",(?=\s*\w+\s*=)", rest) if rest else []:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise PlanError("tasks", f"{shown(text)} gives {shown(name)} no value; write {family}:{name}=VALUE")
        try:
            parameters[name.strip()] = _value(value.strip())
        except (ValueError, RecursionError) as error:
            raise PlanError(
                "tasks", f"{shown(text)} gives {shown(name)} a value that cannot be read: {error}"
            ) from error
    return {"family": family, "parameters": parameters}


def described(tasks: Iterable[Mapping[str, Any]]) -> list[EvaluatedTask]:
    """A plan's tasks, as JSON has them, for whoever reads the result; their families need not exist any more."""
    return [
        EvaluatedTask(label(one["family"], one["parameters"]), one["family"], one["parameters"], one["weight"])
        for one in tasks
    ]


def label(family: str, parameters: Mapping[str, Any]) -> str:
    """A task as `parse_task` reads it; parameters that have their default are left out."""
    if not parameters:
        return family
    return f"{family}:{','.join(f'{name}={_text(value)}' for name, value in parameters.items())}"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
