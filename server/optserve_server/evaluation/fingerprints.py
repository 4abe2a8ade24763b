"""Fingerprints: a hash of everything that a cell of an evaluation depends on, code included.

Two cells of one fingerprint are the same computation, so that what came of the one need not be computed again.
"""

import ast
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from optserve_server.evaluation.plans import Plan, PlannedTask
from optserve_server.evaluation.rules import BASELINES
from optserve_server.evaluation.third_party import PACKAGE
from optserve_server.optimizers import Optimizer

_ENGINE = (
    "optserve_server.evaluation.distortions",
    "optserve_server.evaluation.inner_loops",
    "optserve_server.evaluation.rules",
    "optserve_server.evaluation.summaries",
    "optserve_server.metatraining.trajectories",
)
_DIFFERENTIATION = "optserve_server.metatraining.differentiation"
_KERNELS = "optserve_server.optimizers.kernels"
_TUNING = "optserve_server.evaluation.baselines"
_THIRD_PARTY = "optserve_server.evaluation.third_party"
_STEPPERS = "optserve_server.optimizers.steppers"
_PACKAGES = ("numpy", "scikit-learn", "torch")


def of_baseline(plan: Plan, task: PlannedTask, name: str, device: torch.device) -> list[str]:
    """Of a baseline on one task, at each T of the plan."""
    rule = BASELINES[name]
    return _fingerprints(plan, task, repr(rule), [_TUNING, *_with_imports(type(rule.optimizer).__module__)], device)


def of_untuned(plan: Plan, task: PlannedTask, name: str, device: torch.device) -> list[str]:
    """Of an optimizer at its defaults on one task, at each T of the plan."""
    rule = BASELINES.get(name)
    if rule is None:
        return _fingerprints(plan, task, f"{name} of {PACKAGE} {version(PACKAGE)}", [_THIRD_PARTY], device)
    return _fingerprints(plan, task, f"{rule!r} at its default", _with_imports(type(rule.optimizer).__module__), device)


def of_weights(plan: Plan, task: PlannedTask, optimizer: Optimizer, sha256: str, device: torch.device) -> list[str]:
    """Of a learned optimizer, whose weights file has that SHA-256, on one task, at each T of the plan."""
    modules = [*_with_imports(type(optimizer).__module__), *_with_imports(_STEPPERS)]
    return _fingerprints(plan, task, sha256, modules, device)


def _fingerprints(
    plan: Plan, task: PlannedTask, competitor: str, modules: Iterable[str], device: torch.device
) -> list[str]:
    family: Any = task.build()
    engine = {*_ENGINE, *_with_imports(_DIFFERENTIATION, _KERNELS)}
    used = {*engine, *modules, *_with_imports(type(family).__module__)}
    content = {
        "task": [family.name, dataclasses.asdict(family)],
        "distortion": task.distortion.model_dump(mode="json"),
        "seeds": [plan.seed, plan.seeds],
        "horizons": plan.horizons,
        "competitor": competitor,
        "code": {module: _code(module) for module in sorted(used)},
        "packages": {package: version(package) for package in _PACKAGES},
        "device": [str(device), torch.get_num_threads()],
    }
    return [_digest(json.dumps({**content, "horizon": horizon}, sort_keys=True)) for horizon in plan.horizons]


@cache
def _with_imports(module: str, *others: str) -> frozenset[str]:
    """A module and those that it imports, directly or not, of the package or file that it is in, and of `others`."""
    rooms = tuple(f"{room}." for room in (module.rpartition(".")[0] or module, *others))
    found, new = set(), [module]
    while new:
        one = new.pop()
        found.add(one)
        new += [name for name in _imports(one) if name.startswith(rooms) and name not in found]
    return frozenset(found)


def _imports(module: str) -> Iterator[str]:
    for node in _statements(_parsed(module).body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if _is_module(inner) else node.module


def _statements(body: Sequence[Any]) -> Iterator[Any]:
    """Those of functions and branches too. No expression imports anything, and there are many.

    What stands under `if TYPE_CHECKING` is never run.
    """
    for statement in body:
        if (
            isinstance(statement, ast.If)
            and isinstance(statement.test, ast.Name)
            and statement.test.id == "TYPE_CHECKING"
        ):
            continue
        yield statement
        for inner in ("body", "orelse", "handlers", "finalbody"):
            yield from _statements(getattr(statement, inner, ()))


@cache
def _is_module(name: str) -> bool:
    parent = find_spec(name.rpartition(".")[0])
    return parent is not None and parent.submodule_search_locations is not None and find_spec(name) is not None


@cache
def _code(module: str) -> str:
    """Of what a module does: neither comments nor the layout of its lines change it."""
    return _digest(ast.dump(_parsed(module)))


@cache
def _parsed(module: str) -> ast.Module:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_bytes())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
