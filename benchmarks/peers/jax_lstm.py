"""The peer in JAX: a window is a `scan` under `value_and_grad`, and an outer step one `jit`, with optax's Adam."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optserve_server.tasks.digits import digits

P = 10.0
Array = Any


class Quadratics:
    def __init__(self, tasks: int, dimension: int) -> None:
        self.tasks, self.dimension = tasks, dimension

    def start(self, key: Array) -> tuple[Array, Array]:
        """What defines the tasks, and θ_0."""
        a, b, c = jax.random.split(key, 3)
        shape = (self.tasks, self.dimension)
        return (
            (jax.random.normal(a, (*shape, self.dimension)), jax.random.normal(b, shape)),
            jax.random.normal(c, shape),
        )

    def batch(self, key: Array) -> Array:
        return jnp.zeros((self.tasks, 0))

    @staticmethod
    def loss(theta: Array, task: Array, batch: Array) -> Array:
        w, y = task
        return jnp.sum((w @ theta - y) ** 2)


class Perceptrons:
    """64 – hidden – 10 on the digits, with ReLU."""

    def __init__(self, tasks: int, hidden: int, batch_size: int) -> None:
        self.tasks, self.hidden, self.batch_size = tasks, hidden, batch_size
        self.images, self.labels = (jnp.asarray(tensor.numpy()) for tensor in digits("train"))
        self.bounds = [1 / 8, 1 / 8, 1 / math.sqrt(hidden), 1 / math.sqrt(hidden)]
        self.shapes = [(64, hidden), (hidden,), (hidden, 10), (10,)]

    def start(self, key: Array) -> tuple[Array, Array]:
        parts = [
            jax.random.uniform(part, (self.tasks, math.prod(shape)), minval=-bound, maxval=bound)
            for part, shape, bound in zip(jax.random.split(key, 4), self.shapes, self.bounds, strict=True)
        ]
        return jnp.zeros((self.tasks, 0)), jnp.concatenate(parts, axis=1)

    def batch(self, key: Array) -> Array:
        return jax.random.randint(key, (self.tasks, self.batch_size), 0, len(self.images))

    def loss(self, theta: Array, task: Array, batch: Array) -> Array:
        parts, start = [], 0
        for shape in self.shapes:
            parts.append(theta[start : start + math.prod(shape)].reshape(shape))
            start += math.prod(shape)
        w1, b1, w2, b2 = parts
        logits = jax.nn.relu(self.images[batch] @ w1 + b1) @ w2 + b2
        return optax.softmax_cross_entropy_with_integer_labels(logits, self.labels[batch]).mean()


class MetaTraining:
    """Σ_t f(θ_t) over windows of a trajectory, ∂∇_t/∂φ dropped."""

    def __init__(self, tasks: Any, *, window: int, horizon: int, hidden: int, learning_rate: float) -> None:
        self.tasks, self.window, self.horizon, self.hidden = tasks, window, horizon, hidden
        self.key = jax.random.key(0)
        self.phi = initial_phi(jax.random.key(1), hidden)
        self.adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate))
        self.adam_state = self.adam.init(self.phi)
        self.start = jax.jit(tasks.start)
        self.step = horizon

    def outer_step(self) -> float:
        self.key, key = jax.random.split(self.key)
        if self.step >= self.horizon:
            self.step = 0
            self.task, theta = self.start(key)
            zeros = jnp.zeros((theta.size, self.hidden))
            self.loop = theta, ((zeros, zeros), (zeros, zeros))
        self.phi, self.adam_state, self.loop, meta_loss = self._update(
            self.phi, self.adam_state, self.loop, self.task, key
        )
        self.step += self.window
        return float(meta_loss)

    @partial(jax.jit, static_argnums=0)
    def _update(self, phi: Array, adam_state: Array, loop: Array, task: Array, key: Array) -> Any:
        (meta_loss, loop), gradients = jax.value_and_grad(self._unroll, has_aux=True)(phi, loop, task, key)
        updates, adam_state = self.adam.update(gradients, adam_state)
        return optax.apply_updates(phi, updates), adam_state, loop, meta_loss

    def _unroll(self, phi: Array, loop: Array, task: Array, key: Array) -> tuple[Array, Array]:
        losses: Callable[..., Array] = jax.vmap(jax.value_and_grad(self.tasks.loss))

        def step(loop: Array, key: Array) -> tuple[Array, Array]:
            theta, (first, second) = loop
            loss, gradients = losses(theta, task, self.tasks.batch(key))
            x = log_sign(jax.lax.stop_gradient(gradients).reshape(-1))
            first = cell(phi["first"], x, first)
            second = cell(phi["second"], first[0], second)
            updates = 0.1 * (second[0] @ phi["output"]["weight"] + phi["output"]["bias"])
            return (theta + updates.reshape(theta.shape), (first, second)), loss

        keys = jax.random.split(key, self.window + 1)
        loop, followed = jax.lax.scan(step, loop, keys[1:])
        last, _ = losses(loop[0], task, self.tasks.batch(keys[0]))
        return (followed[1:].sum(axis=0) + last).mean(), jax.lax.stop_gradient(loop)


def initial_phi(key: Array, hidden: int) -> Array:
    keys = iter(jax.random.split(key, 8))
    bound = 1 / math.sqrt(hidden)

    def uniform(*shape: int) -> Array:
        return jax.random.uniform(next(keys), shape, minval=-bound, maxval=bound)

    def layer(width: int) -> Array:
        return {
            "inputs": uniform(width, 4 * hidden),
            "hidden": uniform(hidden, 4 * hidden),
            "bias": uniform(4 * hidden),
        }

    return {"first": layer(2), "second": layer(hidden), "output": {"weight": uniform(hidden), "bias": jnp.zeros(())}}


def cell(phi: Array, x: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
    h, c = state
    i, f, g, o = jnp.split(x @ phi["inputs"] + h @ phi["hidden"] + phi["bias"], 4, axis=1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def log_sign(gradients: Array) -> Array:
    size, smallest = jnp.abs(gradients), math.exp(-P)
    logarithm = jnp.where(size >= smallest, jnp.log(jnp.maximum(size, smallest)) / P, -1.0)
    direction = jnp.where(size >= smallest, jnp.sign(gradients), gradients / smallest)
    return jnp.stack((logarithm, direction), axis=1)
