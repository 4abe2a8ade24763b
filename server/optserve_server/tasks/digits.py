"""The 8 × 8 handwritten digits that scikit-learn ships (Alpaydin & Kaynak 1998), 1,797 real images."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from optserve_server.tasks.base import Split

SIDE, CLASSES = 8, 10
PIXELS = SIDE * SIDE
TRAIN_IMAGES = 1000  # the other 797 are held out
_PERMUTATION_SEED = 0


@cache
def digits(split: Split) -> tuple[Tensor, Tensor]:
    """Images `[images, 64]` float32 in 0 … 1 and labels `[images]` int64 of one half; the halves are disjoint."""
    from sklearn.datasets import load_digits  # slow to import, and a server that only lists families never needs it

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(_PERMUTATION_SEED).permutation(len(images))
    chosen = order[:TRAIN_IMAGES] if split == "train" else order[TRAIN_IMAGES:]
    return torch.from_numpy(images[chosen] / 16).float(), torch.from_numpy(labels[chosen]).long()
