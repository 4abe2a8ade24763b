"""What RemoteOptimizer takes, what it refuses, and that a refusal changes nothing."""

import math
import re

import pytest
import torch
from torch import nn

from optserve import AsyncClient, Client, errors
from optserve.torch import RemoteOptimizer


@pytest.fixture
def make(client):
    """Makes a RemoteOptimizer of parameters."""
    return lambda params, name="sgd", **options: RemoteOptimizer(params, name, client, **options)


def parameter(*shape, **options):
    return torch.ones(shape, **options).requires_grad_()


# --- at construction --------------------------------------------------------------------------------------------------


def test_the_client_may_be_a_url_or_come_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("OPTSERVE_URL", server.url)
    for client in (server.url, None):
        p = parameter(3)
        optimizer = RemoteOptimizer([p], "sgd", client, lr=0.5)
        p.grad = torch.ones(3)
        optimizer.step()
        assert p.tolist() == [0.5, 0.5, 0.5]


def test_without_a_name_it_is_the_servers_default(make, client):
    (default,) = [one for one in client.optimizers.list() if one.default]
    group = make([parameter(3)], None).param_groups[0]
    assert group["optimizer"] == default.name
    assert group["lr"] == 1


def test_defaults_are_those_of_torch(make):
    ours, theirs = make([parameter(3)], "adam").defaults, torch.optim.Adam([parameter(3)]).defaults
    for name in ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize"):
        assert ours[name] == theirs[name]


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("adamm", {}, errors.OptimizerNotFound, "did you mean"),
        ("adam@99", {}, errors.VersionNotFound, "99"),
        ("adam@nobody", {}, errors.AliasNotFound, "nobody"),
        ("adam", {"beta": (0.9, 0.99)}, errors.HyperparametersInvalid, "did you mean 'betas'"),
        ("adam", {"betas": (0.9, 1.5)}, errors.HyperparametersInvalid, "betas"),
        ("adam", {"weight_decay": -1}, errors.HyperparametersInvalid, "weight_decay"),
        ("rnnprop", {"betas": (0.9, 0.9)}, errors.HyperparametersInvalid, "learned"),
        ("adam", {"lr": -0.1}, ValueError, "lr is -0.1"),
        ("rnnprop", {"lr": math.nan}, ValueError, "lr is nan"),
        ("adam", {"fused": True}, TypeError, "'fused' says how torch computes a step"),
        ("adam", {"foreach": None}, TypeError, "foreach"),
        ("adam", {"on_nonfinite": "ignore"}, ValueError, "'raise' or 'skip'"),
    ],
)
def test_mistakes_are_told_at_construction(make, name, options, error, words):
    with pytest.raises(error, match=words):
        make([parameter(3)], name, **options)


def test_pytorchs_own_checks_of_the_parameters(make):
    with pytest.raises(ValueError, match="empty parameter list"):
        make([])
    with pytest.raises(TypeError, match="iterable of Tensors"):
        make(parameter(3))
    with pytest.raises(ValueError, match="non-leaf"):
        make([parameter(3) * 2])
    shared = parameter(3)
    with pytest.raises(ValueError, match="more than one parameter group"):
        make([{"params": [shared]}, {"params": [shared]}])


def test_a_groups_own_hyperparameters_are_checked_and_a_bad_group_is_not_added(make):
    optimizer = make([parameter(3)], "adam")
    for options in ({"betas": (2.0, 0.9)}, {"lr": -1}):
        with pytest.raises(ValueError, match=r"betas|lr"):
            optimizer.add_param_group({"params": [parameter(2)], **options})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("name", "key"),
    [("rnnprop", "weight_decay"), ("rnnprop", "maximize"), ("adam", "momentum"), ("adam", "weigth_decay")],
)
def test_hyperparameters_that_the_optimizer_does_not_know_are_refused_in_a_group_too(make, name, key):
    with pytest.raises(errors.HyperparametersInvalid):
        make([{"params": [parameter(3)], key: 1}], name)
    optimizer = make([parameter(3)], name)
    with pytest.raises(errors.HyperparametersInvalid):
        optimizer.add_param_group({"params": [parameter(2)], key: 1})
    assert len(optimizer.param_groups) == 1


def test_what_pytorch_keeps_in_groups_is_no_hyperparameter(make):
    optimizer = make([{"params": [parameter(3)], "initial_lr": 0.5, "lr": 0.25, "name": "head"}], "rnnprop")
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=9, cycle_momentum=False)
    other = make([parameter(3)], "rnnprop")
    other.load_state_dict(optimizer.state_dict() | {"state": {}})
    optimizer.add_param_group({**optimizer.param_groups[0], "params": [parameter(2)]})
    assert other.param_groups[0]["max_lr"] == 1


def test_a_group_cannot_have_another_optimizer(make):
    with pytest.raises(ValueError, match="make another RemoteOptimizer"):
        make([{"params": [parameter(3)]}, {"params": [parameter(2)], "optimizer": "rnnprop"}])


def test_a_client_that_is_none_is_refused(server):
    with pytest.raises(TypeError, match=r"must be an optserve.Client, a URL or None"):
        RemoteOptimizer([parameter(3)], "sgd", AsyncClient(server.url))


def test_a_server_that_is_not_there_is_told_at_construction():
    with pytest.raises(errors.ConnectionFailed, match="optserve serve"):
        RemoteOptimizer([parameter(3)], "adam", Client("http://127.0.0.1:9", retries=0))


# --- parameters -------------------------------------------------------------------------------------------------------


def test_complex_parameters_are_refused_by_name(make):
    with pytest.raises(TypeError, match=r"parameter 'phase' is torch.complex64.*view_as_real"):
        make([("phase", parameter(3, dtype=torch.complex64))])
    with pytest.raises(TypeError, match="parameter '1' is"):
        make([parameter(3), parameter(3, dtype=torch.complex128)])


def test_sparse_gradients_are_refused_by_name_and_nothing_changes(make):
    embedding = nn.Embedding(5, 2, sparse=True)
    other = parameter(3)
    optimizer = make([("bias", other), ("embedding", embedding.weight)])
    (embedding(torch.tensor([1])).sum() + other.sum()).backward()
    with pytest.raises(errors.GradientsInvalid, match="gradient of parameter 'embedding' is sparse"):
        optimizer.step()
    assert other.tolist() == [1, 1, 1]


def test_every_layout_in_memory(make):
    """Transposed, expanded from channels-last, 0-d, empty, and a slice of something larger."""
    some = [
        torch.randn(3, 4).t().requires_grad_(),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_(),
        torch.tensor(2.0, requires_grad=True),
        torch.empty(0, 3, requires_grad=True),
        torch.randn(6, 6)[::2, 1:4].requires_grad_(),
    ]
    gradients = [torch.randn_like(p) for p in some]
    gradients[0] = torch.randn(3, 4).t()
    expected = [p.detach() - 0.5 * gradient for p, gradient in zip(some, gradients, strict=True)]
    for p, gradient in zip(some, gradients, strict=True):
        p.grad = gradient
    make(some, lr=0.5).step()
    for p, value in zip(some, expected, strict=True):
        torch.testing.assert_close(p.detach(), value)
    assert not some[0].is_contiguous()


def test_a_group_of_empty_parameters_is_passed_over(make, client):
    sessions = len(client.sessions.list())
    empty = torch.empty(0, requires_grad=True)
    empty.grad = torch.empty(0)
    optimizer = make([{"params": [empty]}, {"params": [torch.empty(2, 0, requires_grad=True)]}])
    optimizer.step()
    assert len(client.sessions.list()) == sessions
    assert optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_are_converted_on_the_way(make, dtype):
    p, q = parameter(4, dtype=dtype), parameter(4)
    optimizer = make([p, q], "adam", lr=0.5)
    for gradient in ([1.0, 2.0, 3.0, 4.0], [0.5, 0.25, -1.0, 0.0]):
        p.grad, q.grad = torch.tensor(gradient, dtype=dtype), torch.tensor(gradient)
        optimizer.step()
    assert p.dtype == dtype
    torch.testing.assert_close(p.float(), q.detach(), rtol=0, atol=8 * torch.finfo(dtype).eps + 1e-6)


def test_parameters_are_known_to_the_server_by_name(make, client):
    known = {session.id for session in client.sessions.list()}
    net = nn.Linear(2, 3)
    optimizer = make(net.named_parameters(), label="named", horizon=100)
    net(torch.ones(2)).sum().backward()
    optimizer.step()
    (session,) = [one for one in client.sessions.list() if one.id not in known]
    assert session.parameters == {"weight": (3, 2), "bias": (3,)}
    assert (session.info.label, session.info.horizon) == ("named", 100)
    optimizer.close()
    assert session.id not in {one.id for one in client.sessions.list()}


def test_a_group_whose_parameters_were_changed_behind_its_back_says_so(make):
    p, q = parameter(3), parameter(3)
    optimizer = make([p])
    p.grad, q.grad = torch.ones(3), torch.ones(3)
    optimizer.step()
    optimizer.param_groups[0]["params"].append(q)
    with pytest.raises(RuntimeError, match="add_param_group"):
        optimizer.step()


# --- gradients and losses that are not finite -------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_told_by_name_and_no_group_is_stepped(make, bad):
    p, q = parameter(3), parameter(2, 3)
    optimizer = make([{"params": [("first", p)]}, {"params": [("second", q)]}])
    p.grad, q.grad = torch.ones(3), torch.ones(2, 3)
    q.grad[1, 2] = bad
    with pytest.raises(errors.GradientsInvalid, match=re.escape(f"'second' is {bad} at index [1, 2]")) as raised:
        optimizer.step()
    assert (raised.value.parameter, raised.value.index) == ("second", [1, 2])
    assert p.tolist() == [1, 1, 1]
    q.grad[1, 2] = 1
    optimizer.step()
    assert optimizer.state_dict()["state"][0]["step"] == 1


def test_a_double_that_float32_cannot_hold_is_not_finite(make):
    p = parameter(2, dtype=torch.float64)
    p.grad = torch.tensor([1.0, 1e300], dtype=torch.float64)
    with pytest.raises(errors.GradientsInvalid, match="as float32"):
        make([p]).step()


def test_steps_that_are_not_finite_can_be_left_out(make):
    p, q = parameter(3), parameter(3)
    optimizer = make([{"params": [p]}, {"params": [q]}], lr=0.5, on_nonfinite="skip")
    p.grad, q.grad = torch.ones(3), torch.tensor([1.0, math.nan, 1.0])
    optimizer.step()
    assert p.tolist() == q.tolist() == [1, 1, 1]
    optimizer.step(loss=math.inf)
    q.grad = torch.ones(3)
    optimizer.step(loss=math.nan)
    assert p.tolist() == [1, 1, 1]
    optimizer.step()
    assert p.tolist() == q.tolist() == [0.5, 0.5, 0.5]


def test_a_loss_that_is_not_finite_is_refused_before_anything_is_sent(make):
    p = parameter(3)
    p.grad = torch.ones(3)
    with pytest.raises(errors.RequestInvalid, match="loss is nan"):
        make([p]).step(loss=torch.tensor(math.nan))
    assert p.tolist() == [1, 1, 1]


@pytest.mark.parametrize("loss", [0.5, torch.tensor(0.5), torch.tensor(0.5, requires_grad=True), None])
def test_a_loss_is_a_number_or_a_tensor(make, loss):
    p = parameter(3)
    p.grad = torch.ones(3)
    make([p], lr=0.5).step(loss=loss)
    assert p.tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("loss", [torch.tensor(0.5), 0.5])
def test_a_loss_given_as_the_closure_says_what_to_write(make, loss):
    with pytest.raises(TypeError, match=r"pass a loss as step\(loss=…\)"):
        make([parameter(3)]).step(loss)


@pytest.mark.parametrize("result", [(torch.tensor(0.5), "seen"), torch.ones(2), {"loss": 1}, "done", 0.5])
def test_a_closure_may_return_anything(make, result):
    p = parameter(3)
    p.grad = torch.ones(3)
    assert make([p], lr=0.5).step(lambda: result) is result
    assert p.tolist() == [0.5, 0.5, 0.5]


def test_a_parameter_that_is_not_finite_is_not_called_a_gradient(make):
    p, q = parameter(3), parameter(3)
    optimizer = make([{"params": [("first", p)]}, {"params": [("broken", q)]}], weight_decay=0.1)
    p.grad, q.grad = torch.ones(3), torch.ones(3)
    q.data[1] = math.nan
    with pytest.raises(errors.RequestInvalid, match=r"parameter 'broken' itself is not finite.* at index \[1\]"):
        optimizer.step()
    assert p.tolist() == [1, 1, 1]


# --- state ------------------------------------------------------------------------------------------------------------


def test_a_state_dict_of_a_pytorch_optimizer_is_refused(make):
    p = parameter(3)
    p.grad = torch.ones(3)
    theirs = torch.optim.Adam([p])
    theirs.step()
    with pytest.raises(ValueError, match="the state_dict is not one of optserve"):
        make([p], "adam").load_state_dict(theirs.state_dict())


def test_a_state_dict_of_another_model_is_refused(make):
    p, q = parameter(3), parameter(4)
    p.grad = torch.ones(3)
    optimizer = make([p], "adam")
    optimizer.step()
    with pytest.raises(ValueError, match=r"hidden_state of parameter 0 has the shape \(2, 3\), but needs \(2, 4\)"):
        make([q], "adam").load_state_dict(optimizer.state_dict())


def test_a_version_that_the_server_has_not_is_told_with_how_to_bring_it(make):
    p = parameter(3)
    p.grad = torch.ones(3)
    optimizer = make([p], "rnnprop")
    optimizer.step()
    state_dict = optimizer.state_dict()
    state_dict["param_groups"][0]["sha256"] = "0" * 64
    with pytest.raises(errors.VersionNotFound, match="optserve optimizers import"):
        make([p], "rnnprop").load_state_dict(state_dict)


@pytest.mark.parametrize("forget", [lambda optimizer: optimizer.close(), lambda optimizer: optimizer.state.clear()])
def test_after_close_and_with_its_state_cleared_it_begins_anew(make, forget):
    p = parameter(3)
    p.grad = torch.ones(3)
    optimizer = make([p], "adam")
    optimizer.step()
    optimizer.state_dict()
    forget(optimizer)
    optimizer.step()
    assert optimizer.state_dict()["state"][0]["step"] == 1


def test_a_groups_own_notes_are_kept_and_its_typos_are_not(client):
    parameter = torch.nn.Parameter(torch.zeros(2))
    noted = {"params": [parameter], "lr_scale": 0.5, "layer": 3}
    optimizer = RemoteOptimizer([noted], "adam", client)
    parameter.grad = torch.ones(2)
    optimizer.step()
    assert optimizer.param_groups[0]["lr_scale"] == 0.5
    for name, key in (("adam", "lrr"), ("adam", "beta"), ("adam", "learning_rate"), ("rnnprop", "weight_decay")):
        with pytest.raises(errors.HyperparametersInvalid, match=key):
            RemoteOptimizer([{"params": [parameter], key: 0.1}], name, client)
