import numpy as np
import pytest

from optserve.errors import GradientsInvalid, RequestInvalid
from optserve.layout import VALUES, Layout, declare

LAYOUT = Layout({"w": (2, 3), "b": (), "v": (4,)}, "float32")
W, B, V = np.arange(6.0).reshape(2, 3), 6.0, np.arange(7, 11)


def test_arrays_travel_in_declared_order_whatever_the_dictionary_says():
    flat = LAYOUT.flatten({"v": V, "b": B, "w": W})
    assert flat.dtype == np.dtype("<f4")
    assert flat.tolist() == list(range(11))


@pytest.mark.parametrize("w", [W.T.copy().T, W.astype(np.float16), W.astype(np.int32), W.tolist()])
def test_any_order_in_memory_and_any_real_dtype_will_do(w):
    assert LAYOUT.flatten({"w": w, "b": np.float64(6), "v": V}).tolist() == list(range(11))


def test_what_is_skipped_is_left_out_and_not_given_back():
    flat = LAYOUT.flatten({"w": W, "v": V}, {"b"})
    assert flat.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10]
    updates = LAYOUT.split(flat, {"b"})
    assert list(updates) == ["w", "v"]
    assert updates["w"].tolist() == W.tolist()
    assert updates["v"].tolist() == V.tolist()


@pytest.mark.parametrize(
    ("arrays", "skip", "culprit", "words"),
    [
        ({"w": W, "b": B}, (), "v", r"missing; if it has none this time, pass skip=\['v'\]"),
        ({"w": W, "b": B, "v": V, "u": V}, (), "u", "no parameter 'u'; it has 'w', 'b', 'v'"),
        ({"w": W, "b": B, "v": V}, ["v"], "v", "is to be skipped"),
        ({"w": W, "b": B, "v": V}, ["u"], "u", "no parameter 'u'"),
        ({"w": W.T, "b": B, "v": V}, (), "w", r"shape \(3, 2\), but was declared as \(2, 3\)"),
        ({"w": W * 1j, "b": B, "v": V}, (), "w", "dtype complex128"),
        ({"w": W, "b": "six", "v": V}, (), "b", "must be real numbers"),
        ({"w": W, "b": B, "v": None}, (), "v", "must be real numbers"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(arrays, skip, culprit, words):
    with pytest.raises(GradientsInvalid, match=words) as raised:
        LAYOUT.flatten(arrays, skip)
    assert raised.value.parameter == culprit


def test_values_are_not_called_gradients():
    with pytest.raises(RequestInvalid, match=r"the value of 'b' is missing$"):
        LAYOUT.flatten({"w": W, "v": V}, role=VALUES)


def test_a_flat_array_of_float32_is_not_copied():
    flat = np.zeros(11, np.float32)
    assert np.shares_memory(LAYOUT.accept(flat), flat)


@pytest.mark.parametrize("flat", [np.zeros(10), np.zeros((11, 1)), np.zeros(11, complex), np.float32(1)])
def test_a_flat_array_of_another_form_is_refused(flat):
    with pytest.raises(GradientsInvalid):
        LAYOUT.accept(flat)


def test_a_flat_array_is_shorter_by_what_is_skipped():
    assert LAYOUT.accept(np.zeros(5), {"w"}).shape == (5,)
    with pytest.raises(GradientsInvalid, match=r"without the skipped need \(5,\)"):
        LAYOUT.accept(np.zeros(11), {"w"})


@pytest.mark.parametrize(("dtype", "relative"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_precision_there_and_back(dtype, relative):
    layout = Layout({"w": (1000,)}, dtype)
    values = np.random.default_rng(0).standard_normal(1000)
    travelling = layout.flatten({"w": values})
    assert travelling.nbytes == 2000
    back = layout.read(bytearray(travelling.tobytes()))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, values, rtol=relative)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_not_finite_still_is_not_when_it_travels(dtype):
    patterns = np.array([0x7F800000, 0xFF800000, 0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32)
    layout = Layout({"w": (6,)}, dtype)
    back = layout.read(bytearray(layout.flatten({"w": patterns.view(np.float32)}).tobytes()))
    assert back[:2].tolist() == [np.inf, -np.inf]
    assert np.isnan(back[2:]).all()


def test_large_finite_numbers_saturate_in_half_precision():
    assert Layout({"w": (1,)}, "float16").flatten({"w": np.array([1e9])}) == 65504
    assert Layout({"w": (1,)}, "bfloat16").flatten({"w": np.array([3.4e38])}) == 0x7F7F


def test_what_float32_cannot_hold_becomes_infinite_for_the_server_to_refuse():
    assert Layout({"w": (1,)}, "float32").flatten({"w": np.array([1e300])}).tolist() == [np.inf]
    assert Layout({"w": (1,)}, "float32").accept(np.array([1e300])).tolist() == [np.inf]


def test_updates_are_the_callers_own_to_write_to():
    flat = LAYOUT.read(bytearray(44))
    LAYOUT.split(flat, ())["v"][...] = 1
    assert flat.sum() == 4


def test_parameters_are_declared_by_shapes_or_by_arrays():
    declared = declare({"w": (2, 3), "b": (), "v": [4], "a": np.zeros((5, 6))})
    assert [(p.name, p.shape) for p in declared] == [("w", [2, 3]), ("b", []), ("v", [4]), ("a", [5, 6])]


@pytest.mark.parametrize("value", [20, "20", (2.5,), None, (2, "x")])
def test_what_is_no_shape_is_refused_by_name(value):
    with pytest.raises(TypeError, match=r"parameter 'b' is .* must be a shape such as"):
        declare({"b": value})
