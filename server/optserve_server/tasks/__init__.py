"""Task families: distributions of optimizees f to meta-train and evaluate on, looked up by name."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from optserve_server.naming import nearest
from optserve_server.tasks import installed
from optserve_server.tasks.base import TaskFamily
from optserve_server.tasks.classic_2d import Classic2D
from optserve_server.tasks.clusters_mlp import ClustersMLP
from optserve_server.tasks.curved_valley import CurvedValley
from optserve_server.tasks.digits_autoencoder import DigitsAutoencoder
from optserve_server.tasks.digits_conv import DigitsConv
from optserve_server.tasks.digits_mlp import DigitsMLP
from optserve_server.tasks.echo_rnn import EchoRNN
from optserve_server.tasks.installed import Families
from optserve_server.tasks.logistic_regression import LogisticRegression
from optserve_server.tasks.markov_rnn import MarkovRNN
from optserve_server.tasks.matrix_factorisation import MatrixFactorisation
from optserve_server.tasks.noisy_quadratic import NoisyQuadratic
from optserve_server.tasks.patterns_conv import PatternsConv
from optserve_server.tasks.quadratic import Quadratic
from optserve_server.tasks.synthetic_mlp import SyntheticMLP
from optserve_server.tasks.tabular_mlp import TabularMLP
from optserve_server.tasks.teacher_mlp import TeacherMLP
from optserve_server.tasks.varied_quadratic import VariedQuadratic

__all__ = ["Families", "TaskFamily", "build", "families", "parameters_schema"]

_BUILT_IN: dict[str, type[Any]] = {
    family.name: family
    for family in (
        Quadratic,
        NoisyQuadratic,
        Classic2D,
        LogisticRegression,
        MatrixFactorisation,
        DigitsMLP,
        TabularMLP,
        ClustersMLP,
        TeacherMLP,
        DigitsConv,
        DigitsAutoencoder,
        MarkovRNN,
        SyntheticMLP,
        PatternsConv,
        EchoRNN,
        VariedQuadratic,
        CurvedValley,
    )
}


@cache
def families() -> Families:
    """The built-in families and those of installed packages, which are imported on the first call."""
    return installed.load(_BUILT_IN)


def build(name: str, parameters: Mapping[str, Any]) -> TaskFamily:
    """The family `name` with its parameters; absent ones have their defaults.

    Raises:
        ValueError: an unknown family or parameter (the message names the nearest), a value out of its range, or a
            family of an installed package that cannot be used (the message names the package).
    """
    known = families()
    if name in known.unusable:
        raise ValueError(known.unusable[name])
    if name not in known.usable:
        names = known.usable
        raise ValueError(f"there is no task family {name!r}{nearest(name, names)}; there are {', '.join(names)}")
    described = _parameter_names(name)
    for parameter in parameters:
        if parameter not in described:
            near = nearest(parameter, described)
            raise ValueError(f"family {name!r} has no parameter {parameter!r}{near}; it has {', '.join(described)}")
    try:
        family: TaskFamily = _adapter(name).validate_python(dict(parameters))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"parameters.{where} is {first['input']!r}: {first['msg']}") from error
    return family


def parameters_schema(name: str) -> dict[str, Any]:
    """JSON schema of a family's parameters."""
    return _adapter(name).json_schema()


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(families().usable[name])


@cache  # making a schema takes a millisecond, and a recipe with many choices builds thousands of families
def _parameter_names(name: str) -> tuple[str, ...]:
    return tuple(parameters_schema(name)["properties"])
