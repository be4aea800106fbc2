"""What a reader has already, tiny and offline: models, batches, a loss, and a teacher under a published one's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from simpletuner.helpers.training.alignment import teachers
from tests.tiny_models import tiny_teacher

Batch = dict[str, Tensor]


def tiny_teachers(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Every encoder that is asked for by name is a tiny one, as wide as `dinov2_vitb14`."""
    load_encoder, encoder = teachers.load_encoder, str(tiny_teacher(folder, 768))
    monkeypatch.setattr(teachers, "load_encoder", lambda name: load_encoder(encoder))


def tiny_dit(*, layers: int, heads: int = 2, width: int = 8) -> Any:
    torch.manual_seed(0)
    model: Any = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        sample_size=8,
        num_embeds_ada_norm=10,
    )
    return model.train()


class PassedOn(nn.Module):
    """A block that does nothing."""

    def forward(self, hidden_states: Tensor, **others: Any) -> Tensor:
        return hidden_states


def tiny_unet() -> Any:
    torch.manual_seed(0)
    model: Any = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return model.train()


def tiny_batches(count: int = 2) -> list[Batch]:
    return [{"latents": torch.randn(2, 4, 8, 8), "pixels": torch.rand(2, 3, 64, 64)} for _ in range(count)]


def tiny_loss(model: Any, batch: Batch) -> Tensor:
    latents, timesteps = batch["latents"], torch.full((2,), 500)
    if isinstance(model, DiTTransformer2DModel):
        prediction = model(latents, timestep=timesteps, class_labels=torch.tensor([1, 2])).sample
    else:
        prediction = model(latents, timesteps, encoder_hidden_states=torch.randn(2, 3, 16)).sample
    return F.mse_loss(prediction, latents)
