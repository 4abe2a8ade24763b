"""RemoteOptimizer with a hand-designed optimizer goes the way of `torch.optim`, to 1e-6 of each parameter's scale."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from optserve.torch import RemoteOptimizer

STEPS = 200

ROWS = [
    ("sgd", torch.optim.SGD, {}, {"lr": 0.1}),
    ("sgd", torch.optim.SGD, {}, {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
    ("sgd", torch.optim.SGD, {}, {"lr": 0.01, "maximize": True, "weight_decay": 0.1}),
    ("momentum", torch.optim.SGD, {"momentum": 0.9}, {"lr": 0.05}),
    ("nesterov", torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, {"lr": 0.05}),
    ("rmsprop", torch.optim.RMSprop, {}, {}),
    ("rmsprop", torch.optim.RMSprop, {}, {"lr": 0.003, "alpha": 0.9, "weight_decay": 0.01, "momentum": 0.5}),
    ("rmsprop", torch.optim.RMSprop, {}, {"lr": 0.003, "centered": True}),
    ("adam", torch.optim.Adam, {}, {}),
    ("adam", torch.optim.Adam, {}, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}),
    ("adam", torch.optim.Adam, {}, {"lr": 0.01, "amsgrad": True}),
    ("adam", torch.optim.Adam, {}, {"lr": 0.001, "maximize": True}),
    ("adamw", torch.optim.AdamW, {}, {}),
    ("adamw", torch.optim.AdamW, {}, {"lr": 0.01, "weight_decay": 0.2, "amsgrad": True}),
]


def problem():
    """A small net in float32 and its minibatches."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    return net, torch.randn(STEPS, 16, 4), torch.randn(STEPS, 16, 3)


def train(net, optimizer, inputs, targets, scheduler=None):
    for x, y in zip(inputs, targets, strict=True):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def compare(ours, theirs):
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6 * max(1, other.abs().max().item()))


@pytest.mark.parametrize(("name", "torchs", "implied", "given"), ROWS)
def test_two_hundred_steps(client, name, torchs, implied, given):
    ours, inputs, targets = problem()
    theirs = copy.deepcopy(ours)
    train(theirs, torchs(theirs.parameters(), **implied, **given), inputs, targets)
    optimizer = RemoteOptimizer(ours.parameters(), name, client, **given)
    train(ours, optimizer, inputs, targets)
    compare(ours, theirs)
    optimizer.close()


def groups(net):
    return [
        {"params": net[0].parameters(), "lr": 0.003, "betas": (0.7, 0.9), "weight_decay": 0.0},
        {"params": [net[2].weight], "amsgrad": True},
        {"params": [net[2].bias], "maximize": True},
    ]


def test_parameter_groups_with_hyperparameters_of_their_own(client):
    ours, inputs, targets = problem()
    theirs = copy.deepcopy(ours)
    train(theirs, torch.optim.Adam(groups(theirs), lr=0.001, weight_decay=0.01), inputs, targets)
    optimizer = RemoteOptimizer(groups(ours), "adam", client, lr=0.001, weight_decay=0.01)
    train(ours, optimizer, inputs, targets)
    compare(ours, theirs)


SCHEDULERS = [
    lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, STEPS),
    lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=STEPS + 1),  # moves betas too
    lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=20), lr_scheduler.ExponentialLR(optimizer, 0.99)],
        milestones=[20],
    ),
]


@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_schedulers(client, schedule):
    ours, inputs, targets = problem()
    theirs = copy.deepcopy(ours)
    reference = torch.optim.Adam(theirs.parameters(), lr=0.01)
    train(theirs, reference, inputs, targets, schedule(reference))
    optimizer = RemoteOptimizer(ours.parameters(), "adam", client, lr=0.01)
    train(ours, optimizer, inputs, targets, schedule(optimizer))
    compare(ours, theirs)


def test_a_scheduler_that_moves_momentum(client):
    def cyclic(optimizer):
        return lr_scheduler.CyclicLR(optimizer, 0.001, 0.05, step_size_up=30, base_momentum=0.7, max_momentum=0.95)

    ours, inputs, targets = problem()
    theirs = copy.deepcopy(ours)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9)
    train(theirs, reference, inputs, targets, cyclic(reference))
    optimizer = RemoteOptimizer(ours.parameters(), "momentum", client, lr=0.01)
    train(ours, optimizer, inputs, targets, cyclic(optimizer))
    compare(ours, theirs)


def test_parameters_that_have_a_gradient_only_now_and_then(client):
    """Their moments and their step count stand still meanwhile, as in torch."""

    def run(optimizer, some):
        for step, gradients in enumerate(torch.randn(60, 3, 5, generator=torch.Generator().manual_seed(1))):
            for place, (p, gradient) in enumerate(zip(some, gradients, strict=True)):
                p.grad = gradient if step % (place + 1) == 0 else None
            optimizer.step()

    ours, theirs = ([torch.ones(5, requires_grad=True) for _ in range(3)] for _ in range(2))
    run(torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1), theirs)
    run(RemoteOptimizer(ours, "adamw", client, lr=0.01, weight_decay=0.1), ours)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


def test_a_group_added_late_begins_at_its_own_first_step(client):
    def run(make):
        some = [torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)]
        optimizer = make(some[:1])
        for step in range(20):
            if step == 10:
                optimizer.add_param_group({"params": some[1:], "lr": 0.1})
            optimizer.zero_grad()
            sum((p**2).sum() for p in some).backward()
            optimizer.step()
        return some

    theirs = run(lambda params: torch.optim.Adam(params, lr=0.01))
    ours = run(lambda params: RemoteOptimizer(params, "adam", client, lr=0.01))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


def test_the_learning_rate_of_a_learned_optimizer_multiplies_its_updates(client):
    def first_update(**options):
        p = torch.zeros(4, requires_grad=True)
        optimizer = RemoteOptimizer([p], "rnnprop", client, **options)
        p.grad = torch.tensor([0.1, -0.2, 3.0, 0.0])
        optimizer.step()
        return p.detach()

    update = first_update()
    assert update.abs().max() > 0
    torch.testing.assert_close(first_update(lr=0.5), 0.5 * update)
    torch.testing.assert_close(first_update(lr=torch.tensor(0.25)), 0.25 * update)
