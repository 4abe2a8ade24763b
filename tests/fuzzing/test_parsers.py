"""Everything that parses bytes from outside: a documented error or a valid result, whatever comes.

The bytes are valid files with a few of their bytes cut, flipped, doubled or replaced, safetensors whose headers lie,
and noise. `FUZZ_EXAMPLES` sets how many of each.
"""

import itertools
import json
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optserve import errors
from optserve.decoding import decode
from optserve.wire import bodies, evaluations, meta_training, tensors
from optserve.wire.gradients import STORAGE
from optserve_server.api import forms, json_form
from optserve_server.api.dependencies import read_number
from optserve_server.api.problems import Problem
from optserve_server.api.targets import Target
from optserve_server.evaluation import plans
from optserve_server.metatraining import recipes, training_checkpoints
from optserve_server.metatraining.recipes import RecipeError
from optserve_server.optimizers import build, weights
from optserve_server.registry import references, weight_files
from optserve_server.registry.errors import NameInvalid, WeightsInvalid, WeightsMalformed
from optserve_server.sessions.errors import GradientsInvalid, Invalid, SessionError
from optserve_server.sessions.layout import lay_out

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
few = settings(max_examples=EXAMPLES or 150, deadline=None, derandomize=not EXAMPLES, database=None)

CPU = torch.device("cpu")
ODD = [
    b"", b"\0", b"\xff", b"NaN", b"-Infinity", b"1e999", b"-1", b"18446744073709551615", b"[" * 2000, b'"', b"{}",
    b"null", b"\\ud800", b"..", b"/../", "é🦆".encode(), b"9" * 5000, b'{"a":', b"true", b"[[]]",
]  # fmt: skip
LAYOUT = lay_out([("w", (2, 3)), ("b", ())], 1000)


# --- what is put in ---------------------------------------------------------------------------------------------------


@st.composite
def mutated(draw, *valid):
    """The bytes of a valid file after one to four changes."""
    data = bytearray(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(1, 4))):
        # Half of the changes are near the beginning, where headers are.
        place = draw(st.one_of(st.integers(0, min(64, len(data))), st.integers(0, len(data))))
        length = draw(st.integers(0, 16))
        change = draw(st.sampled_from(["flip", "cut", "end", "insert", "double", "replace"]))
        if change == "flip" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del data[place : place + length]
        elif change == "end":
            del data[place:]
        elif change == "insert":
            data[place:place] = draw(st.sampled_from(ODD))
        elif change == "double":
            data[place:place] = data[place : place + length]
        elif change == "replace":
            data[place : place + length] = draw(st.binary(max_size=16))
    return bytes(data)


_odd_values = [10**30, -1, 2**63, "\ud800", "a\0b", "../../etc/passwd", "lstm", "F32", "w", math.nan, math.inf]
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(_odd_values)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def noisy(*valid):
    """Mutated valid files, safetensors whose headers lie, and noise."""
    return st.one_of(mutated(*valid), lying_headers, st.binary(max_size=200))


def _file(header, body, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


_offset = st.one_of(st.integers(-8, 40), st.sampled_from([2**31, 2**63, 2**64, 10**30, 1.0, "0", None, True]))
_entry = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F4", "f32", "", 32, None]),
        "shape": st.one_of(st.lists(st.sampled_from([0, 1, 2, 3, -1, 2**40, 1.5, True]), max_size=34), json_values),
        "data_offsets": st.one_of(st.tuples(_offset, _offset).map(list), json_values),
    }
)
_names = st.sampled_from(["w", "b", "__metadata__", "", "../w", "w\0", "🦆", "clocks", "output.bias", "w" * 1000])
lying_headers = st.builds(
    _file,
    st.one_of(
        st.dictionaries(_names, st.one_of(_entry, json_values), max_size=5),
        # The same name twice, which a dictionary cannot have.
        st.tuples(_entry, _entry).map(lambda two: f'{{"w":{json.dumps(two[0])},"w":{json.dumps(two[1])}}}'.encode()),
    ),
    st.binary(max_size=40),
    st.one_of(st.none(), st.integers(0, 200), st.sampled_from([2**32, 2**63, 2**64 - 1])),
)

WEIGHTS = tensors.encode({"w": np.ones((2, 3), np.float32), "b": np.ones((), np.float32)}, {"k": "v", "é": "\n"})


# --- what has to hold -------------------------------------------------------------------------------------------------


@few
@given(noisy(WEIGHTS))
def test_safetensors_decoded(data):
    try:
        arrays, metadata = tensors.decode(data)
    except ValueError as error:
        assert "not a safetensors file" in str(error)
    else:
        assert all(isinstance(array, np.ndarray) for array in arrays.values())
        assert all(isinstance(text, str) for pair in metadata.items() for text in pair)


@few
@given(noisy(WEIGHTS))
def test_safetensors_indexed(data):
    try:
        entries, metadata = tensors.index(data)
    except ValueError as error:
        assert "not a safetensors file" in str(error)
    else:
        places = sorted((entry.start, entry.stop) for entry in entries.values())
        assert all(8 <= start <= stop <= len(data) for start, stop in places)
        assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(places))
        assert all(isinstance(text, str) for pair in metadata.items() for text in pair)
        if all(entry.dtype in ("F32", "F16", "I64") for entry in entries.values()):
            arrays, _ = tensors.decode(data)  # the library of safetensors agrees
            assert {name: array.shape for name, array in arrays.items()} == {
                name: entry.shape for name, entry in entries.items()
            }


def _target(dtype="float32"):
    bits = np.zeros(LAYOUT.coordinates, STORAGE[dtype])
    return Target("gradients", bits, LAYOUT.complete, dtype, GradientsInvalid)


@few
@given(noisy(WEIGHTS))
def test_gradients_as_safetensors(data):
    target = _target()
    try:
        forms.read_safetensors(data, target)
    except (Problem, Invalid) as error:
        assert error.problem.status in (400, 422)
    else:
        arrays, _ = tensors.decode(data)
        sent = np.concatenate([arrays[name].reshape(-1) for name in ("w", "b")])
        assert sent.tobytes() == target.bits.tobytes()


GRADIENTS = b'{"gradients": {"w": [[1, -2.5, 3e-3], [0, 1, 2]], "b": 7}, "loss": 0.5}'


@few
@given(st.one_of(mutated(GRADIENTS), json_values.map(json.dumps).map(str.encode), st.binary(max_size=100)),
       st.sampled_from(list(STORAGE)))  # fmt: skip
def test_gradients_as_json(data, dtype):
    try:
        rest = json_form.read(data, _target(dtype))
    except (Problem, SessionError) as error:
        assert error.problem.status in (400, 422)
    else:
        given_ = json.loads(data)["gradients"]
        assert set(given_) == {"w", "b"}
        assert "gradients" not in rest


OPTIMIZER = build({"kind": "lstm", "hidden_size": 2, "layers": 1})
OPTIMIZER_FILE = weights.encode(
    OPTIMIZER,
    OPTIMIZER.initial_phi(torch.Generator().manual_seed(0)),
    {"recipe": '{"name": "x"}', "metrics": '{"meta_loss_held_out": 1.5}', "description": "d", "seed": "0"},
)


@few
@given(noisy(OPTIMIZER_FILE))
def test_a_weights_file(data):
    try:
        file = weight_files.read(data)
    except (WeightsMalformed, WeightsInvalid) as error:
        assert str(error)
    else:
        assert weight_files.read(file.data) == file
        json.dumps([file.recipe, file.metrics, file.architecture], allow_nan=False).encode()


@few
@given(st.fixed_dictionaries({}, optional={
    key: json_values.map(json.dumps) | st.text(max_size=20)
    for key in ("architecture", "recipe", "metrics", "description", "optimizer", "torch")
}))  # fmt: skip
def test_the_metadata_of_a_weights_file(metadata):
    arrays, known = tensors.decode(OPTIMIZER_FILE)
    try:
        data = tensors.encode(arrays, {**known, **metadata})
        file = weight_files.read(data)
    except (WeightsMalformed, WeightsInvalid, UnicodeEncodeError) as error:
        assert str(error)
    else:
        json.dumps([file.recipe, file.metrics, file.architecture], allow_nan=False).encode()


CHECKPOINT = training_checkpoints.encode({"phi": {"w": torch.ones(2, 3)}, "step": 3, "list": [None, torch.zeros(4)]})


@few
@given(noisy(CHECKPOINT))
def test_a_training_checkpoint(data):
    try:
        training_checkpoints.decode(data, CPU)
    except ValueError as error:
        assert str(error)


@few
@given(json_values)
def test_the_tree_of_a_training_checkpoint(tree):
    arrays, metadata = tensors.decode(CHECKPOINT)
    for state in (tree, {"tensor": tree, "expanded": None}, {"tensor": "0", "expanded": tree}):
        data = tensors.encode(arrays, {**metadata, "state": json.dumps(state)})
        try:
            training_checkpoints.decode(data, CPU)
        except ValueError as error:
            assert str(error)


RECIPE = {
    "name": "tiny", "seed": 1,
    "architecture": {"kind": "lstm", "hidden_size": 4, "layers": 1},
    "tasks": [{"family": "quadratic", "weight": 2.0, "parameters": {"dimension": 2}}],
    "unroll": {"steps": {"low": 3, "high": 7}, "truncation": 2},
    "meta_loss": {"kind": "log", "weights": {"first": 0.5, "last": 1.0}},
    "gradient": {"estimator": "pes"}, "augmentation": {"coordinate_scaling": 1.0},
    "meta_optimizer": {"kind": "adam", "outer_steps": 6, "tasks_per_outer_step": 3},
    "checkpoints": {"every": 3},
}  # fmt: skip
EVALUATION = {
    "optimizers": ["lstm@3"], "tasks": [{"family": "quadratic", "parameters": {"dimension": 2}}],
    "steps": 10, "seeds": 2, "seed": 0, "baselines": ["adam"],
}  # fmt: skip


@st.composite
def changed(draw, valid):
    """A valid description with one value somewhere in it replaced, or one key added."""
    content = json.loads(json.dumps(valid))
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys)) if keys else "key"
        inner = place[key] if keys else None
        if not isinstance(inner, dict | list) or not inner or draw(st.booleans()):
            break
        place = inner
    if isinstance(place, dict) and draw(st.booleans()):
        key = draw(st.text(max_size=8))
    place[key] = draw(json_values)
    return content


@few
@given(st.one_of(changed(RECIPE), st.dictionaries(st.text(max_size=8), json_values, max_size=4)))
def test_a_recipe(content):
    try:
        recipe = recipes.parse(content)
    except RecipeError as error:
        assert str(error)
    else:
        assert recipes.parse(recipe.model_dump(mode="json")) == recipe


TOML = b"""
name = "tiny"
[architecture]
kind = "lstm"
[[tasks]]
family = "quadratic"
parameters = { dimension = 2 }
[meta_optimizer]
outer_steps = 5
"""


@few
@given(st.one_of(mutated(TOML), st.binary(max_size=100)))
def test_a_recipe_s_file(data):
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        try:
            recipes.load(Path(file.name))
        except RecipeError as error:
            assert str(error)


@few
@given(st.one_of(changed(EVALUATION), st.dictionaries(st.text(max_size=8), json_values, max_size=4)))
def test_a_plan_of_an_evaluation(content):
    try:
        plans.parse(content)
    except plans.PlanError as error:
        assert str(error)


@few
@given(st.one_of(st.text(max_size=40), mutated(b"digits-mlp:hidden_sizes=[20],activation=relu").map(bytes.hex).map(
    lambda text: bytes.fromhex(text).decode("utf-8", "replace"))))  # fmt: skip
def test_a_task_as_it_is_typed(text):
    try:
        plans.parse_task(text)
    except plans.PlanError as error:
        assert str(error)


@few
@given(st.text(max_size=40) | st.from_regex(r"[a-z]{1,4}@[0-9]{0,30}", fullmatch=True))
def test_references_and_cursors(text):
    try:
        found = references.parse(text)
    except NameInvalid as error:
        assert str(error)
    else:
        assert found.number is None or 0 <= found.number < 10**10
    for cursor in (text, text.rpartition("@")[2]):
        try:
            assert 0 <= read_number(cursor) <= references.NEWEST_NUMBER
        except Problem as error:
            assert error.problem.status == 422


SESSION = json.dumps(
    {
        "id": "s1", "optimizer": {"name": "lstm", "version": 3, "sha256": "ab"}, "next_step": 4, "coordinates": 6,
        "parameters": [{"name": "w", "shape": [2, 3]}], "dtype": "float32", "hyperparameters": {"betas": [0.9]},
        "horizon": None, "label": "", "ttl_seconds": 60, "created_at": "2025", "expires_at": "2025",
    }
).encode()  # fmt: skip
REPLIES = [bodies.SessionInfo, bodies.OptimizerInfo, bodies.Page[bodies.SessionInfo], evaluations.EvaluationInfo,
           meta_training.RunMetrics]  # fmt: skip


@few
@given(st.sampled_from(REPLIES),
       st.one_of(mutated(SESSION), json_values.map(json.dumps).map(str.encode), st.binary(max_size=100)))  # fmt: skip
def test_the_client_reads_a_reply(kind, content):
    try:
        decode(kind, content)
    except errors.ReplyInvalid as error:
        assert str(error)


@few
@given(st.integers(200, 599),
       st.one_of(mutated(b'{"type": "urn:optserve:problem:step-conflict", "detail": "d", "next_step": 3}'),
                 json_values.map(json.dumps).map(str.encode)))  # fmt: skip
def test_the_client_reads_a_problem(status, content):
    assert isinstance(errors.from_reply(status, content), errors.ProblemError)


@pytest.mark.parametrize("kind", [tensors.decode, tensors.index])
def test_a_name_of_ten_megabytes_is_a_name(kind):
    """What it costs is bounded by the body; where names have a limit, a session or an optimizer says so."""
    name = "w" * 10_000_000
    entries, _ = kind(_file({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)))
    assert list(entries) == [name]
