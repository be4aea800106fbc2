"""Noise, timesteps, targets and the base loss of a diffusion model.

Two objectives cover the families: flow matching (arXiv 2403.03206) and the discrete diffusion of DDPM (2006.11239)
with epsilon or v prediction (2202.00512). Every random number is a function of the seed, the optimizer step and the
row of the sample in the global batch, so that one process, two processes and a resumed run draw the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from diffusers.training_utils import compute_snr
from torch import Tensor

PredictionType = Literal["flow_matching", "epsilon", "v_prediction"]

NOISE_STREAM, TIME_STREAM = 0, 1


class Objective(Protocol):
    """What a model foundation asks of its objective."""

    num_train_timesteps: int

    def sample(self, latents: Tensor, *, seed: int, step: int, rows: Sequence[int]) -> dict[str, Tensor]:
        """Draws noise and time for `latents` `(B, C, ...)`.

        Returns `noise`, `noisy_latents` and `target` (shaped like `latents`) and `timesteps` `(B,)` on the 0..1000
        scale of diffusers' schedulers, all fp32.
        """
        ...

    def loss(self, prediction: Tensor, prepared_batch: dict[str, Tensor]) -> Tensor:
        """The base loss, a scalar: squared error averaged over a sample, then over the batch."""
        ...


def _generator(device: torch.device | str, seed: int, step: int, row: int, stream: int) -> torch.Generator:
    state = np.random.SeedSequence((seed, step, row, stream)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]))


def sample_noise(
    shape: Sequence[int], *, seed: int, step: int, rows: Sequence[int], device: torch.device | str
) -> Tensor:
    """Standard normal noise `(len(rows), *shape)`, fp32; row `i` depends on `(seed, step, rows[i])` alone."""
    return torch.stack(
        [
            torch.randn(*shape, generator=_generator(device, seed, step, row, NOISE_STREAM), device=device)
            for row in rows
        ]
    )


def sample_times(
    kind: Literal["normal", "uniform"], *, seed: int, step: int, rows: Sequence[int], device: torch.device | str
) -> Tensor:
    """One standard normal, or one number uniform in [0, 1), for each row: `(len(rows),)`, fp32."""
    draw = torch.randn if kind == "normal" else torch.rand
    values = [draw((), generator=_generator("cpu", seed, step, row, TIME_STREAM)) for row in rows]
    return torch.stack(values).to(device, non_blocking=True)


def broadcast(per_sample: Tensor, like: Tensor) -> Tensor:
    """Views `(B,)` as `(B, 1, ...)` with the rank of `like`."""
    return per_sample.view(-1, *[1] * (like.ndim - 1))


def mean_squared_error(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over each sample in fp32, times `weights` `(B,)` where given, then the mean over the batch."""
    per_sample = (prediction.float() - target.float()).square().flatten(1).mean(1)
    if weights is not None:
        per_sample = per_sample * weights
    return per_sample.mean()


class FlowMatching:
    """Rectified flow: `x_t = (1 - s) x0 + s n`, target `n - x0`, `s` logit-normal and shifted (arXiv 2403.03206).

    Args:
        shift: moves the times toward noise; `s -> shift * s / (1 + (shift - 1) * s)`. 1 leaves them.
        sigmoid_scale: standard deviation of the normal before the sigmoid.
        num_train_timesteps: the scale of `timesteps`.
    """

    def __init__(self, shift: float = 1.0, sigmoid_scale: float = 1.0, num_train_timesteps: int = 1000) -> None:
        if shift <= 0:
            raise ValueError(f"flow_schedule_shift is {shift}; it must be above 0 (1 leaves the times as they are).")
        self.shift = shift
        self.sigmoid_scale = sigmoid_scale
        self.num_train_timesteps = num_train_timesteps

    def sample(self, latents: Tensor, *, seed: int, step: int, rows: Sequence[int]) -> dict[str, Tensor]:
        latents = latents.float()
        normal = sample_times("normal", seed=seed, step=step, rows=rows, device=latents.device)
        uniform = torch.sigmoid(normal * self.sigmoid_scale)
        sigmas = self.shift * uniform / (1 + (self.shift - 1) * uniform)
        noise = sample_noise(latents.shape[1:], seed=seed, step=step, rows=rows, device=latents.device)
        sigma = broadcast(sigmas, latents)
        return {
            "noise": noise,
            "sigmas": sigmas,
            "timesteps": sigmas * self.num_train_timesteps,
            "noisy_latents": (1 - sigma) * latents + sigma * noise,
            "target": noise - latents,
        }

    def loss(self, prediction: Tensor, prepared_batch: dict[str, Tensor]) -> Tensor:
        return mean_squared_error(prediction, prepared_batch["target"])


class DiscreteDiffusion:
    """DDPM noising with epsilon or v prediction through diffusers' scheduler; min-SNR weights (arXiv 2303.09556).

    Args:
        scheduler: diffusers' `DDPMScheduler`; its betas and `prediction_type` are used.
        snr_gamma: min-SNR gamma; None weights all timesteps alike.
    """

    def __init__(self, scheduler: Any, snr_gamma: float | None = None) -> None:
        self.scheduler = scheduler
        self.snr_gamma = snr_gamma
        self.prediction_type: str = self.scheduler.config.prediction_type
        self.num_train_timesteps: int = self.scheduler.config.num_train_timesteps
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"prediction_type is {self.prediction_type!r}; discrete diffusion knows 'epsilon' and 'v_prediction'."
            )

    def sample(self, latents: Tensor, *, seed: int, step: int, rows: Sequence[int]) -> dict[str, Tensor]:
        latents = latents.float()
        uniform = sample_times("uniform", seed=seed, step=step, rows=rows, device=latents.device)
        timesteps = (uniform * self.num_train_timesteps).long()
        noise = sample_noise(latents.shape[1:], seed=seed, step=step, rows=rows, device=latents.device)
        is_epsilon = self.prediction_type == "epsilon"
        return {
            "noise": noise,
            "timesteps": timesteps,
            "noisy_latents": self.scheduler.add_noise(latents, noise, timesteps),
            "target": noise if is_epsilon else self.scheduler.get_velocity(latents, noise, timesteps),
        }

    def loss(self, prediction: Tensor, prepared_batch: dict[str, Tensor]) -> Tensor:
        return mean_squared_error(
            prediction, prepared_batch["target"], self._min_snr_weights(prepared_batch["timesteps"])
        )

    def _min_snr_weights(self, timesteps: Tensor) -> Tensor | None:
        if self.snr_gamma is None:
            return None
        snr = compute_snr(self.scheduler, timesteps)
        return snr.clamp(max=self.snr_gamma) / (snr if self.prediction_type == "epsilon" else snr + 1)
