"""The tables of a recipe, each with the checks that need no other table."""

from optserve_server.metatraining.tables.inner_loops import Growth, HorizonRange, MetaLoss, Unroll
from optserve_server.metatraining.tables.meta_gradients import GradientEstimator, Imitation
from optserve_server.metatraining.tables.numbers import PositiveFloat
from optserve_server.metatraining.tables.outer_loop import Checkpoints, Curriculum, MetaOptimizer, Validation
from optserve_server.metatraining.tables.tasks import Augmentation, TaskShare, VariedShare

__all__ = [
    "Augmentation",
    "Checkpoints",
    "Curriculum",
    "GradientEstimator",
    "Growth",
    "HorizonRange",
    "Imitation",
    "MetaLoss",
    "MetaOptimizer",
    "PositiveFloat",
    "TaskShare",
    "Unroll",
    "Validation",
    "VariedShare",
]
