"""One battery for every task family, and what each of them computes."""

import numpy as np
import pytest
import torch
from torch.func import grad

from optserve_server import tasks
from optserve_server.tasks.base import coordinates, layout, vectorized
from optserve_server.tasks.digits import digits

FAMILIES = {
    "quadratic": ("quadratic", {}),
    "quadratic-3": ("quadratic", {"dimension": 3}),
    "digits-mlp": ("digits-mlp", {}),
    "digits-mlp-deep": ("digits-mlp", {"hidden_sizes": [7, 5], "activation": "tanh", "batch_size": 8}),
    "digits-linear": ("digits-mlp", {"hidden_sizes": [], "batch_size": 16}),
}
EVERY = pytest.mark.parametrize("row", FAMILIES)


def draw(row: str, count: int = 3, seed: int = 0) -> tuple[tasks.TaskFamily, dict, torch.Tensor, dict]:
    family = tasks.build(*FAMILIES[row])
    generator = torch.Generator().manual_seed(seed)
    data = family.sample(generator, count, "train")
    theta = family.initial(generator, count)
    return family, data, theta, family.batch(generator, data, count)


@EVERY
def test_the_same_generator_draws_the_same_tasks(row: str) -> None:
    _, data, theta, batch = draw(row)
    _, again, theta_again, batch_again = draw(row)
    assert torch.equal(theta, theta_again)
    assert all(torch.equal(data[key], again[key]) for key in data)
    assert all(torch.equal(batch[key], batch_again[key]) for key in batch)


@EVERY
def test_tasks_side_by_side_are_the_tasks_alone(row: str) -> None:
    family, data, theta, batch = draw(row)
    losses = vectorized(family)(theta, data, batch)
    assert losses.shape == (3,)
    for task in range(3):
        one = {key: value[task] for key, value in data.items()}
        alone = family.loss(theta[task], one, {key: value[task] for key, value in batch.items()})
        torch.testing.assert_close(losses[task], alone)


@EVERY
def test_theta_is_the_declared_tensors(row: str) -> None:
    family, _, theta, _ = draw(row)
    assert theta.shape == (3, coordinates(family))
    assert list(layout(family.shapes).values())[-1].stop == coordinates(family)


@EVERY
def test_gradients_agree_with_central_differences(row: str) -> None:
    family, data, theta, batch = draw(row, count=1)
    one = {key: value[0].double() if value.is_floating_point() else value[0] for key, value in data.items()}
    step = {key: value[0].double() if value.is_floating_point() else value[0] for key, value in batch.items()}
    point = theta[0].double()
    gradient = grad(family.loss)(point, one, step)
    for coordinate in torch.randperm(len(point), generator=torch.Generator().manual_seed(0))[:10].tolist():
        offset = torch.zeros_like(point)
        offset[coordinate] = 1e-5
        difference = (family.loss(point + offset, one, step) - family.loss(point - offset, one, step)) / 2e-5
        torch.testing.assert_close(gradient[coordinate], difference, rtol=1e-6, atol=1e-9)


def test_quadratic_is_the_papers() -> None:
    _, data, theta, _ = draw("quadratic")
    w, y = data["W"][1].numpy(), data["y"][1].numpy()
    assert w.shape == (10, 10)
    family = tasks.build("quadratic", {})
    expected = np.linalg.norm(w @ theta[1].numpy() - y) ** 2
    assert vectorized(family)(theta, data, {})[1].item() == pytest.approx(expected, rel=1e-5)
    many = family.sample(torch.Generator().manual_seed(0), 500, "train")["W"]
    assert abs(many.mean().item()) < 0.02
    assert many.std().item() == pytest.approx(1, abs=0.02)


def test_digits_mlp_is_torchs_sequential() -> None:
    family, data, theta, batch = draw("digits-mlp-deep")
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 7), torch.nn.Tanh(), torch.nn.Linear(7, 5), torch.nn.Tanh(), torch.nn.Linear(5, 10)
    )
    torch.nn.utils.vector_to_parameters(theta[2], model.parameters())
    expected = torch.nn.functional.cross_entropy(model(batch["images"][2]), batch["labels"][2])
    torch.testing.assert_close(vectorized(family)(theta, data, batch)[2], expected.detach())


def test_held_out_digits_are_never_trained_on() -> None:
    train, held_out = digits("train"), digits("held-out")
    assert len(train[0]) + len(held_out[0]) == 1797
    rows = {image.numpy().tobytes() for image in train[0]}
    assert not any(image.numpy().tobytes() in rows for image in held_out[0])
    assert train[0].min() == 0
    assert train[0].max() == 1


@pytest.mark.parametrize(
    ("family", "parameters", "message"),
    [
        ("digits-mpl", {}, "did you mean 'digits-mlp'"),
        ("digits-mlp", {"hidden_size": [3]}, "did you mean 'hidden_sizes'"),
        ("digits-mlp", {"hidden_sizes": [0]}, r"hidden_sizes\.0 is 0"),
        ("digits-mlp", {"activation": "gelu"}, "activation is 'gelu'"),
        ("quadratic", {"dimension": 0}, "dimension is 0"),
    ],
)
def test_a_wrong_task_is_named(family: str, parameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.build(family, parameters)


@pytest.mark.parametrize("name", tasks.FAMILIES)
def test_every_family_documents_its_parameters(name: str) -> None:
    schema = tasks.parameters_schema(name)
    assert schema["type"] == "object"
    assert all("default" in parameter for parameter in schema["properties"].values())
