"""Persistent evolution strategies (Vicol et al. 2021, arXiv 2112.13835, algorithm 2)."""

import torch

from optserve_server.metatraining.estimators.antithetic import Antithetic, Noise
from optserve_server.metatraining.particles import ParticleGroup
from optserve_server.optimizers import Phi


class PES(Antithetic):
    """ĝ = ξ_w (L_w(φ + ε_w) − L_w(φ − ε_w)) / 2σ² with ξ_w = ε_1 + … + ε_w: each particle goes on where it was.

    The sum over windows is an unbiased estimate for the whole trajectory, of L with each window's φ smoothed by itself;
    its variance grows with the number of windows.
    """

    def first_noise(self, phi: Phi, pairs: int, generator: torch.Generator) -> Noise:
        """ξ_0 = 0."""
        return {name: weight.new_zeros(pairs, *weight.shape) for name, weight in phi.items()}

    def perturb(self, phi: Phi, group: ParticleGroup, generator: torch.Generator) -> tuple[Noise, Noise]:
        """ε_w, and ξ_w."""
        noise = self.draw(phi, self.pairs * group.tasks, group.sigma, generator)
        group.noise = {name: total + noise[name] for name, total in group.noise.items()}
        return noise, group.noise
