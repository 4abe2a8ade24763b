"""The CPU kernels, which Numba compiles: the recurrent optimizers' for serving forward, for meta-training back too.

`vectors` and `products` are what they are made of; `functions` has the activations; `recurrent` the step and
`recurrent_gradient` its derivative by φ; `hierarch…` is the step of `hierarchical`, and `guard` the update guard.
Everything works on blocks of 64 coordinates, feature-major, so that all that a block needs lies in the cache; and a
block's result depends on nothing but itself.
"""
