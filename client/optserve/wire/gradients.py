"""The binary forms of a step: numbers of the session's dtype, little-endian, gradients and updates alike.

NumPy has no bfloat16, so its arrays travel as `uint16` bit patterns and widen to float32 exactly.
"""

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

OCTET_STREAM = "application/octet-stream"
SAFETENSORS = "application/x-safetensors"
JSON = "application/json"

DType = Literal["float32", "float16", "bfloat16"]
DTYPES: tuple[str, ...] = get_args(DType)

STORAGE: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}
"""The NumPy dtype that holds the bits of each wire dtype."""

SAFETENSORS_CODE = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""The name safetensors gives each wire dtype."""


def widen(bits: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Numbers as they travel (`STORAGE[dtype]`) as float32, exactly; float32 itself is not copied."""
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.astype(np.float32, copy=False)


def narrow(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """float32 to the nearest number of `dtype` (ties to even), saturating at its largest finite number.

    Infinities and NaNs stay what they are, so that whoever receives them can refuse them. float32 itself is not
    copied. The result has the dtype `STORAGE[dtype]`.
    """
    if dtype == "float32":
        return values.astype("<f4", copy=False)
    if dtype == "float16":
        return _saturate(values, np.finfo(np.float16).max).astype("<f2")
    bits = _saturate(values, _LARGEST_BFLOAT16).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    rounded[np.isnan(values)] = 0x7FC0  # rounding up would carry a NaN's bits over into the sign
    return rounded


_LARGEST_BFLOAT16 = np.uint32(0x7F7F0000).view(np.float32)


def _saturate(values: NDArray[np.float32], largest: Any) -> NDArray[np.float32]:
    saturated = np.clip(values, -largest, largest).astype(np.float32, copy=False)
    return np.where(np.isinf(values), values, saturated)
