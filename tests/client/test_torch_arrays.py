"""RemoteOptimizer with an optimizer that also keeps state of each tensor and of the session."""

import math

import pytest
import torch
from torch import nn

from optserve.torch import RemoteOptimizer
from optserve_server import optimizers
from optserve_server.optimizers import weights


@pytest.fixture(scope="module")
def untrained(client):
    """The name of a `hierarchical` before any meta-training."""
    optimizer = optimizers.build({"kind": "hierarchical"})
    data = weights.encode(optimizer, optimizer.initial_phi(torch.Generator().manual_seed(0)))
    client.optimizers.import_weights("untrained-hierarchical", data)
    return "untrained-hierarchical"


def spirals():
    generator = torch.Generator().manual_seed(0)
    turn = torch.rand(200, 1, generator=generator) * 6 + 1
    side = torch.arange(200).unsqueeze(1) % 2
    angle = turn + side * math.pi
    return torch.cat((turn * angle.cos(), turn * angle.sin()), 1) / 4, side.squeeze(1)


def train(optimizer_of, steps):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 2))
    optimizer = optimizer_of(model.parameters())
    inputs, labels = spirals()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(**({"loss": loss} if isinstance(optimizer, RemoteOptimizer) else {}))
    return nn.functional.cross_entropy(model(inputs), labels).item()


def test_a_model_is_trained_without_any_rate(client, untrained):
    """As well as by Adam at its best of five rates."""
    steps = 150
    ours = train(lambda p: RemoteOptimizer(p, untrained, client, horizon=steps), steps)
    best = min(train(lambda p, lr=lr: torch.optim.Adam(p, lr), steps) for lr in (1e-3, 3e-3, 1e-2, 3e-2, 1e-1))
    assert ours < 1.5 * best
    assert ours < 0.1


def test_the_state_dict_holds_what_is_each_tensor_s_and_what_is_the_session_s(client, untrained):
    some = [torch.ones(2, 3, requires_grad=True), torch.ones(4, requires_grad=True)]
    optimizer = RemoteOptimizer(some, untrained, client, horizon=9)
    for step in range(3):
        some[0].grad, some[1].grad = torch.ones(2, 3), None if step == 1 else torch.ones(4)
        optimizer.step(loss=3.0 - step)
    first, second = optimizer.state_dict()["state"].values()
    assert (first["step"], second["step"]) == (3, 2)
    assert first["arrays"]["tensors.clock"].tolist() == [[3.0]]
    assert second["arrays"]["tensors.clock"].tolist() == [[2.0]]
    assert first["arrays"]["tensors.scheduler"].shape == (8, 1)
    for part in (first, second):
        assert part["arrays"]["session.steps"].tolist() == [[3.0]]
        assert part["arrays"]["session.losses"][1:3, 0].tolist() == [3.0, 1.0]


def test_arrays_of_another_model_are_refused_and_nothing_changes(client, with_arrays):
    some = [torch.ones(2, 3, requires_grad=True)]
    optimizer = RemoteOptimizer(some, "random-small_fc", client)
    some[0].grad = torch.ones(2, 3)
    optimizer.step()
    kept = optimizer.state_dict()
    kept["state"][0]["arrays"]["tensors.rows"] = torch.zeros(3, 5)
    with pytest.raises(ValueError, match=r"tensors.rows of parameter 0 has the shape \(3, 5\), but needs \(3, 2\)"):
        optimizer.load_state_dict(kept)
    assert optimizer.state_dict()["state"][0]["arrays"]["tensors.rows"].shape == (3, 2)
