"""LocalOptimizer goes the way of RemoteOptimizer bit for bit, and their states move both ways."""

import copy
import logging
import pickle
import subprocess
import sys

import pytest
import torch
from tests.client.test_torch_battery import equal
from torch.optim import lr_scheduler

from optserve import Client, errors
from optserve.torch import LocalOptimizer, RemoteOptimizer

KINDS = ("hierarchical", "lstm", "adam")
every_kind = pytest.mark.parametrize("name", [*KINDS, "random-small_fc"])
STEPS = 20
SHAPES = ((20, 15), (7,), ())  # of more than a page, of less, and of one number
ALL_REQUESTS = (b"GET", b"POST", b"PUT", b"PATCH", b"DELETE")


def parameters():
    """The same ones each time."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]


def groups(some):
    return [{"params": some[:2]}, {"params": some[2:], "lr": 0.5}]


def gradients(step):
    generator = torch.Generator("cpu").manual_seed(step)
    scale = 10.0 ** (step % 3)
    return [scale * torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu") for shape in SHAPES]


def loss_at(step):
    """It falls, rises far for a while, and falls again."""
    return 1 / (1 + step) + (50.0 if 8 <= step < 13 else 0.0)


def take(optimizer, some, steps, scheduler=None):
    for step in steps:
        for p, gradient in zip(some, gradients(step), strict=True):
            p.grad = gradient
        if step % 5 == 3:
            some[1].grad = None
        optimizer.step(loss=loss_at(step))
        if scheduler is not None:
            scheduler.step()


def same(some, others):
    return all(map(torch.equal, some, others))


@pytest.fixture
def both(client, with_arrays):
    """A remote and a local optimizer of the same, and their parameters."""

    def make(name, arrange=list, **options):
        pairs = [(kind, parameters()) for kind in (RemoteOptimizer, LocalOptimizer)]
        return [(kind(arrange(some), name, client, **options), some) for kind, some in pairs]

    return make


@every_kind
def test_it_goes_the_way_of_the_served_one_bit_for_bit(both, caplog, name):
    guard = {"max_update_rms": 1e30, "patience": 3}
    told = []
    with caplog.at_level(logging.WARNING, "optserve"):
        for optimizer, some in (pairs := both(name, groups, horizon=STEPS, guard=guard)):
            caplog.clear()
            take(optimizer, some, range(STEPS))
            told.append([(record.msg, record.args[0], record.args[-1]) for record in caplog.records])
    (remote, theirs), (local, ours) = pairs
    assert same(ours, theirs)
    assert equal(local.state_dict(), remote.state_dict())
    assert told[0] == told[1]
    assert "the loss has been far above its best" in str(told)


def test_hyperparameters_that_groups_have_and_schedulers_move(both):
    def arrange(some):
        return [{"params": some[:2], "betas": (0.5, 0.9), "weight_decay": 0.1}, {"params": some[2:], "maximize": True}]

    (remote, theirs), (local, ours) = both("adam", arrange, lr=0.01, amsgrad=True)
    for optimizer, some in ((remote, theirs), (local, ours)):
        take(optimizer, some, range(STEPS), lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=STEPS + 1))
    assert same(ours, theirs)
    assert equal(local.state_dict(), remote.state_dict())


@every_kind
def test_states_move_both_ways(both, name):
    (remote, theirs), (local, ours) = both(name, groups, horizon=STEPS)
    take(remote, theirs, range(STEPS))
    undisturbed = [p.detach().clone() for p in theirs]
    (remote, theirs), _ = both(name, groups, horizon=STEPS)
    take(remote, theirs, range(7))
    with torch.no_grad():
        for mine, their in zip(ours, theirs, strict=True):
            mine.copy_(their)
    local.load_state_dict(remote.state_dict())
    take(local, ours, range(7, 14))
    with torch.no_grad():
        for mine, their in zip(ours, theirs, strict=True):
            their.copy_(mine)
    remote.load_state_dict(local.state_dict())
    take(remote, theirs, range(14, STEPS))
    assert same(theirs, undisturbed)


def test_once_made_it_needs_no_server(relay, client):
    undisturbed = parameters()
    optimizer = RemoteOptimizer(groups(undisturbed), "hierarchical", client, horizon=STEPS)
    take(optimizer, undisturbed, range(12))
    late = torch.zeros(4, requires_grad=True)
    with Client(relay.url, retries=0) as unsteady:
        some = parameters()
        optimizer = LocalOptimizer(groups(some), "hierarchical", unsteady, horizon=STEPS)
        relay.refuse = ALL_REQUESTS
        with pytest.raises(errors.ConnectionFailed):
            unsteady.optimizers.list()
        take(optimizer, some, range(3))
        optimizer, some = copy.deepcopy((optimizer, some))
        take(optimizer, some, range(3, 6))
        optimizer, some = pickle.loads(pickle.dumps((optimizer, some)))
        take(optimizer, some, range(6, 9))
        optimizer.load_state_dict(optimizer.state_dict())
        take(optimizer, some, range(9, 12))
        assert same(some, undisturbed)
        optimizer.add_param_group({"params": [late]})
        late.grad = torch.ones(4)
        optimizer.step(loss=1.0)
        assert late.any()
        optimizer.close()


def test_nothing_is_left_on_the_server(client):
    before = {session.id for session in client.sessions.list()}
    optimizer = LocalOptimizer(some := parameters(), "adam", client)
    take(optimizer, some, range(2))
    assert {session.id for session in client.sessions.list()} <= before
    optimizer.close()
    assert not optimizer.state


@pytest.mark.parametrize("name", ["hierarchical", "rnnprop", "random-small_fc", "adam"])
def test_what_the_process_has_set_makes_no_difference(both, name):
    (_, expected), (_, ours) = plain, changed = both(name, horizon=STEPS)
    take(*plain, range(STEPS))
    threads = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.set_default_device("meta")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            take(*changed, range(STEPS))
        assert (torch.get_default_dtype(), torch.get_num_threads()) == (torch.float64, 2)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)
        torch.set_default_device(None)
    assert same(ours, expected)


def test_wrong_input_is_told_as_the_server_tells_it(client):
    some = parameters()
    with pytest.raises(errors.OptimizerNotFound, match="did you mean 'lstm'"):
        LocalOptimizer(some, "lstmm", client)
    with pytest.raises(errors.RequestInvalid, match="did you mean 'patience'"):
        LocalOptimizer(some, "lstm", client, guard={"patiense": 3})
    optimizer = LocalOptimizer(some[:1], "adam", client)
    with pytest.raises(errors.HyperparametersInvalid, match="no hyperparameter 'momentum'"):
        optimizer.add_param_group({"params": some[1:], "momentum": 0.9})
    strange = RemoteOptimizer(parameters()[:1], "lstm", client)
    some[0].grad = torch.ones_like(some[0])
    optimizer.step()
    before, state_dict = optimizer.state_dict(), optimizer.state_dict()
    state_dict["state"][0]["hidden_state"] = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"has the shape \(2, 3\), but needs \(2, 300\)"):
        optimizer.load_state_dict(state_dict)
    assert equal(optimizer.state_dict(), before)
    optimizer.load_state_dict(strange.state_dict())
    assert optimizer.defaults["optimizer"] == "lstm"


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_what_it_takes_beside_torch():
    told = python(
        "import sys, torch, optserve.torch\n"
        "assert not [name for name in sys.modules if name.startswith('optserve_server')]\n"
        "sys.modules['numba'] = None\n"
        "try:\n"
        "    optserve.torch.LocalOptimizer([torch.ones(1)], 'adam', 'http://127.0.0.1:9')\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
    )
    assert told.strip().endswith("numba is not installed: pip install 'optserve[local]'")


def test_the_extra_names_all_that_it_takes():
    """The kernels without what only a server needs."""
    servers = "fastapi uvicorn sqlalchemy alembic pydantic prometheus_client sklearn matplotlib pytorch_optimizer"
    without = f"sys.modules.update(dict.fromkeys({servers.split()!r}))"
    python(f"import sys; {without}; import optserve_server.sessions.in_process")
