"""Noise-reuse evolution strategies (Li et al. 2023, arXiv 2304.12180)."""

import torch

from optserve_server.metatraining.estimators.antithetic import Antithetic, Noise
from optserve_server.metatraining.particles import ParticleGroup
from optserve_server.optimizers import Phi


class NRES(Antithetic):
    """ĝ = ε (L_w(φ + ε) − L_w(φ − ε)) / 2σ² with one ε for all windows w of a trajectory.

    The sum over windows is an unbiased estimate for the whole trajectory, of the smoothed L, as if it were not cut.
    """

    def first_noise(self, phi: Phi, pairs: int, generator: torch.Generator) -> Noise:
        """ε."""
        return self.draw(phi, pairs, self.sigma, generator)

    def perturb(self, phi: Phi, group: ParticleGroup, generator: torch.Generator) -> tuple[Noise, Noise]:
        """ε, and ε."""
        return group.noise, group.noise
