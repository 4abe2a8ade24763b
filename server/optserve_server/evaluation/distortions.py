"""Distortions: what an optimizer is shown in the place of the truth; f, and all that is measured, stays as it is."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor

from optserve_server.descriptions import Table
from optserve_server.metatraining.tables import PositiveFloat
from optserve_server.optimizers import HiddenState, Observations, Updates
from optserve_server.optimizers.steppers import Stepper


def _rising(steps: tuple[int, int] | None) -> tuple[int, int] | None:
    if steps is not None and not 0 <= steps[0] < steps[1]:
        raise ValueError(f"{list(steps)} are no steps from the first to before the last; write [50, 150]")
    return steps


class Distortion(Table):
    """What is done to the observations of one task's inner loops.

    Gradients are multiplied by `gradient_scale`, and by `loss_scale`, by which the loss is multiplied too, as though f
    were. At the steps t of `zero_gradient`, first ≤ t < last, the gradient is 0. Without `told_loss` or `told_horizon`
    the optimizer has to do without that.
    """

    gradient_scale: PositiveFloat = 1.0
    loss_scale: PositiveFloat = 1.0
    zero_gradient: Annotated[tuple[int, int] | None, AfterValidator(_rising)] = None
    told_loss: bool = True
    told_horizon: bool = True

    @model_serializer(mode="wrap")
    def _what_is_distorted(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        return {name: value for name, value in handler(self).items() if value != fields[name].default}

    def shown(self, observations: Observations, step: int) -> Observations:
        """What the optimizer gets to see at that step."""
        gradients = observations.gradients * (self.gradient_scale * self.loss_scale)
        if self.zero_gradient is not None and self.zero_gradient[0] <= step < self.zero_gradient[1]:
            gradients = torch.zeros_like(gradients)
        loss = observations.loss if self.told_loss else None
        return replace(
            observations,
            gradients=gradients,
            loss=None if loss is None else loss * self.loss_scale,
            horizon=observations.horizon if self.told_horizon else None,
        )

    def conditions(self) -> Iterator[str]:
        """For people."""
        if self.gradient_scale != 1:
            yield f"gradients × {self.gradient_scale:g}"
        if self.loss_scale != 1:
            yield f"losses × {self.loss_scale:g}"
        if self.zero_gradient is not None:
            first, last = self.zero_gradient
            yield f"gradient 0 for {last - first:,} steps"
        if not self.told_loss:
            yield "loss not told"
        if not self.told_horizon:
            yield "horizon not told"


UNDISTORTED = Distortion()


class DistortedStepper:
    """Steps as another stepper does that sees the distorted observations; step `first` is next."""

    def __init__(self, inner: Stepper, distortion: Distortion, first: int) -> None:
        self._inner = inner
        self._distortion = distortion
        self._step = first

    @property
    def state(self) -> HiddenState:
        """h_t after the last step."""
        return self._inner.state

    def at_work(self) -> AbstractContextManager[None]:
        """As the other's."""
        return self._inner.at_work()

    def step(self, observations: Observations) -> Updates:
        """The update g_t."""
        shown = self._distortion.shown(observations, self._step)
        self._step += 1
        return self._inner.step(shown)

    def updates(self) -> Tensor:
        """All updates so far."""
        return self._inner.updates()
