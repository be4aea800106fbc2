"""The sampler against fields whose solution is known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from simpletuner.evaluation.samples import labels_like, latents_to_pixels, sample_flow


def test_straight_paths_are_followed_exactly() -> None:
    """Every path leads from its noise to the image of its label: v = (x - x0) / sigma, exact for any step count."""
    targets = torch.tensor([-0.5, 0.25, 1.0])

    def velocity(latents: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        return (latents - targets[labels][:, None, None, None]) / (timesteps / 1000)[:, None, None, None]

    labels = torch.arange(7) % 3
    noise = torch.randn(7, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for steps in (1, 10):
        samples = sample_flow(velocity, noise, labels, steps=steps, batch_size=3)
        torch.testing.assert_close(samples, targets[labels][:, None, None, None].expand_as(noise), atol=1e-5, rtol=0)


def test_time_runs_from_noise_to_data_and_chunks_do_not_matter() -> None:
    seen: list[float] = []

    def velocity(latents: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        seen.append(float(timesteps[0]))
        return latents * (timesteps / 1000)[:, None, None, None] + labels[:, None, None, None]

    noise = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(5) % 2
    whole = sample_flow(velocity, noise, labels, steps=4)
    assert seen[0] == 1000 and seen == sorted(seen, reverse=True) and len(seen) == 4
    torch.testing.assert_close(whole, sample_flow(velocity, noise, labels, steps=4, batch_size=2))


def test_labels_must_match_the_noise() -> None:
    with pytest.raises(ValueError, match="one label a sample"):
        sample_flow(lambda latents, timesteps, labels: latents, torch.zeros(2, 1, 2, 2), torch.zeros(3))


def test_pixels_are_clipped() -> None:
    assert latents_to_pixels(torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0])).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_equal_shares_take_turns() -> None:
    assert labels_like(torch.tensor([2, 1, 0]), 7, 3).tolist() == [0, 1, 2, 0, 1, 2, 0]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 200))
def test_labels_have_the_shares_of_the_reference(reference: list[int], count: int) -> None:
    """Otherwise the distance to unbalanced images would tell of the shares too."""
    drawn = labels_like(torch.tensor(reference), count, 5)
    assert len(drawn) == count
    wanted = torch.tensor(reference).bincount(minlength=5) * count / len(reference)
    assert (drawn.bincount(minlength=5) - wanted).abs().max() < 1
    rarest = int(drawn.bincount(minlength=5).min())
    assert drawn[: 5 * rarest].tolist() == rarest * [0, 1, 2, 3, 4]
