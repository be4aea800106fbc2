"""REPA in a plain diffusers training loop: the five lines marked `REPA`, and its keys in the loop's own settings.

Trains a small DiT from scratch on scikit-learn's handwritten digits: `python examples/own_loop.py`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from simpletuner import CrepaRegularizer, capture_hidden_states

SETTINGS = SimpleNamespace(
    learning_rate=1e-3,
    block=2,
    crepa_enabled=True,
    crepa_encoder="efficientnet_lite0",
    crepa_encoder_image_size=112,
)


def load_images() -> tuple[Tensor, Tensor]:
    """Digits as `(B, 3, 28, 28)` in [0, 1], and their classes `(B,)`."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    return F.interpolate(images, size=28, mode="bicubic").clamp(0, 1).expand(-1, 3, -1, -1), torch.tensor(digits.target)


def main(steps: int = 50, batch_size: int = 16) -> list[dict[str, float]]:
    """Trains for some steps; returns what was logged at each."""
    torch.manual_seed(0)
    images, classes = load_images()
    model: Any = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=3,
        out_channels=3,
        num_layers=6,
        sample_size=28,
        patch_size=4,
        num_embeds_ada_norm=10,
        norm_num_groups=1,
    )
    model.train()
    repa = CrepaRegularizer(SETTINGS, None, hidden_size=128).attach_to_model(model)  # REPA: create, attach
    repa.teacher.standardise([images[:256, None]])  # REPA: this teacher's channels are standardised over the data
    capture = capture_hidden_states(model, SETTINGS.block)  # REPA: capture
    optimizer = torch.optim.AdamW(model.parameters(), lr=SETTINGS.learning_rate)

    history = []
    for step in range(steps):
        rows = torch.randint(len(images), (batch_size,))
        latents, noise = images[rows] * 2 - 1, torch.randn(batch_size, 3, 28, 28)
        sigmas = torch.rand(batch_size)
        noisy = torch.lerp(latents, noise, sigmas.view(-1, 1, 1, 1))
        with capture as hidden:  # REPA: around the forward
            prediction = model(noisy, timestep=sigmas * 1000, class_labels=classes[rows]).sample
        loss = base_loss = F.mse_loss(prediction, noise - latents)
        loss, logs = repa.add_loss(loss, hidden[f"layer_{SETTINGS.block}"], pixels=images[rows], step=step)  # REPA: add
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append({"loss": base_loss.item()} | {name: value.item() for name, value in logs.items()})
        if step % 10 == 0:
            print(f"step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in history[-1].items()))
    return history


if __name__ == "__main__":
    main()
