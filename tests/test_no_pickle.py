"""Nothing that comes from outside is executed: no code of this project unpickles, or evaluates text."""

import ast
import io
import pickle
from pathlib import Path

import pytest
import torch

from optserve.wire import tensors
from optserve_server.metatraining import recipes
from optserve_server.metatraining.outer_loop import OuterLoop
from optserve_server.optimizers import build, weights
from optserve_server.registry import weight_files

CHECKOUT = Path(__file__).parents[1]
FILES = [
    path for room in ("client", "server", "alembic", "scripts") for path in sorted((CHECKOUT / room).rglob("*.py"))
]

MODULES = {"pickle", "_pickle", "pickletools", "cloudpickle", "dill", "joblib", "shelve", "marshal", "yaml", "code"}
"""Of which nothing is imported."""

CALLS = {
    "eval", "exec", "compile", "__import__", "breakpoint",
    "torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter",
    "numpy.load", "np.load", "numpy.save", "np.save", "pandas.read_pickle",
    "os.system", "os.popen", "subprocess.getoutput", "multiprocessing.Pipe", "multiprocessing.Queue",
}  # fmt: skip
"""Names that are not called."""


def found_in(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] in MODULES:
            yield node.module
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (name for one in node.names if (name := f"{node.module}.{one.name}") in CALLS)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS:
            yield ast.unparse(node.func)
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
            yield node.arg


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_no_file_has_anything_that_executes_data(path):
    assert list(found_in(path.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "import pickle as p", "from pickle import loads", "import torch.nn, dill",
        "torch.load(f)", "x = np.load(f)", "eval('1')", "from torch import load", "f(allow_pickle=True)",
        "subprocess.run('ls', shell=True)",
    ],
)  # fmt: skip
def test_it_would_be_found(line):
    assert list(found_in(line))


@pytest.fixture
def without_pickle(monkeypatch):
    """From here on whoever unpickles fails."""

    def fail(*arguments, **keywords):
        raise AssertionError("something was unpickled")

    class Unpickler(pickle.Unpickler):
        __init__ = fail

    for name, replacement in (("load", fail), ("loads", fail), ("Unpickler", Unpickler), ("_Unpickler", Unpickler)):
        monkeypatch.setattr(pickle, name, replacement)
    with pytest.raises(AssertionError, match="unpickled"):
        pickle.loads(b"")
    with pytest.raises(AssertionError, match="unpickled"):
        pickle.Unpickler(io.BytesIO())


def test_optimizers_are_imported_and_runs_resumed_without_it(without_pickle, tiny_recipe):
    optimizer = build({"kind": "lstm", "hidden_size": 4})
    data = weights.encode(optimizer, optimizer.initial_phi(torch.Generator().manual_seed(0)))
    assert weight_files.read(data).optimizer == optimizer
    loop = OuterLoop(recipes.parse(tiny_recipe))
    next(iter(loop))
    resumed = OuterLoop.resume(loop.recipe, loop.checkpoint())
    assert resumed.outer_step == 1
    assert resumed.checkpoint() == loop.checkpoint()


def test_a_pickle_in_the_place_of_a_file_is_no_file():
    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("a pickle was executed",)

    for data in (pickle.dumps(Bomb()), pickle.dumps(Bomb(), protocol=0)):
        with pytest.raises(ValueError, match="not a safetensors file"):
            tensors.decode(data)
        with pytest.raises(ValueError, match="not a safetensors file"):
            tensors.index(data)
