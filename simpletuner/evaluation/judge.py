"""Measures a small DiT of pixels: by its samples, its noise prediction and its hidden states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simpletuner.evaluation.classifier import SmallClassifier
from simpletuner.evaluation.datasets import LabelledImages
from simpletuner.evaluation.metrics import cknna, frechet_distance, gaussian_statistics, linear_probe
from simpletuner.evaluation.samples import labels_like, latents_to_pixels, sample_flow
from simpletuner.helpers.models.capture import capture_hidden_states

SIGMA = 0.3  # noise level at which hidden states are looked at
CHUNK = 250
EXAMINED_IMAGES = 2000


@dataclass(frozen=True)
class Measures:
    """What was measured after `step` optimizer steps.

    Attributes:
        frechet_distance: between samples and held-out images, in the classifier's features; lower is better.
        plain_distance: the same in the features of a classifier trained without noise and shifts, which answers to
            faint texture more than to what a sample shows; None without such a one.
        held_out_loss: flow-matching loss on the examined held-out images; it proves nothing.
        cknna: agreement of the hidden states' neighbours with the teacher's (arXiv 2405.07987); higher is better.
        probe: accuracy of a linear probe of the hidden states on held-out images; None where it wasn't asked for.
        seconds: of training until then, without measuring.
    """

    step: int
    frechet_distance: float
    plain_distance: float | None
    held_out_loss: float
    cknna: float
    probe: float | None
    seconds: float


class Judge:
    """Measures models alike: the same noise, labels, times and images for every arm, seed and step.

    Args:
        classifier: its features measure the samples; it and the model have seen no image in common.
        train, held_out: images by class; samples are compared with all of `held_out`, and `examined` of it, of all
            classes alike, are what hidden states and losses are measured on.
        teacher_tokens: the teacher's features of images `(n, C, H, W)`, averaged over tokens: `(n, D)`.
        tap: the transformer block whose hidden states are compared.
        conditional: whether the model is told the class of what it samples.
        samples, denoising: how many samples are drawn, by how many Euler steps.
        probe: whether to fit the linear probe, on `examined` images of `train`.
        plain_classifier: a second one, for `Measures.plain_distance`.
    """

    def __init__(
        self,
        classifier: SmallClassifier,
        train: LabelledImages,
        held_out: LabelledImages,
        teacher_tokens: Callable[[Tensor], Tensor],
        *,
        tap: int,
        conditional: bool,
        samples: int,
        denoising: int,
        probe: bool,
        plain_classifier: SmallClassifier | None = None,
        examined: int = EXAMINED_IMAGES,
    ) -> None:
        judges = {"frechet_distance": classifier, "plain_distance": plain_classifier}
        self.classifiers = {name: judge for name, judge in judges.items() if judge is not None}
        self.references = {n: gaussian_statistics(c.features(held_out.images)) for n, c in self.classifiers.items()}
        self.tap, self.denoising = tap, denoising
        self.examined = held_out.spread(examined)
        self.probe_images = train.spread(examined) if probe else None
        self.teacher_tokens = torch.cat([teacher_tokens(images) for images in self.examined.images.split(CHUNK)])
        classes = len(held_out.names)
        self.sample_labels = torch.full((samples,), classes)
        if conditional:
            self.sample_labels = labels_like(held_out.labels, samples, classes)
        labels = self.examined.labels
        self.loss_labels = labels if conditional else torch.full_like(labels, classes)
        generator = torch.Generator().manual_seed(0)
        self.noise = torch.randn(samples, *held_out.images.shape[1:], generator=generator)
        self.loss_noise = torch.randn(self.examined.images.shape, generator=generator)
        # The fractional parts of multiples of the golden ratio: evenly spread, in no order.
        self.sigmas = (torch.arange(len(labels)) * 0.6180339887) % 1.0

    @torch.no_grad()
    def measure(self, model: Any, step: int, seconds: float) -> tuple[Measures, Tensor]:
        """Measures a diffusers DiT in evaluation mode; returns the samples `(n, C, H, W)` in [0, 1] too."""
        samples = self.sample(model)
        hidden = self._hidden_states(model, self.examined)
        probe = None
        if self.probe_images is not None:
            seen = self._hidden_states(model, self.probe_images)
            probe = linear_probe(seen, self.probe_images.labels, hidden, self.examined.labels)
        distances = {
            name: frechet_distance(*gaussian_statistics(judge.features(samples)), *self.references[name])
            for name, judge in self.classifiers.items()
        }
        measures = Measures(
            step=step,
            frechet_distance=distances["frechet_distance"],
            plain_distance=distances.get("plain_distance"),
            held_out_loss=self._held_out_loss(model),
            cknna=cknna(hidden, self.teacher_tokens),
            probe=probe,
            seconds=seconds,
        )
        return measures, samples

    def sample(self, model: Any) -> Tensor:
        """Samples `(n, C, H, W)` in [0, 1]; in the class shares of the held-out images if the model is told classes."""

        def velocity(latents: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
            return model(latents, timestep=timesteps, class_labels=labels, return_dict=False)[0].float()

        latents = sample_flow(velocity, self.noise, self.sample_labels, steps=self.denoising, batch_size=CHUNK)
        return latents_to_pixels(latents)

    def _held_out_loss(self, model: Any) -> float:
        latents = self.examined.images * 2 - 1
        noisy = torch.lerp(latents, self.loss_noise, self.sigmas.view(-1, 1, 1, 1))
        errors = []
        for rows in torch.arange(len(latents)).split(CHUNK):
            labels, times = self.loss_labels[rows], self.sigmas[rows] * 1000
            prediction = model(noisy[rows], timestep=times, class_labels=labels, return_dict=False)[0]
            errors.append((prediction - (self.loss_noise[rows] - latents[rows])).square().flatten(1).mean(1))
        return float(torch.cat(errors).mean())

    def _hidden_states(self, model: Any, data: LabelledImages) -> Tensor:
        """Hidden states at the tap, averaged over tokens, `(n, D)`, of slightly noisy images without their class."""
        generator = torch.Generator().manual_seed(1)
        capture, found = capture_hidden_states(model, self.tap), []
        try:
            for images in data.images.split(CHUNK):
                noise = torch.randn(images.shape, generator=generator)
                noisy = torch.lerp(images * 2 - 1, noise, SIGMA)
                times, no_class = torch.full((len(images),), SIGMA * 1000), torch.full((len(images),), len(data.names))
                with capture as states:
                    model(noisy, timestep=times, class_labels=no_class, return_dict=False)
                found.append(states[f"layer_{self.tap}"].float().mean(1))
        finally:
            capture.remove()
        return torch.cat(found)
