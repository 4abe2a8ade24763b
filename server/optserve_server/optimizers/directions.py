"""What `hierarchical` remembers of each coordinate, and the ways to go that it makes of it, `[…, n]`.

Running means of the gradient and of its square, two of each, are followed already corrected for their bias
(`moments.newest_share`). All directions are odd in the gradient, all features even, and both are free of its scale.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from optserve_server.optimizers.moments import newest_share

DECAYS = (0.9, 0.99, 0.95, 0.999)
EPSILON = 1e-12  # within roots; float32 holds the inverse of its cube, which is their derivative at 0
LARGEST = 1e15  # a gradient is cut to this: sums of the squares of larger ones would not be finite in float32
SPIKE = 10.0  # a tensor's gradients are scaled down to so many times the root mean square of its last ones
LARGEST_FEATURE = 5.0


class Moments(NamedTuple):
    """The running means, in the order of `DECAYS`."""

    fast: Tensor
    slow: Tensor
    fast_square: Tensor
    slow_square: Tensor


class Directions(NamedTuple):
    """A mean, or the gradient itself, over the root of a mean square."""

    fast: Tensor  # Adam's direction, with Adam's decays
    slow: Tensor  # of the slow mean
    now: Tensor  # of the gradient
    agile: Tensor  # of the fast mean over the fast square, which forgets large gradients fifty times as soon


def spike_scales(square: Tensor, usual: Tensor) -> Tensor:
    """By how much a tensor's gradients are scaled down: where they are much larger than all its last ones together.

    So one spike does not decide what the squares say for a thousand steps. `square` is the mean of the gradients'
    squares, and `usual` that of the fast squares before them, `[…, K]`.
    """
    excess = (square / (SPIKE**2 * usual + EPSILON**2)).clamp(min=1)
    return torch.where(usual > 0, torch.rsqrt(excess), 1.0)


def newest_shares(clock: Tensor, like: Tensor) -> Tensor:
    """The shares of the newest terms in the moments of each tensor after `clock` steps, `[…, 1, K]` → `[…, 4, K]`."""
    return torch.cat([newest_share(decay, clock, like) for decay in DECAYS], dim=-2)


def follow_moments(before: Moments, gradients: Tensor, shares: Tensor) -> Moments:
    """The moments with one more gradient; `shares` are the newest term's, `[…, 4, n]`."""
    squares = gradients.square()
    terms = zip(before, (gradients, gradients, squares, squares), shares.unbind(-2), strict=True)
    return Moments(*(torch.lerp(mean, term, share) for mean, term, share in terms))


def directions_of(moments: Moments, gradients: Tensor) -> Directions:
    """The directions at these moments, which have seen the gradients: none is above 1/√(1 − 0.999)."""
    inverse = inverse_root(moments.slow_square)
    return Directions(
        fast=moments.fast * inverse,
        slow=moments.slow * inverse,
        now=gradients * inverse,
        agile=moments.fast * inverse_root(moments.fast_square),
    )


FEATURES = 8


def features_of(moments: Moments, directions: Directions, inverse: Tensor) -> Tensor:
    """What the coordinates' network sees, `[…, 8, n]`; `inverse` is 1/root of the mean of the tensor's slow squares."""
    fast, slow, now, agile = directions
    size = torch.sqrt(moments.slow_square + EPSILON**2) * inverse
    products = torch.stack((fast * slow, now * fast), dim=-2).clamp(-3, 3)
    changes = torch.stack((change_of(moments), size / (1 + size)), dim=-2)
    magnitudes = torch.stack((fast, slow, now, agile), dim=-2).abs().clamp(max=LARGEST_FEATURE)
    return torch.cat((magnitudes, products, changes), dim=-2)


def change_of(moments: Moments) -> Tensor:
    """(v_fast − v_slow)/(v_fast + v_slow): whether the gradient has grown of late, from −1 to 1."""
    fast, slow = moments.fast_square, moments.slow_square
    return (fast - slow) / (fast + slow + EPSILON**2)


def inverse_root(square: Tensor) -> Tensor:
    """1/√square, at most 1/`EPSILON`."""
    return torch.rsqrt(square + EPSILON**2)
