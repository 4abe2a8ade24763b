"""A classifier of wines in JAX, trained with a served optimizer; half-way it is interrupted, and goes on from a file.

Start a server (`make serve`), then: `.venv/bin/python examples/wine_jax.py [OPTIMIZER]`
"""

import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_wine

from optserve.optax import remote_optimizer

STEPS, BATCH_SIZE = 200, 32


def logits(params, features):
    """A perceptron of one hidden layer."""
    return jax.nn.relu(features @ params["hidden"] + params["bias"]) @ params["output"]


def loss_of(params, features, labels):
    """Cross-entropy of a minibatch."""
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, features), labels).mean()


def train(params, state, steps, train_set):
    """The parameters and the optimizer's state after some steps; `state` is None at the beginning."""
    optimizer = remote_optimizer(sys.argv[1] if len(sys.argv) > 1 else None, horizon=STEPS)
    clipped = optax.chain(optax.clip_by_global_norm(10.0), optimizer)

    @jax.jit
    def step(params, state, features, labels):
        loss, gradients = jax.value_and_grad(loss_of)(params, features, labels)
        updates, state = clipped.update(gradients, state, params, value=loss)
        return optax.apply_updates(params, updates), state, loss

    state = clipped.init(params) if state is None else state
    features, labels = train_set
    for number in steps:
        batch = np.random.default_rng(number).integers(len(labels), size=BATCH_SIZE)
        params, state, loss = step(params, state, features[batch], labels[batch])
        if number % 20 == 19:
            print(f"step {number + 1:3}  loss {loss:.5f}")
    return params, state


def main() -> None:
    """Train, and test on wines that were left out."""
    features, labels = load_wine(return_X_y=True)
    features = ((features - features.mean(axis=0)) / features.std(axis=0)).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(labels))
    train_set, test = (features[order[:120]], labels[order[:120]]), order[120:]

    hidden = jax.nn.initializers.lecun_normal()(jax.random.key(0), (13, 16))
    params = {"hidden": hidden, "bias": jnp.zeros(16), "output": jnp.zeros((16, 3))}
    params, state = train(params, None, range(STEPS // 2), train_set)

    with tempfile.TemporaryDirectory() as directory:
        leaves, structure = jax.tree.flatten((params, state))
        np.savez(Path(directory) / "checkpoint.npz", *leaves)
        saved = np.load(Path(directory) / "checkpoint.npz")
        params, state = jax.tree.unflatten(structure, saved.values())  # h_t waits on the server
    params, _ = train(params, state, range(STEPS // 2, STEPS), train_set)

    right = (logits(params, features[test]).argmax(axis=1) == labels[test]).mean()
    print(f"{right:.1%} of {len(test)} wines it has not seen are classified rightly")


if __name__ == "__main__":
    main()
