"""Noise that depends on seed, step and row alone; targets and min-SNR weights by their formulas."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from simpletuner.helpers.training.objectives import DiscreteDiffusion, FlowMatching, sample_noise

LATENTS = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def test_noise_is_a_function_of_seed_step_and_row() -> None:
    whole = sample_noise((2, 3), seed=1, step=5, rows=range(4), device="cpu")
    halves = [sample_noise((2, 3), seed=1, step=5, rows=rows, device="cpu") for rows in ([0, 1], [2, 3])]
    assert torch.equal(whole, torch.cat(halves))
    for other in ({"seed": 2, "step": 5}, {"seed": 1, "step": 6}):
        assert not torch.equal(whole, sample_noise((2, 3), rows=range(4), device="cpu", **other))
    assert len({float(row.sum()) for row in whole}) == 4


def test_noise_and_times_are_standard() -> None:
    noise = sample_noise((50,), seed=0, step=0, rows=range(200), device="cpu")
    assert abs(float(noise.mean())) < 0.05 and abs(float(noise.std()) - 1) < 0.05
    sigmas = FlowMatching().sample(torch.zeros(2000, 1), seed=0, step=0, rows=range(2000))["sigmas"]
    normal = torch.logit(sigmas)
    assert abs(float(normal.mean())) < 0.08 and abs(float(normal.std()) - 1) < 0.05


def test_flow_matching() -> None:
    drawn = FlowMatching(shift=3.0).sample(LATENTS, seed=0, step=1, rows=range(4))
    plain = FlowMatching().sample(LATENTS, seed=0, step=1, rows=range(4))
    sigma = drawn["sigmas"].view(-1, 1, 1, 1)
    torch.testing.assert_close(drawn["sigmas"], 3 * plain["sigmas"] / (1 + 2 * plain["sigmas"]))
    torch.testing.assert_close(drawn["timesteps"], drawn["sigmas"] * 1000)
    torch.testing.assert_close(drawn["noisy_latents"], (1 - sigma) * LATENTS + sigma * drawn["noise"])
    torch.testing.assert_close(drawn["noisy_latents"] - sigma * drawn["target"], LATENTS)
    with pytest.raises(ValueError, match="flow_schedule_shift is 0"):
        FlowMatching(shift=0.0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_discrete_diffusion(kind: str) -> None:
    scheduler = DDPMScheduler(prediction_type=kind)
    drawn = DiscreteDiffusion(scheduler).sample(LATENTS, seed=0, step=1, rows=range(4))
    cumulative = scheduler.alphas_cumprod[drawn["timesteps"]].view(-1, 1, 1, 1)
    alpha, sigma = cumulative.sqrt(), (1 - cumulative).sqrt()
    torch.testing.assert_close(drawn["noisy_latents"], alpha * LATENTS + sigma * drawn["noise"])
    expected = drawn["noise"] if kind == "epsilon" else alpha * drawn["noise"] - sigma * LATENTS
    torch.testing.assert_close(drawn["target"], expected)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weights(kind: str) -> None:
    """`min(snr, gamma) / snr` for epsilon, `/ (snr + 1)` for v (arXiv 2303.09556)."""
    objective = DiscreteDiffusion(DDPMScheduler(prediction_type=kind), snr_gamma=5.0)
    drawn = objective.sample(LATENTS, seed=0, step=1, rows=range(4))
    prediction = torch.zeros_like(LATENTS)
    expected = 0.0
    for row in range(4):
        cumulative = float(objective.scheduler.alphas_cumprod[drawn["timesteps"][row]])
        snr = cumulative / (1 - cumulative)
        weight = min(snr, 5.0) / (snr if kind == "epsilon" else snr + 1)
        expected += weight * float(drawn["target"][row].square().mean()) / 4
    assert float(objective.loss(prediction, drawn)) == pytest.approx(expected, rel=1e-5)
