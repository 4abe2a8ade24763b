"""f(θ_t) and ∇_t of a group's tasks, without a graph back to φ.

Small tasks cost PyTorch more in bookkeeping than in sums, and that of vmap and autograd is paid again at every step. So
what has been asked for often is *traced*: run once while `make_fx` writes down the plain operations that vmap and
autograd make of it. From then on those are run instead, twice as fast: the same operations on the same numbers in the
same order, so that no bit changes. On a GPU they are captured as a CUDA graph besides.
"""

import copy
from collections import Counter
from itertools import pairwise
from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from optserve_server.metatraining import perceptrons
from optserve_server.metatraining.captured import Captured, Evaluation
from optserve_server.tasks.base import Batch, TaskFamily, Theta

if TYPE_CHECKING:
    from optserve_server.metatraining.trajectories import Group

TRACED_AFTER = 200
"""Evaluations: tracing costs as much as a few hundred save."""

_MOST_TRACED = 256  # for a run whose groups come in ever new sizes

_asked: Counter[Any] = Counter()
_traced: dict[Any, Evaluation] = {}


def losses_and_gradients(group: "Group", batch: Batch) -> tuple[Tensor, Tensor]:
    """f(θ_t) on `batch`, `[tasks]`, and ∇_t, `[tasks, n]`."""
    perceptron = perceptrons.perceptron_of(group, batch)
    if perceptron is not None:
        return perceptrons.losses_and_gradients(perceptron, group, batch)
    tensors = [group.theta, *group.task_data.values(), *batch.values()]
    if group.scales is not None:
        tensors.append(group.scales)
    # Where memory is estimated tensors have shapes and no numbers; and a family may have fields that are no keys.
    if type(group.theta) is not Tensor or not _is_key(group.family):
        return _evaluation(group, batch)(*tensors)
    key = (type(group), group.family, group.tasks, *map(_form, tensors))
    traced = _traced.get(key)
    if traced is None:
        _asked[key] += 1
        if _asked[key] < TRACED_AFTER or len(_traced) >= _MOST_TRACED:
            return _evaluation(group, batch)(*tensors)
        traced = _traced[key] = _prepared(_evaluation(group, batch), tensors)
    with torch.no_grad():
        return traced(*tensors)


def _is_key(family: TaskFamily) -> bool:
    try:
        hash(family)
    except TypeError:
        return False
    return True


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _evaluation(group: "Group", batch: Batch) -> Evaluation:
    like = copy.copy(group)

    def evaluate(theta: Theta, *others: Tensor) -> tuple[Tensor, Tensor]:
        rest = iter(others)
        like.task_data = dict(zip(group.task_data, rest, strict=False))
        seen = dict(zip(batch, rest, strict=False))
        like.scales = next(rest, None)
        with torch.enable_grad():
            theta = theta.detach().requires_grad_()
            losses = like.losses(theta, seen)
            (gradients,) = torch.autograd.grad(losses, theta, torch.ones_like(losses))
        return losses.detach(), gradients

    return evaluate


def _prepared(evaluate: Evaluation, tensors: list[Tensor]) -> Evaluation:
    if not tensors[0].is_cuda:
        return _trace(evaluate, tensors)
    still = [tensor.clone() for tensor in tensors]  # whose strides are those that a graph reads with
    return Captured(_trace(evaluate, still), still)


def _trace(evaluate: Evaluation, tensors: list[Tensor]) -> Evaluation:
    from torch.fx.experimental.proxy_tensor import make_fx  # takes most of a second, which few processes need

    traced = make_fx(evaluate)(*tensors)
    _drop_idle_views(traced.graph)
    _fold_constants(traced)
    _drop_idle_products(traced)
    _join_slices(traced.graph)
    _call_directly(traced.graph)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    evaluation: Evaluation = traced.forward
    return evaluation


def _drop_idle_views(graph: Any) -> None:
    """Of views that have the shape and the strides of what they are views of."""
    aten = torch.ops.aten
    views = {aten.detach, aten.alias, aten.view, aten._unsafe_view, aten.expand, aten.permute}
    for node in graph.nodes:
        if _operation(node) in views:
            before, after = node.args[0].meta["tensor_meta"], node.meta["tensor_meta"]
            if before.shape == after.shape and before.stride == after.stride:
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)


def _fold_constants(traced: Any) -> None:
    """Compute once what is the same at every call: ones and zeros of some shape, and what is made of them alone."""
    aten = torch.ops.aten
    filled = {aten.ones_like: 1.0, aten.new_ones: 1.0, aten.zeros_like: 0.0, aten.new_zeros: 0.0}
    plain = {aten.scalar_tensor, aten.full, aten.zeros, aten.ones, aten.arange}
    nodes = [node for node in traced.graph.nodes if _operation(node) is not None]
    if any(node.target._schema.is_mutable for node in nodes):
        return
    constants: dict[Any, Tensor] = {}
    for node in nodes:
        operation, given = _operation(node), node.all_input_nodes
        if operation in filled:
            form, device = node.meta["tensor_meta"], given[0].meta["val"].device
            value = torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device=device)
            constants[node] = value.fill_(filled[operation])
        elif operation in plain or (given and all(one in constants for one in given)):
            arguments = torch.fx.node.map_arg(node.args, constants.__getitem__)
            value = node.target(*arguments, **node.kwargs)
            if isinstance(value, Tensor):
                constants[node] = value
    for number, (node, value) in enumerate(constants.items()):
        traced.register_buffer(f"constant_{number}", value)
        with traced.graph.inserting_before(node):
            node.replace_all_uses_with(traced.graph.get_attr(f"constant_{number}"))
        traced.graph.erase_node(node)


def _drop_idle_products(traced: Any) -> None:
    """Of x · 1 and x¹, which the chain rule makes many of."""
    aten, graph = torch.ops.aten, traced.graph
    for node in graph.nodes:
        idle = None
        if node.target == aten.pow.Tensor_Scalar and node.args[1] == 1:
            idle = node.args[0]
        elif node.target == aten.mul.Tensor and node.args[0].op == "get_attr":
            factor = getattr(traced, node.args[0].target)
            idle = node.args[1] if bool((factor == 1).all()) else None
        if idle is not None and _form(idle.meta["val"]) == _form(node.meta["val"]):
            node.replace_all_uses_with(idle)
            graph.erase_node(node)


def _join_slices(graph: Any) -> None:
    """∇_t is put together from its parts at once: it was a sum of whole ∇_t, each of one tensor and 0 elsewhere."""
    aten = torch.ops.aten
    for node in reversed(list(graph.nodes)):
        parts = _slices(node)
        if len(parts) < 2:
            continue
        parts.sort(key=lambda part: part.args[3])
        _, sizes, dim, *_ = parts[0].args
        bounds = [0, *(part.args[4] for part in parts)]
        whole = [(sizes, dim, start, stop, 1) for start, stop in pairwise(bounds)]
        if [part.args[1:] for part in parts] == whole and bounds[-1] == sizes[dim]:
            with graph.inserting_before(node):
                joined = graph.call_function(aten.cat.default, ([part.args[0] for part in parts], dim))
                # The sums would have made 0 of −0.
                node.replace_all_uses_with(graph.call_function(aten.add.Scalar, (joined, 0)))
            graph.eliminate_dead_code()


def _slices(node: Any) -> list[Any]:
    """The slices that a node is the sum of; none where it is something else."""
    aten = torch.ops.aten
    if node.target == aten.slice_backward.default:
        return [node]
    if node.target != aten.add.Tensor or len(node.args) != 2 or node.kwargs:
        return []
    left, right = (_slices(term) if isinstance(term, torch.fx.Node) else [] for term in node.args)
    return left + right if left and right else []


def _call_directly(graph: Any) -> None:
    """Torch's own functions instead of the operations under them, which take as much again to find their arguments."""
    for node in graph.nodes:
        function = getattr(torch, getattr(_operation(node), "__name__", ""), None)
        if isinstance(function, BuiltinFunctionType):
            node.target = function


def _operation(node: Any) -> Any:
    """Which of torch's own operations a node calls; None if none."""
    return getattr(node.target, "overloadpacket", None)
