"""Truncated evolution strategies (Metz et al. 2019, arXiv 1810.10180; as algorithm 1 of Vicol et al. 2021)."""

from typing import ClassVar

import torch

from optserve_server.metatraining.estimators.antithetic import Antithetic, Noise
from optserve_server.metatraining.particles import ParticleGroup
from optserve_server.optimizers import Phi


class ES(Antithetic):
    """ĝ = ε (L_w(φ + ε) − L_w(φ − ε)) / 2σ², ε new in each window w, all particles from where φ itself has led.

    What φ did before the window is left out, so it is biased where there are several windows.
    """

    others: ClassVar[int] = 1

    def perturb(self, phi: Phi, group: ParticleGroup, generator: torch.Generator) -> tuple[Noise, Noise]:
        """ε, and ε."""
        group.gather(-1)
        noise = self.draw(phi, self.pairs * group.tasks, group.sigma, generator)
        return noise, noise
