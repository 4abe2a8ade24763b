"""The data sets and their halves, and what the families on them compute, against torch.nn, NumPy and scikit-learn."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from optserve_server import tasks
from optserve_server.tasks.base import Batch, TaskData, TaskFamily, Theta, vectorized
from optserve_server.tasks.datasets import FORMS, table
from optserve_server.tasks.digits import digits

ROWS = {"breast-cancer": 569, "diabetes": 442, "iris": 150, "wine": 178}


def draw(name: str, parameters: dict[str, Any], count: int = 3) -> tuple[TaskFamily, TaskData, Theta, Batch]:
    family = tasks.build(name, parameters)
    generator = torch.Generator().manual_seed(0)
    data, theta = family.sample(generator, count, "train"), family.initial(generator, count)
    return family, data, theta, family.batch(generator, data, count)


# --- halves -----------------------------------------------------------------------------------------------------------


def rows(features: torch.Tensor) -> set[bytes]:
    return {one.numpy().tobytes() for one in features}


def test_held_out_digits_are_never_trained_on() -> None:
    train, held_out = digits("train"), digits("held-out")
    assert len(train[0]) + len(held_out[0]) == 1797
    assert not rows(train[0]) & rows(held_out[0])
    assert train[0].min() == 0
    assert train[0].max() == 1


@pytest.mark.parametrize("name", FORMS)
def test_held_out_rows_are_never_trained_on(name: Any) -> None:
    train, held_out = table(name, "train"), table(name, "held-out")
    assert len(train[0]) + len(held_out[0]) == ROWS[name]
    assert len(train[0]) == pytest.approx(ROWS[name] * 2 / 3, abs=2)
    assert not rows(train[0]) & rows(held_out[0])
    assert train[0].shape[1] == FORMS[name].features
    torch.testing.assert_close(train[0].mean(dim=0), torch.zeros(FORMS[name].features), atol=1e-5, rtol=0)
    torch.testing.assert_close(train[0].std(dim=0, correction=0), torch.ones(FORMS[name].features))
    if FORMS[name].classes is None:
        assert train[1].std(correction=0).item() == pytest.approx(1)
    else:
        assert set(train[1].tolist()) == set(held_out[1].tolist()) == set(range(FORMS[name].classes))


def test_the_equal_rows_of_iris_are_in_one_half() -> None:
    """Of its 150 rows 149 are distinct, and so are those of its halves together."""
    assert len(rows(table("iris", "train")[0])) + len(rows(table("iris", "held-out")[0])) == 149


# --- perceptrons ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "module"), [("sigmoid", nn.Sigmoid), ("tanh", nn.Tanh), ("relu", nn.ReLU), ("gelu", nn.GELU)]
)
def test_digits_mlp_is_torchs_sequential(activation: str, module: type[nn.Module]) -> None:
    parameters = {"hidden_sizes": [7, 5], "activation": activation, "batch_size": 8, "initial_scale": 3.0}
    family, data, theta, batch = draw("digits-mlp", parameters)
    model = nn.Sequential(nn.Linear(64, 7), module(), nn.Linear(7, 5), module(), nn.Linear(5, 10))
    nn.utils.vector_to_parameters(theta[2], model.parameters())
    expected = cross_entropy(model(batch["images"][2]), batch["labels"][2])
    torch.testing.assert_close(vectorized(family)(theta, data, batch)[2], expected.detach())


def test_initial_values_are_torchs_times_the_scale() -> None:
    family = tasks.build("digits-mlp", {"hidden_sizes": [100], "initial_scale": 3.0})
    theta = family.initial(torch.Generator().manual_seed(0), 200)
    start = 0
    for layer in (nn.Linear(64, 100), nn.Linear(100, 10)):
        bound = layer.weight.abs().max().item()  # of hundreds of values, so near the bound of the distribution
        for parameter in layer.parameters():
            values = theta[:, start : start + parameter.numel()]
            start += parameter.numel()
            assert values.abs().max().item() == pytest.approx(3 * bound, rel=0.05)
            assert values.std().item() == pytest.approx(3 * bound / math.sqrt(3), rel=0.05)


def test_the_bundled_recipes_digits_are_drawn_as_ever() -> None:
    """Bit for bit, so that what was meta-trained on them can be made again."""
    _, _, theta, batch = draw("digits-mlp", {"hidden_sizes": [2], "batch_size": 4})
    generator = torch.Generator().manual_seed(0)
    parts = [(128, 1 / 8), (2, 1 / 8), (20, 2**-0.5), (10, 2**-0.5)]
    drawn = [torch.empty(3, size).uniform_(-bound, bound, generator=generator) for size, bound in parts]
    assert torch.equal(theta, torch.cat(drawn, dim=1))
    chosen = torch.randint(1000, (3, 4), generator=generator)
    assert torch.equal(batch["images"], digits("train")[0][chosen])
    assert torch.equal(batch["labels"], digits("train")[1][chosen])


def test_label_noise_leaves_the_images() -> None:
    clean = draw("digits-mlp", {"batch_size": 1000})[3]
    noisy = draw("digits-mlp", {"batch_size": 1000, "label_noise": 0.5})[3]
    assert torch.equal(clean["images"], noisy["images"])
    assert (clean["labels"] != noisy["labels"]).float().mean().item() == pytest.approx(0.45, abs=0.03)


def test_tables_are_classified_or_regressed() -> None:
    for name, outputs in (("wine", 3), ("diabetes", 1)):
        family, data, theta, batch = draw("tabular-mlp", {"data": name, "hidden_sizes": [4], "batch_size": 5})
        model = nn.Sequential(nn.Linear(FORMS[name].features, 4), nn.ReLU(), nn.Linear(4, outputs))
        nn.utils.vector_to_parameters(theta[0], model.parameters())
        found = model(batch["features"][0])
        targets = batch["targets"][0]
        expected = cross_entropy(found, targets) if outputs > 1 else mse_loss(found[:, 0], targets)
        torch.testing.assert_close(vectorized(family)(theta, data, batch)[0], expected.detach())


# --- other networks ---------------------------------------------------------------------------------------------------


def test_digits_conv_is_torchs() -> None:
    family, data, theta, batch = draw("digits-conv", {"channels": [3, 5], "batch_size": 4})
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        *(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(20, 10)),
    )
    nn.utils.vector_to_parameters(theta[1], model.parameters())
    expected = cross_entropy(model(batch["images"][1]), batch["labels"][1])
    torch.testing.assert_close(vectorized(family)(theta, data, batch)[1], expected.detach())
    assert theta[0, :27].abs().max().item() == pytest.approx(1 / 3, rel=0.1)
    assert tasks.build("digits-conv", {"channels": [2, 2, 2]}).shapes["output.weight"] == (10, 2)


@pytest.mark.parametrize(("hidden_sizes", "sizes"), [([6, 3], [64, 6, 3, 6, 64]), ([4], [64, 4, 64])])
def test_an_autoencoder_mirrors_itself(hidden_sizes: list[int], sizes: list[int]) -> None:
    family, data, theta, batch = draw("digits-autoencoder", {"hidden_sizes": hidden_sizes, "batch_size": 5})
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    nn.utils.vector_to_parameters(theta[0], model.parameters())
    images = batch["images"][0]
    expected = mse_loss(model(images), images)
    torch.testing.assert_close(vectorized(family)(theta, data, batch)[0], expected.detach())


# --- logistic regression ----------------------------------------------------------------------------------------------


def test_logistic_regression_is_the_log_loss_and_the_penalty() -> None:
    family, data, theta, _ = draw("logistic-regression", {"data": "iris", "rows": 40, "l2": 0.5})
    weight, bias = theta[1, :12].reshape(3, 4).numpy(), theta[1, 12:].numpy()
    logits = data["features"][1].numpy() @ weight.T + bias
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = log_loss(data["targets"][1], probabilities, labels=[0, 1, 2]) + 0.25 * np.sum(theta[1].numpy() ** 2)
    assert vectorized(family)(theta, data, {})[1].item() == pytest.approx(expected, rel=1e-5)


def test_each_logistic_regression_has_its_own_rows_with_their_own_classes() -> None:
    _, data, _, _ = draw("logistic-regression", {"data": "wine", "rows": 40})
    assert not torch.equal(data["features"][0], data["features"][1])
    known = {row.numpy().tobytes(): int(label) for row, label in zip(*table("wine", "train"), strict=True)}
    for row, label in zip(data["features"][1], data["targets"][1], strict=True):
        assert known[row.numpy().tobytes()] == label
