"""What PyTorch's own test battery asks of every optimizer (test/test_optim.py), asked of both of optserve.torch."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from optserve import Client, errors
from optserve.torch import LocalOptimizer, RemoteOptimizer
from optserve.wire import tensors

ROWS = [
    ("lstm", {}),
    ("rnnprop", {}),
    ("sgd", {"lr": 0.1}),
    ("momentum", {"lr": 0.1, "weight_decay": 0.1}),
    ("rmsprop", {"lr": 0.01}),
    ("adam", {"lr": 0.01, "amsgrad": True}),
    ("adamw", {"lr": 0.01, "maximize": True}),
    ("random-hierarchical", {"horizon": 20}),
    ("random-small_fc", {}),
]
every_optimizer = pytest.mark.parametrize(("name", "options"), ROWS, ids=[name for name, _ in ROWS])
every_sensible_optimizer = pytest.mark.parametrize(("name", "options"), ROWS[:-1], ids=[name for name, _ in ROWS[:-1]])
"""All but `small_fc` with random weights: the rest have been meta-trained, or are sensible before."""


@pytest.fixture(params=[RemoteOptimizer, LocalOptimizer])
def make(request, client, with_arrays):
    """Makes an optimizer of parameters."""
    return lambda params, name="adam", **options: request.param(params, name, client, **options)


def parameters():
    torch.manual_seed(2)
    return [torch.randn(2, 3, requires_grad=True), torch.randn(3, requires_grad=True)]


def closure_of(optimizer, some, scale=1.0):
    def closure():
        optimizer.zero_grad()
        loss = scale * ((some[0] @ some[1]) ** 2).sum() + scale * (some[0].sin()).sum()
        loss.backward()
        return loss

    return closure


def take(optimizer, some, steps):
    for _ in range(steps):
        optimizer.step(closure_of(optimizer, some))


def equal(one, other):
    """Deep equality of state_dicts, tensors by value, dtype and shape."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_optimizer
def test_a_second_optimizer_loaded_from_the_state_dict_goes_the_same_way_bit_for_bit(make, name, options):
    some = parameters()
    optimizer = make(some, name, **options)
    take(optimizer, some, 6)
    state_dict = optimizer.state_dict()
    others = [p.detach().clone().requires_grad_() for p in some]
    other = make(others, name, **options)
    other.load_state_dict(through_a_file(state_dict))
    assert equal(other.state_dict(), state_dict)
    for _ in range(4):
        take(optimizer, some, 1)
        take(other, others, 1)
        assert all(map(torch.equal, some, others))
    assert equal(optimizer.state_dict(), other.state_dict())


def test_training_resumes_on_another_server_where_the_version_has_another_number(client, start_server):
    other_client = Client(start_server().url)
    arrays, metadata = tensors.decode(client.optimizers.weights("rnnprop", 1))
    first, second = (tensors.encode(arrays, {**metadata, "comment": comment}) for comment in ("first", "second"))
    client.optimizers.import_weights("moving", first)
    client.optimizers.import_weights("moving", second)
    some, others = parameters(), parameters()
    optimizer = RemoteOptimizer(some, "moving@2", client)
    other = RemoteOptimizer(others, "rnnprop", other_client)
    take(optimizer, some, 3)
    state_dict = through_a_file(optimizer.state_dict())
    with pytest.raises(errors.OptimizerNotFound, match="optserve optimizers export moving@2"):
        other.load_state_dict(state_dict)
    other_client.optimizers.import_weights("moving", second)
    other.load_state_dict(state_dict)
    others[0].data.copy_(some[0])
    others[1].data.copy_(some[1])
    take(optimizer, some, 3)
    take(other, others, 3)
    assert all(map(torch.equal, some, others))
    assert equal(other.state_dict()["state"], optimizer.state_dict()["state"])


@every_optimizer
def test_loading_into_an_optimizer_that_has_gone_another_way_forgets_that_way(make, name, options):
    some, others = parameters(), parameters()
    optimizer, other = make(some, name, **options), make(others, name, **options)
    take(optimizer, some, 3)
    take(other, others, 7)
    other.load_state_dict(optimizer.state_dict())
    others[0].data.copy_(some[0])
    others[1].data.copy_(some[1])
    take(optimizer, some, 2)
    take(other, others, 2)
    assert all(map(torch.equal, some, others))


@every_optimizer
def test_state_dict_is_a_snapshot_and_deterministic(make, name, options):
    some = parameters()
    optimizer = make(some, name, **options)
    take(optimizer, some, 3)
    first, second = optimizer.state_dict(), optimizer.state_dict()
    assert equal(first, second)
    assert not any("hidden_state" in part for part in optimizer.state.values())
    kept = copy.deepcopy(first)
    take(optimizer, some, 1)
    assert equal(first, kept)
    assert not equal(first, optimizer.state_dict())


@every_optimizer
def test_state_is_kept_parameter_by_parameter(make, name, options):
    some = parameters()
    optimizer = make(some, name, **options)
    assert optimizer.state_dict()["state"] == {}
    take(optimizer, some, 3)
    assert len(optimizer.state) == 2
    assert all(len(part) > 0 for part in optimizer.state.values())
    for index, part in optimizer.state_dict()["state"].items():
        assert part["step"].item() == 3
        assert part["hidden_state"].dtype == torch.float32
        assert part["hidden_state"].shape[1] == some[index].numel()


def test_state_dict_names_the_version_and_neither_server_nor_session(make, client, server):
    some = parameters()
    optimizer = make(some, "adam")
    take(optimizer, some, 1)
    text = str(optimizer.state_dict())
    assert "sha256" in text
    assert server.url not in text
    assert not any(session.id in text for session in client.sessions.list())


@every_optimizer
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_and_pickles_take_the_hidden_state_along(make, name, options, copied):
    some = parameters()
    optimizer = make(some, name, **options)
    take(optimizer, some, 3)
    other, others = copied((optimizer, some))
    assert equal(other.state_dict(), optimizer.state_dict())
    assert {key for key in vars(other) if key[0] != "_"} == {key for key in vars(optimizer) if key[0] != "_"}
    take(optimizer, some, 2)
    take(other, others, 2)
    assert all(map(torch.equal, some, others))


def test_a_pickle_holds_no_key(server):
    optimizer = RemoteOptimizer(parameters(), "adam", Client(server.url, api_key="very-secret"))
    assert b"very-secret" not in pickle.dumps(optimizer)


@every_optimizer
def test_a_step_without_any_gradient_changes_nothing_and_calls_nobody(make, client, name, options):
    some = [torch.randn(2, 3), torch.randn(5, requires_grad=True)]
    before = [p.detach().clone() for p in some]
    sessions = len(client.sessions.list())
    optimizer = make(some, name, **options)
    optimizer.step()
    assert all(map(torch.equal, some, before))
    assert len(client.sessions.list()) == sessions


def test_closures_run_with_gradients_even_under_no_grad(make):
    some = parameters()
    optimizer = make(some)
    modes = []

    def closure():
        modes.append(torch.is_grad_enabled())
        return closure_of(optimizer, some)()

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert modes == [True]
    assert loss.requires_grad
    assert optimizer.step() is None


def test_step_hooks(make):
    some = parameters()
    optimizer = make(some)
    calls = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("global before")),
        register_optimizer_step_post_hook(lambda *_: calls.append("global after")),
        optimizer.register_step_pre_hook(lambda *_: calls.append("before")),
        optimizer.register_step_post_hook(lambda *_: calls.append("after")),
    ]
    take(optimizer, some, 1)
    assert calls == ["global before", "before", "after", "global after"]
    for handle in handles:
        handle.remove()
    take(optimizer, some, 1)
    assert len(calls) == 4


def test_state_dict_hooks(make):
    some = parameters()
    optimizer = make(some)
    take(optimizer, some, 1)

    def before(optimizer):
        optimizer.state["seen"] = 1

    def after(optimizer, state_dict):
        return {"wrapped": state_dict}

    before_handle = optimizer.register_state_dict_pre_hook(before)
    after_handle = optimizer.register_state_dict_post_hook(after)
    assert optimizer.state_dict()["wrapped"]["state"]["seen"] == 1
    assert optimizer.state["seen"] == 1
    before_handle.remove()
    after_handle.remove()
    assert "wrapped" not in optimizer.state_dict()


def test_load_state_dict_hooks(make):
    some = parameters()
    optimizer = make(some, lr=0.1)
    take(optimizer, some, 2)
    state_dict = optimizer.state_dict()
    calls = []

    def change(optimizer, state_dict):
        state_dict["param_groups"] = [{**group, "lr": 0.002} for group in state_dict["param_groups"]]

    def replace(optimizer, state_dict):
        return {**state_dict, "state": {**state_dict["state"], "seen": True}}

    optimizer.register_load_state_dict_pre_hook(change)
    optimizer.register_load_state_dict_pre_hook(replace)
    optimizer.register_load_state_dict_post_hook(lambda optimizer: calls.append(optimizer.param_groups[0]["lr"]))
    optimizer.load_state_dict(state_dict)
    assert calls == [0.002]
    assert optimizer.state["seen"] is True
    assert state_dict["param_groups"][0]["lr"] == 0.1
    assert equal(optimizer.state_dict()["state"][0], state_dict["state"][0])


def test_a_group_named_twice_can_still_be_saved(make):
    some = parameters()
    optimizer = make(some)
    take(optimizer, some, 1)
    optimizer.param_groups.extend(optimizer.param_groups)
    state_dict = optimizer.state_dict()
    assert state_dict["param_groups"][0] == state_dict["param_groups"][1]
    assert len(state_dict["state"]) == 2


def test_state_dicts_without_newer_options_or_with_plain_steps_load(make):
    some = parameters()
    optimizer = make(some)
    take(optimizer, some, 2)
    older = copy.deepcopy(optimizer.state_dict())
    for group in older["param_groups"]:
        del group["amsgrad"], group["maximize"]
    for part in older["state"].values():
        part["step"] = part["step"].item()
    others = [p.detach().clone().requires_grad_() for p in some]
    other = make(others)
    other.load_state_dict(older)
    take(optimizer, some, 2)
    take(other, others, 2)
    assert all(map(torch.equal, some, others))


@pytest.mark.parametrize("name", ["adam", "random-hierarchical"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_hidden_state_stays_float32_for_parameters_of_any_dtype(make, name, dtype):
    some = parameters()
    optimizer = make(some, name)
    take(optimizer, some, 3)
    state_dict = optimizer.state_dict()
    other = make([p.detach().to(dtype).requires_grad_() for p in some], name)
    other.load_state_dict(state_dict)
    assert equal(other.state_dict()["state"], state_dict["state"])


def test_it_is_a_pytorch_optimizer_and_can_be_printed(make):
    optimizer = make(parameters(), "adam", lr=0.25)
    assert isinstance(optimizer, Optimizer)
    text = repr(optimizer)
    assert text.startswith(f"{type(optimizer).__name__} (")
    assert "lr: 0.25" in text
    assert "optimizer: adam" in text
    assert repr(optimizer) == text


def test_gradients_are_set_to_none_or_to_zero(make):
    some = parameters()
    optimizer = make(some)
    take(optimizer, some, 1)
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in some)
    optimizer.zero_grad()
    assert all(p.grad is None for p in some)


def test_gradient_scaler(make):
    some = parameters()
    optimizer = make(some, "sgd", lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = some[1].detach().clone()
    scaler.scale((some[1] * 2).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(some[1], before - 0.2)
    kept = some[1].detach().clone()
    some[1].grad = torch.full_like(some[1], float("inf"))
    scaler.scale(torch.ones(1))
    scaler.step(optimizer)
    assert torch.equal(some[1], kept)


@every_sensible_optimizer
def test_it_learns(make, name, options):
    torch.manual_seed(0)
    x = torch.randn(64, 5)
    y = x @ torch.randn(5, 1)
    net = nn.Linear(5, 1)
    optimizer = make(
        net.named_parameters(), name, **{**options, "weight_decay": 0.0} if "weight_decay" in options else options
    )
    losses = []
    for _ in range(40):
        loss = nn.functional.mse_loss(net(x), y) * (-1 if options.get("maximize") else 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss.detach())
        losses.append(abs(loss.item()))
    assert losses[-1] < 0.9 * losses[0]
