"""The tables that scikit-learn ships, each cut into two disjoint halves once and for all, and rows drawn from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from optserve_server.tasks.base import Split

DataSetName = Literal["breast-cancer", "diabetes", "iris", "wine"]

_SPLIT_SEED = 0


@dataclass(frozen=True, slots=True)
class DataSetForm:
    """How many features the rows of a data set have, and how many classes; `classes` is `None` for a regression."""

    features: int
    classes: int | None


FORMS: dict[DataSetName, DataSetForm] = {
    "breast-cancer": DataSetForm(30, 2),
    "diabetes": DataSetForm(10, None),
    "iris": DataSetForm(4, 3),
    "wine": DataSetForm(13, 3),
}


@cache
def table(name: DataSetName, split: Split) -> tuple[Tensor, Tensor]:
    """One half: features `[rows, features]` float32, and classes `[rows]` int64 or targets `[rows]` float32.

    Two thirds of the rows are for training; equal rows (iris has two) lie in the same half. Features and the targets of
    a regression have mean 0 and deviation 1 over the training half.
    """
    from sklearn import datasets  # slow to import, and a server that only lists families never needs it

    rows, targets = getattr(datasets, f"load_{name.replace('-', '_')}")(return_X_y=True)
    train = _trained_on(rows)
    chosen = train if split == "train" else ~train
    features = torch.from_numpy(_standardised(rows, train)[chosen]).float()
    if FORMS[name].classes is None:
        return features, torch.from_numpy(_standardised(targets, train)[chosen]).float()
    return features, torch.from_numpy(targets[chosen]).long()


def shared(rows: Tensor, generator: torch.Generator, tasks: int) -> Tensor:
    """Rows `[rows, …]` as what each of `tasks` tasks has, `[tasks, rows, …]`, on the generator's device, uncopied."""
    return rows.to(generator.device).expand(tasks, *rows.shape)


def draw_rows(generator: torch.Generator, rows: Mapping[str, Tensor], tasks: int, count: int) -> dict[str, Tensor]:
    """`count` of the `shared` rows for each task, `[tasks, count, …]`, drawn with replacement."""
    available = next(iter(rows.values())).shape[1]
    chosen = torch.randint(available, (tasks, count), generator=generator, device=generator.device)
    return {name: values[0][chosen] for name, values in rows.items()}


def with_label_noise(labels: Tensor, classes: int, share: float, generator: torch.Generator) -> Tensor:
    """Labels of which about a `share` are drawn anew among all classes; nothing is drawn where that is 0."""
    if not share:
        return labels
    others = torch.randint(classes, labels.shape, generator=generator, device=generator.device)
    replaced = torch.rand(labels.shape, generator=generator, device=generator.device) < share
    return torch.where(replaced, others, labels)


def _trained_on(rows: np.ndarray) -> np.ndarray:
    """Which rows are for training, drawn among the distinct ones."""
    distinct, which = np.unique(rows, axis=0, return_inverse=True)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(distinct))
    chosen: np.ndarray = (order < len(distinct) * 2 // 3)[which]
    return chosen


def _standardised(values: np.ndarray, train: np.ndarray) -> np.ndarray:
    result: np.ndarray = (values - values[train].mean(axis=0)) / values[train].std(axis=0)
    return result
