"""Which tasks a recipe trains on, and how they are varied."""

from itertools import combinations_with_replacement, product
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationInfo, field_validator

from optserve_server import tasks
from optserve_server.descriptions import Table
from optserve_server.metatraining.tables.numbers import PositiveFloat, Share
from optserve_server.tasks import TaskFamily


class TaskShare(Table):
    """One family in a distribution of tasks, with its weight."""

    family: str
    weight: PositiveFloat = 1.0
    parameters: dict[str, Any] = Field(default_factory=dict)

    @field_validator("family")
    @classmethod
    def _family_exists(cls, value: str) -> str:
        tasks.build(value, {})
        return value

    @field_validator("parameters")
    @classmethod
    def _parameters_are_the_familys(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "family" in info.data:
            tasks.build(info.data["family"], value)
        return value

    def build(self) -> TaskFamily:
        """The family with these parameters."""
        return tasks.build(self.family, self.parameters)

    def with_parameters(self, parameters: dict[str, Any]) -> "TaskShare":
        """The same family with these parameters, and no other choice."""
        return TaskShare.model_construct(family=self.family, weight=self.weight, parameters=parameters)


class VariedShare(TaskShare):
    """One whose tasks are of many kinds: each trajectory draws one of the `choices` for each parameter that has any,
    all equally probable.
    """

    choices: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)

    @field_validator("choices")
    @classmethod
    def _choices_are_the_familys(
        cls, value: dict[str, tuple[Any, ...]], info: ValidationInfo
    ) -> dict[str, tuple[Any, ...]]:
        if "parameters" not in info.data:
            return value
        family, given = info.data["family"], info.data["parameters"]
        for name in value:
            if name in given:
                raise ValueError(f"{name!r} is one of the parameters too; leave one of the two out")
        first = given | {name: of_name[0] for name, of_name in value.items()}
        for pair in combinations_with_replacement(value, 2):  # any two of them together; all may be millions
            for chosen in product(*(value[name] for name in pair)):
                tasks.build(family, first | dict(zip(pair, chosen, strict=True)))
        return value

    def build(self) -> TaskFamily:
        """The family with these parameters, and the first of all choices."""
        return self.with_choices({}).build()

    def with_choices(self, chosen: dict[str, Any]) -> TaskShare:
        """The share with these of its choices, and the first of all others."""
        first = {name: values[0] for name, values in self.choices.items()}
        return self.with_parameters(self.parameters | first | chosen)

    def drawn(self, generator: torch.Generator) -> TaskShare:
        """The share with one of each parameter's choices."""
        if not self.choices:
            return self
        numbers = torch.rand(len(self.choices), generator=generator).tolist()
        return self.with_choices(
            {
                name: values[int(number * len(values))]
                for (name, values), number in zip(self.choices.items(), numbers, strict=True)
            }
        )


class Augmentation(Table):
    """What makes tasks more various: other units, and optimizers that are told less or something else.

    Some tasks become f(c ⊙ z), with `probability` for each kind: random coordinate scaling (Lv et al. 2017, section
    4.2) draws ln c ~ U[−range, range] for each coordinate, `task_scaling` once for all of a task's.

    What the optimizer is told, but not what it is judged by: in the share `hidden_loss` of the trajectories no loss,
    and in `hidden_horizon` no T; in the share `loss_offset` of the tasks the loss plus a constant, U[−1, 2] times
    |f(θ_0)|; in the share `gradient_scaling` ∇_t times a constant, whose logarithm is U[−18, 18]; in the share `pauses`
    ∇_t = 0 for U[5, 200] steps, that begin anywhere.
    """

    coordinate_scaling: Annotated[float, Field(ge=0, le=10)] = 0.0
    task_scaling: Annotated[float, Field(ge=0, le=10)] = 0.0
    probability: Share = 0.5
    hidden_loss: Share = 0.0
    hidden_horizon: Share = 0.0
    loss_offset: Share = 0.0
    gradient_scaling: Share = 0.0
    pauses: Share = 0.0
