"""What a PyTorch loop is told where it uses a learned optimizer otherwise than it was meta-trained."""

import logging

import pytest
import torch

from optserve.torch import RemoteOptimizer


@pytest.fixture
def told(caplog):
    """The warnings so far."""
    with caplog.at_level(logging.WARNING, "optserve"):
        yield lambda: [record.getMessage() for record in caplog.records if record.name == "optserve"]


def loop(client, optimizer, losses, **options):
    parameters = [torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)]
    groups = [{"params": [parameter]} for parameter in parameters]
    remote = RemoteOptimizer(groups, optimizer, client, guard=False, **options)
    for loss in losses:
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        remote.step(loss=loss)


def test_who_does_it_right_is_told_nothing(client, told):
    loop(client, "hierarchical", [1.0, 0.9, 0.8], horizon=3)
    loop(client, "rnnprop", [None, None], horizon=1)
    loop(client, "adam", [None, None], lr=0.01, horizon=1)
    assert told() == []


def test_a_loss_that_is_missing_is_asked_for_once(client, told):
    loop(client, "hierarchical", [1.0, None, None])
    (message,) = told()
    assert "'hierarchical' does much better" in message
    assert "step(loss=loss)" in message


def test_a_horizon_that_is_over_is_told_once(client, told):
    loop(client, "hierarchical", [1.0, 0.9, 0.8, 0.7], horizon=2)
    (message,) = told()
    assert "the 2 steps of the declared horizon are over" in message


@pytest.mark.parametrize("optimizer", ["hierarchical", "rnnprop"])
def test_a_rate_for_what_has_learned_its_own_is_told(client, told, optimizer):
    loop(client, optimizer, [1.0, 0.9], lr=0.01)
    (message,) = told()
    assert message.startswith(f"lr = 0.01 multiplies the updates of '{optimizer}'")
