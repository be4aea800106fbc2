"""A small classifier whose features measure samples, trained apart from everything that it measures."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from simpletuner.evaluation.datasets import LabelledImages

CHUNK = 500  # images a forward outside training


class SmallClassifier(nn.Module):
    """Three convolutions and a penultimate layer of `feature_width`; for images `(n, C, H, W)` in [0, 1], H, W >= 8."""

    def __init__(self, classes: int, *, channels: int = 1, feature_width: int = 64) -> None:
        super().__init__()
        self.channels = channels
        self.body = nn.Sequential(
            *_stage(channels, 32),
            nn.MaxPool2d(2),
            *_stage(32, 64),
            nn.MaxPool2d(2),
            *_stage(64, 64),
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
            nn.Linear(64 * 9, feature_width),
            nn.ReLU(),
        )
        self.head = nn.Linear(feature_width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(n, classes)`."""
        return self.head(self.body(images))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Penultimate activations `(n, feature_width)`, in chunks, without gradient."""
        return torch.cat([self.body(chunk) for chunk in images.split(CHUNK)])

    @torch.no_grad()
    def accuracy(self, data: LabelledImages) -> float:
        """Share of `data` that is classified right, in [0, 1]."""
        found = torch.cat([self(chunk).argmax(dim=1) for chunk in data.images.split(CHUNK)])
        return float((found == data.labels).double().mean())


def train_classifier(
    data: LabelledImages,
    *,
    seed: int = 0,
    epochs: int = 4,
    batch_size: int = 128,
    learning_rate: float = 4e-3,
    shift: int = 2,
    noise: float = 0.3,
) -> SmallClassifier:
    """Trains a classifier with AdamW and a one-cycle rate; same seed, same weights. Leaves the global generator alone.

    Args:
        data: images that the model to be judged has never seen.
        shift: random shifts by up to so many pixels, which small sets need.
        noise: each image gets Gaussian noise of a random deviation up to this. Without it the features answer to
            faint pixel noise of samples more than to what they show.

    Returns:
        The classifier in evaluation mode, its weights frozen.

    Raises:
        ValueError: fewer images than one batch of 2, or epochs below 1.
    """
    batch_size = min(batch_size, len(data))
    if batch_size < 2 or epochs < 1:
        raise ValueError(f"{len(data)} images and {epochs} epochs cannot train a classifier; give at least 2 and 1")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = SmallClassifier(len(data.names), channels=data.images.shape[1])
    generator = torch.Generator().manual_seed(seed)
    batches = len(data) // batch_size
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * batches)
    for _ in range(epochs):
        order = torch.randperm(len(data), generator=generator)
        for indices in order[: batches * batch_size].split(batch_size):
            logits = classifier(_noisy(_shifted(data.images[indices], shift, generator), noise, generator))
            loss = F.cross_entropy(logits, data.labels[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.eval().requires_grad_(False)


def save_classifier(classifier: SmallClassifier, path: Path) -> Path:
    """Writes the weights as safetensors, with what is needed to build it again; returns `path`."""
    sizes = {"classes": str(classifier.head.out_features), "channels": str(classifier.channels)}
    save_file(classifier.state_dict(), path, metadata=sizes)
    return path


def load_classifier(path: Path) -> SmallClassifier:
    """Reads what `save_classifier` wrote: in evaluation mode, frozen."""
    with safe_open(path, framework="pt") as content:
        sizes = content.metadata()
    classifier = SmallClassifier(int(sizes["classes"]), channels=int(sizes["channels"]))
    classifier.load_state_dict(load_file(path))
    return classifier.eval().requires_grad_(False)


def _stage(width_in: int, width_out: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(width_in, width_out, 3, padding=1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU()


def _shifted(images: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """The whole batch moved by one random offset; pixels that enter repeat the edge."""
    if shift == 0:
        return images
    row, column = torch.randint(0, 2 * shift + 1, (2,), generator=generator).tolist()
    height, width = images.shape[-2:]
    padded = F.pad(images, (shift,) * 4, mode="replicate")
    return padded[..., row : row + height, column : column + width]


def _noisy(images: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    if noise == 0:
        return images
    deviation = noise * torch.rand(len(images), 1, 1, 1, generator=generator)
    return (images + deviation * torch.randn(images.shape, generator=generator)).clamp(0, 1)
