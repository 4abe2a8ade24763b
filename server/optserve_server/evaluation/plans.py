"""Plans: everything that decides what an evaluation computes, as JSON, from the command line, or by a suite."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from optserve.wire.evaluations import EvaluatedTask
from optserve_server import descriptions
from optserve_server.descriptions import DescriptionError, Table
from optserve_server.evaluation import suites
from optserve_server.evaluation.distortions import UNDISTORTED, Distortion
from optserve_server.evaluation.rules import BASELINES
from optserve_server.evaluation.third_party import CLASSES
from optserve_server.metatraining.tables import TaskShare
from optserve_server.naming import nearest, shown

SUITE_KEYS = ("tasks", "steps", "horizons", "seeds", "seed", "baselines", "untuned")
"""Of a plan, those that a suite may have."""
UNTUNED = (*BASELINES, *CLASSES)
"""What can be run at its defaults."""
MAX_TASKS, MAX_STEPS, MAX_SEEDS, MAX_HORIZONS = 100, 1_000_000, 1000, 10


class PlanError(DescriptionError):
    """An evaluation that cannot be made; `path` names the key."""


def _known_baselines(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in BASELINES:
            near, known = nearest(name, BASELINES), ", ".join(BASELINES)
            raise ValueError(f"there is no baseline {shown(name)}{near}; there are {known}")
    return names


def _known_untuned(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in UNTUNED:
            near, known = nearest(name, UNTUNED), ", ".join(UNTUNED)
            raise ValueError(f"there is no optimizer {shown(name)}{near} with defaults; there are {known}")
    return names


def _rising(horizons: tuple[int, ...]) -> tuple[int, ...]:
    if list(horizons) != sorted(set(horizons)):
        raise ValueError(f"{list(horizons)} does not grow from each number to the next")
    return horizons


class PlannedTask(TaskShare):
    """A family of optimizees; where there is a distortion, optimizers see them through it."""

    distortion: Distortion = UNDISTORTED


Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]


class Plan(Table):
    """Optimizers × tasks × horizons × seeds, and the baselines that they are compared with, each at its best.

    `untuned` are further ones at their published defaults. Every optimizer gets the same held-out tasks, θ_0 and
    minibatches; they are drawn from `seed`. A task's `weight` is its share in the ranking's scores. `steps` is the
    longest of the `horizons`, and the only one where none are given.
    `suite` is the name of the suite that the plan was made of, if it was. Without `cache`, everything is computed anew.
    """

    optimizers: Annotated[tuple[str, ...], Field(min_length=1, max_length=100)]
    tasks: Annotated[tuple[PlannedTask, ...], Field(min_length=1, max_length=MAX_TASKS)] = (
        PlannedTask(family="quadratic"),
        PlannedTask(family="digits-mlp"),
    )
    steps: Steps = 100
    horizons: Annotated[tuple[Steps, ...], Field(min_length=1, max_length=MAX_HORIZONS), AfterValidator(_rising)] = (
        100,
    )
    seeds: Annotated[int, Field(ge=1, le=MAX_SEEDS)] = 5
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0
    baselines: Annotated[tuple[str, ...], AfterValidator(_known_baselines)] = ("sgd", "nesterov", "rmsprop", "adam")
    untuned: Annotated[tuple[str, ...], AfterValidator(_known_untuned)] = ()
    suite: str | None = None
    cache: bool = True

    @property
    def cells(self) -> int:
        """How many triples there are of a task, a horizon, and a competitor."""
        return len(self.tasks) * len(self.horizons) * len(competitors(self.model_dump(mode="json")))

    @model_validator(mode="before")
    @classmethod
    def _steps_and_horizons(cls, content: Any) -> Any:
        """Either says what the other is."""
        if "horizons" not in content and "steps" in content:
            return {**content, "horizons": [content["steps"]]}
        horizons = content.get("horizons")
        if horizons and "steps" not in content and isinstance(horizons, list | tuple):
            return {**content, "steps": horizons[-1]}
        return content

    @model_validator(mode="after")
    def _consistent(self) -> "Plan":
        names = [*self.optimizers, *self.baselines, *map(untuned_name, self.untuned)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{shown(twice[0])} is there twice; each optimizer has one name")
        if self.steps != self.horizons[-1]:
            raise DescriptionError("steps", f"{self.steps} is not the longest of the horizons; give one of the two")
        return self


def untuned_name(kind: str) -> str:
    """What results call an optimizer at its defaults, beside the tuned one of the same kind."""
    return f"{kind} (untuned)"


def competitors(plan: Mapping[str, Any]) -> list[str]:
    """The names of all that take part in a plan, as JSON has it."""
    untuned = plan.get("untuned", [])  # a plan of before there were any has none
    return [*plan["optimizers"], *plan["baselines"], *map(untuned_name, untuned)]


def parse(content: Mapping[str, Any]) -> Plan:
    """A plan from its keys; what is absent is that of its `suite`, where it has one.

    Raises:
        PlanError: the first thing wrong with it; an unknown key's message names the nearest known one.
    """
    return descriptions.parse(Plan, with_suite(content), PlanError)


def with_suite(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys of a plan, and those of its suite that are absent.

    Raises:
        PlanError: there is no such suite.
    """
    name = content.get("suite")
    if name is None:
        return content
    known = suites.names()
    if name not in known:
        raise PlanError("suite", f"there is no suite {shown(name)}{nearest(name, known)}; there are {', '.join(known)}")
    return beside(suites.read(name), content)


def beside(suite: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a suite and those that are given beside it, which win; `steps` also over the suite's `horizons`."""
    left = {key: value for key, value in suite.items() if key != "horizons" or "steps" not in given}
    return {**left, **given}


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


def described(plan: Mapping[str, Any]) -> list[EvaluatedTask]:
    """Each task of a plan at each T, as JSON has them; their families need not exist any more."""
    return [
        EvaluatedTask(
            label(one["family"], one["parameters"], one.get("distortion", {})),
            *(one["family"], one["parameters"], one["weight"], steps),
            distortion=one.get("distortion", {}),
        )
        for one in plan["tasks"]
        for steps in plan.get("horizons", [plan["steps"]])  # a plan of before there were several has none
    ]


def label(family: str, parameters: Mapping[str, Any], distortion: Mapping[str, Any] | None = None) -> str:
    """A task as `parse_task` reads it; parameters that have their default are left out. Its distortion is behind it."""
    own = f"{family}:{_assignments(parameters)}" if parameters else family
    return f"{own} with {_assignments(distortion)}" if distortion else own


def _assignments(values: Mapping[str, Any]) -> str:
    return ",".join(f"{name}={_text(value)}" for name, value in values.items())


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _text(value: Any) -> str:
    if isinstance(value, float) and value >= 1e6:
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
