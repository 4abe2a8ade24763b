"""Estimators of ∇_φL, one file each."""

from optserve_server.metatraining.estimators.antithetic import Antithetic
from optserve_server.metatraining.estimators.backpropagation import Backpropagation
from optserve_server.metatraining.estimators.base import Estimator, MetaGradient, Window
from optserve_server.metatraining.estimators.es import ES
from optserve_server.metatraining.estimators.nres import NRES
from optserve_server.metatraining.estimators.pes import PES
from optserve_server.metatraining.recipes import Recipe

__all__ = ["Estimator", "MetaGradient", "Window", "build"]

EVOLUTION_STRATEGIES: dict[str, type[Antithetic]] = {"es": ES, "pes": PES, "nres": NRES}


def build(recipe: Recipe, outer_step: int = 1) -> Estimator:
    """The estimator that a recipe asks for, with the σ of trajectories that begin in this outer step."""
    settings = recipe.gradient
    if settings.estimator == "backpropagation":
        return Backpropagation(recipe.meta_loss, settings.second_order)
    sigma = settings.sigma_at((outer_step - 1) / recipe.meta_optimizer.outer_steps)
    return EVOLUTION_STRATEGIES[settings.estimator](recipe.meta_loss, sigma, settings.pairs)
