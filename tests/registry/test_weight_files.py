import json

import numpy as np
import pytest
import torch

from optserve.wire import tensors
from optserve_server.optimizers import build, weights
from optserve_server.registry import weight_files
from optserve_server.registry.errors import WeightsInvalid

ARCHITECTURE = {"kind": "lstm", "hidden_size": 4, "layers": 1}
SCALED = '{"kind": "lstm", "hidden_size": 4, "layers": 1, "output_scale": %s}'


def test_equal_content_has_equal_bytes_whatever_the_order_of_its_metadata(weights_bytes):
    data = weights_bytes(0, optimizer="lstm", torch="2.6", seed="0")
    arrays, metadata = tensors.decode(data)
    header = {"__metadata__": dict(reversed(metadata.items()))}
    start, body = 0, b""
    for name, array in reversed(arrays.items()):
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [start, start + array.nbytes]}
        start, body = start + array.nbytes, body + array.tobytes()
    text = json.dumps(header).encode()
    other = len(text).to_bytes(8, "little") + text + body
    assert other != data
    assert weight_files.read(other) == weight_files.read(data)


def test_a_stored_file_can_be_imported_again_as_it_is(weights_file):
    file = weights_file(0, optimizer="lstm", metrics='{"meta_loss_held_out": 0.25}')
    assert weight_files.read(file.data) == file
    assert (file.name, file.metrics, file.recipe) == ("lstm", {"meta_loss_held_out": 0.25}, None)


def _bytes(change_arrays=None, **metadata):
    optimizer = build(ARCHITECTURE)
    arrays, known = tensors.decode(weights.encode(optimizer, optimizer.initial_phi(_generator())))
    return tensors.encode((change_arrays or (lambda same: same))(arrays), {**known, **metadata})


def _generator():
    return torch.Generator().manual_seed(0)


def _with(**changed):
    return lambda arrays: {**arrays, **{name.replace("__", "."): array for name, array in changed.items()}}


def _without_architecture():
    arrays, _ = tensors.decode(_bytes())
    return tensors.encode(arrays, {"torch": "2.6"})


CASES = {
    "empty": (b"", "not a safetensors file"),
    "noise": (b"\xff" * 100, "not a safetensors file"),
    "cut off": (_bytes()[:-5], "not a safetensors file"),
    "header too long": ((10**12).to_bytes(8, "little") + _bytes()[8:], "not a safetensors file"),
    "header is not an object": ((2).to_bytes(8, "little") + b"[]", "not a safetensors file"),
    "no architecture": (_without_architecture(), 'the metadata lacks "architecture"'),
    "architecture is not JSON": (_bytes(architecture="{"), "architecture is not JSON"),
    "architecture is nested too deeply": (_bytes(architecture="[" * 100_000), "recursion"),
    "architecture is a list": (_bytes(architecture="[]"), "must be a JSON object"),
    "architecture without kind": (_bytes(architecture="{}"), "no architecture None"),
    "kind is a list": (_bytes(architecture='{"kind": ["lstm"]}'), "cannot be imported"),
    "unknown kind": (_bytes(architecture='{"kind": "lstn"}'), "did you mean 'lstm'"),
    "unknown key": (_bytes(architecture='{"kind": "lstm", "hiden_size": 4}'), "did you mean 'hidden_size'"),
    "size of another type": (_bytes(architecture='{"kind": "lstm", "hidden_size": "4"}'), "hidden_size is '4'"),
    "a size too large to try": (_bytes(architecture='{"kind": "lstm", "hidden_size": 1000000000000}'), "hidden_size"),
    "too many layers": (_bytes(architecture='{"kind": "lstm", "layers": 1000000000}'), "layers"),
    "scale is not a number": (_bytes(architecture=SCALED % "NaN"), "output_scale|not JSON"),
    "scale is infinite": (_bytes(architecture=SCALED % "1e999"), "output_scale|not JSON"),
    "a tensor is missing": (
        _bytes(lambda arrays: {name: array for name, array in arrays.items() if name != "output.bias"}),
        r"lack output\.bias",
    ),
    "a tensor too many": (_bytes(_with(extra=np.zeros(1, np.float32))), "have extra, which"),
    "another shape": (_bytes(_with(output__bias=np.zeros(2, np.float32))), r"output\.bias has the shape \[2\]"),
    "another dtype": (_bytes(_with(output__bias=np.zeros(1, np.float64))), r"output\.bias is float64"),
    "not a number": (_bytes(_with(output__bias=np.array([np.nan], np.float32))), r"output\.bias .*not finite"),
    "infinity": (_bytes(_with(output__bias=np.array([np.inf], np.float32))), r"output\.bias .*not finite"),
    "recipe is not JSON": (_bytes(recipe="name = 'lstm'"), "recipe is not JSON"),
    "recipe is a list": (_bytes(recipe="[1]"), "recipe is .* must be a JSON object"),
    "metrics have NaN": (_bytes(metrics='{"meta_loss_held_out": NaN}'), "NaN is not a JSON number"),
    "metrics overflow": (_bytes(metrics='{"meta_loss_held_out": 1e999}'), "metrics is not JSON"),
    "metrics nested too deeply": (_bytes(metrics='{"a":' * 50_000), "metrics is not JSON"),
    "zero in the description": (_bytes(description="a\0b"), "description"),
    "zero in the environment": (_bytes(torch="a\0b"), "torch"),
    "half a character": (_bytes(recipe=r'{"name": "\ud800"}'), "recipe"),
}


@pytest.mark.parametrize(("data", "message"), CASES.values(), ids=CASES.keys())
def test_what_is_wrong_with_a_file_is_said(data, message):
    with pytest.raises(WeightsInvalid, match=message):
        weight_files.read(data)


def test_a_tensor_of_half_precision_is_refused_by_name():
    _, metadata = tensors.decode(_bytes())
    header = {"__metadata__": metadata, "output.bias": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}
    text = json.dumps(header).encode()
    with pytest.raises(WeightsInvalid):
        weight_files.read(len(text).to_bytes(8, "little") + text + b"\0\0")


def test_an_optimizer_designed_by_hand_is_not_imported():
    file = weight_files.read(weights.encode(build({"kind": "adam"}), {}))
    with pytest.raises(WeightsInvalid, match="create sessions of 'adam' with `hyperparameters`"):
        weight_files.require_learned(file)
