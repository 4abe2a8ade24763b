"""The leaves of a pytree as the parameters of a session: named by their paths, and in one flat array."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optserve.layout import Shape

ALONE = "parameters"
"""What a pytree that is one array is called, for it has no path."""


class Leaves:
    """A pytree taken apart.

    Attributes:
        shapes: of its leaves by name, without the empty ones.

    Raises:
        TypeError: a leaf is not of real floating point.
    """

    def __init__(self, tree: Any) -> None:
        paths_and_leaves, self._structure = jax.tree_util.tree_flatten_with_path(tree)
        self._leaves = [leaf for _, leaf in paths_and_leaves]
        names = _names([path for path, _ in paths_and_leaves])
        for name, leaf in zip(names, self._leaves, strict=True):
            _check(name, leaf)
        pairs = zip(names, self._leaves, strict=True)
        self.shapes: dict[str, Shape] = {name: jnp.shape(leaf) for name, leaf in pairs if jnp.size(leaf)}

    def flatten(self) -> jax.Array:
        """Every number: [n], float32."""
        return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in self._leaves if jnp.size(leaf)])

    def unflatten(self, flat: jax.Array) -> Any:
        """A pytree of this structure, shapes and dtypes with the numbers of `flat`, [n]."""
        found, start = [], 0
        for leaf in self._leaves:
            end = start + jnp.size(leaf)
            found.append(flat[start:end].reshape(jnp.shape(leaf)).astype(jnp.result_type(leaf)))
            start = end
        return jax.tree_util.tree_unflatten(self._structure, found)


def difference(expected: dict[str, Shape], found: dict[str, Shape]) -> str:
    """The first thing in which two declarations of parameters differ; empty if in nothing, not even in their order."""
    for name in expected.keys() | found.keys():
        if name not in found:
            return f"{name!r} is missing"
        if name not in expected:
            return f"{name!r} is new"
        if expected[name] != found[name]:
            return f"{name!r} is {found[name]} and was {expected[name]}"
    return "" if list(expected) == list(found) else "their order is another"


def _names(paths: Sequence[Any]) -> list[str]:
    """`dense/kernel`, `layers/0`; as JAX writes paths where two leaves would have the same name."""
    short = [jax.tree_util.keystr(path, simple=True, separator="/") or ALONE for path in paths]
    if max(Counter(short).values(), default=1) == 1:
        return short
    return [jax.tree_util.keystr(path) for path in paths]


def _check(name: str, leaf: Any) -> None:
    dtype = jnp.result_type(leaf) if not hasattr(leaf, "dtype") else leaf.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"parameter {name!r} is {dtype}, but must be of real floating point; "
            "optax.masked or optax.multi_transform leaves others out"
        )
