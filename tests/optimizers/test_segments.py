"""Coordinates in pieces: what is summed and spread is what it is without them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optserve_server import optimizers
from optserve_server.optimizers import Observations, initial_state, segments
from optserve_server.optimizers.segments import joined, over_tensors, pieces


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(segments, "PIECE", 7)
    segments._pieces.cache_clear()
    yield
    segments._pieces.cache_clear()


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 40_000), min_size=1, max_size=6))
def test_every_coordinate_is_in_one_piece_and_every_part_in_its_tensor(sizes):
    shapes = tuple((size,) for size in sizes)
    owners = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    values = torch.rand(sum(sizes), dtype=torch.float64)
    spread = joined([piece.spread(torch.arange(len(sizes))) for piece in pieces(shapes)])
    assert torch.equal(spread, owners)
    assert max(piece.stop - piece.start for piece in pieces(shapes)) <= segments.PIECE
    expected = torch.stack([part.sum() for part in values.split(sizes)])
    torch.testing.assert_close(over_tensors(shapes, lambda piece: piece.of(values)), expected)


@pytest.mark.parametrize("kind", ["hierarchical", "small_fc"])
def test_a_step_in_many_pieces_is_the_step_in_one(kind, small_pieces):
    optimizer = optimizers.build({"kind": kind})
    generator = torch.Generator().manual_seed(0)
    phi = {key: value + 0.1 for key, value in optimizer.initial_phi(generator).items()}
    shapes = ((3, 7), (2,), (5, 4), (), (7,))

    def run():
        state = initial_state(optimizer, shapes, (2,))
        for step in range(3):
            gradients = torch.randn(2, 51, generator=torch.Generator().manual_seed(step))
            loss = torch.tensor([3.0 - step, 1.0])
            updates, state = optimizer.step(
                phi, Observations(gradients, torch.zeros(1), None, loss, None, shapes), state
            )
        return updates, state

    many = run()
    segments.PIECE = 1000
    segments._pieces.cache_clear()
    one = run()
    torch.testing.assert_close(many[0], one[0], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(many[1].coordinates, one[1].coordinates)
    for name in one[1].arrays:
        torch.testing.assert_close(many[1].arrays[name], one[1].arrays[name], rtol=1e-4, atol=1e-6)
