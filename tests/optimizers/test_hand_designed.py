"""The hand-designed optimizers are PyTorch's."""

from typing import Any

import pytest
import torch

from optserve_server import optimizers
from optserve_server.optimizers import Observations, hyperparameters, initial_state, with_hyperparameters

SGD, RMSPROP, ADAM, ADAMW = torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adam, torch.optim.AdamW
CASES: list[tuple[str, dict[str, Any], Any, dict[str, Any]]] = [
    ("sgd", {}, SGD, {}),
    ("sgd", {"lr": 0.1, "weight_decay": 0.1}, SGD, {}),
    ("sgd", {"lr": 0.01, "momentum": 0.8, "dampening": 0.3}, SGD, {}),
    ("momentum", {"lr": 0.01}, SGD, {"momentum": 0.9}),
    ("momentum", {"lr": 0.01, "maximize": True}, SGD, {"momentum": 0.9}),
    ("nesterov", {"lr": 0.01, "weight_decay": 0.01}, SGD, {"momentum": 0.9, "nesterov": True}),
    ("rmsprop", {}, RMSPROP, {}),
    ("rmsprop", {"alpha": 0.9, "momentum": 0.9, "centered": True, "weight_decay": 0.1}, RMSPROP, {}),
    ("adam", {}, ADAM, {}),
    ("adam", {"lr": 0.1, "betas": [0.8, 0.9], "eps": 1e-4, "weight_decay": 0.1}, ADAM, {}),
    ("adam", {"lr": 0.1, "amsgrad": True}, ADAM, {}),
    ("adamw", {}, ADAMW, {}),
    ("adamw", {"lr": 0.1, "weight_decay": 0.3, "maximize": True}, ADAMW, {}),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize(("name", "given", "torch_class", "implied"), CASES)
def test_equals_torch_over_200_steps(
    name: str, given: dict[str, Any], torch_class: Any, implied: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    optimizer = optimizers.build({"kind": name, **given})
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(50, generator=generator).to(dtype)
    theirs = torch.nn.Parameter(ours.clone())
    reference = torch_class([theirs], **implied, **given)
    state = initial_state(optimizer, ((50,),), like=ours)
    for step in range(200):
        theirs.grad = torch.randn(50, generator=generator).to(dtype) + theirs.detach().clamp(-1, 1)
        clock = torch.tensor([float(step)], dtype=torch.float64)
        updates, state = optimizer.step({}, Observations(theirs.grad, clock, ours), state)
        ours = ours + updates
        reference.step()
        torch.testing.assert_close(ours, theirs.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw"])
def test_names_and_defaults_are_torchs(name: str) -> None:
    torch_class = {"rmsprop": RMSPROP, "adam": ADAM, "adamw": ADAMW}.get(name, SGD)
    defaults = torch_class([torch.nn.Parameter(torch.zeros(1))]).defaults
    theirs = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
    changed = {"momentum": {"momentum": 0.9}, "nesterov": {"momentum": 0.9, "nesterov": True}}.get(name, {})
    ours = hyperparameters(optimizers.build({"kind": name}))
    assert ours == {key: (theirs | changed)[key] for key in ours}


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("adam", {"lr": -1}, "lr is -1, but must be at least 0"),
        ("adam", {"lr": float("nan")}, "lr is nan, but must be a finite number"),
        ("adam", {"lr": "0.1"}, "lr is '0.1', but must be a finite number"),
        ("adam", {"lr": True}, "lr is True"),
        ("adam", {"lr": 10**400}, "lr is 1000.*must be a finite number"),
        ("adam", {"betas": [0.9]}, "must be a list of 2 numbers"),
        ("adam", {"betas": [0.9, 1.0]}, r"betas\[1\] is 1, but must be at least 0 and below 1"),
        ("adam", {"beta": [0.9, 0.9]}, "did you mean 'betas'"),
        ("adam", {"amsgrad": 1}, "must be true or false"),
        ("sgd", {"nesterov": True}, "nesterov needs a momentum"),
        ("lstm", {"lr": 1.0}, "is learned and takes no hyperparameters"),
    ],
)
def test_a_wrong_hyperparameter_is_named(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_hyperparameters(optimizers.build({"kind": name}), given)


def test_weight_decay_without_parameters_says_what_it_needs() -> None:
    optimizer = optimizers.build({"kind": "adamw"})
    assert optimizer.needs == {"parameters"}
    with pytest.raises(ValueError, match="needs the parameters"):
        optimizer.step({}, Observations(torch.ones(3), torch.zeros(1)), initial_state(optimizer, ((3,),)))
