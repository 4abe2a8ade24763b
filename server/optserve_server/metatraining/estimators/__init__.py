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


def build(recipe: Recipe) -> Estimator:
    """The estimator that a recipe asks for."""
    settings = recipe.gradient
    if settings.estimator == "backpropagation":
        return Backpropagation(recipe.meta_loss, settings.second_order)
    return EVOLUTION_STRATEGIES[settings.estimator](recipe.meta_loss, settings.sigma, settings.pairs)
