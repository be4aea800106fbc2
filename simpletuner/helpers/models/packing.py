"""Families whose pipelines pack latents into tokens before the model sees them: Flux and its kin."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from simpletuner.helpers.models.common import Batch, ImageModelFoundation, TextEmbeds
from simpletuner.helpers.models.sampling import SampleSettings
from simpletuner.helpers.training.alignment.geometry import TokenGrid


def pack(latents: Tensor, side: int = 2) -> Tensor:
    """Latents `(B, C, H, W)` to tokens `(B, H/side * W/side, side * side * C)`, row-major; one is `(C, side, side)`."""
    return functional.pixel_unshuffle(latents, side).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, rows: int, columns: int, side: int = 2) -> Tensor:
    """Undoes `pack`: tokens `(B, rows * columns, ...)` to latents `(B, C, side * rows, side * columns)`."""
    return functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (rows, columns)), side)


def image_ids(grid: TokenGrid, device: torch.device) -> Tensor:
    """Where each token is: `(N, 3)`, each `(0, row, column)`."""
    axes = [torch.arange(side, dtype=torch.float32, device=device) for side in (1, grid.height, grid.width)]
    return torch.cartesian_prod(*axes)


def position_ids(embeds: Tensor, grid: TokenGrid) -> dict[str, Tensor]:
    """Flux's `img_ids` and `txt_ids`: text `(B, L, D)` is at the origin, all of it."""
    return {"img_ids": image_ids(grid, embeds.device), "txt_ids": embeds.new_zeros(embeds.shape[1], 3).float()}


class PackedImageFoundation(ImageModelFoundation):
    """Latents are `(B, C, h, w)`; pipeline and model exchange them packed. Time goes from 0 to 1."""

    ONLY_ITS_PIPELINE = True  # not Fill, Control, Edit, Layered ...

    def forward(self, prepared_batch: Batch) -> Tensor:
        latents, text = self.noisy_input(prepared_batch), prepared_batch["text"]
        grid = self.student_grid(latents)
        prediction = self.model(
            pack(latents, self.family.patch_size),
            timestep=prepared_batch["timesteps"] / 1000,
            encoder_hidden_states=text["prompt_embeds"],
            **self.conditions(text, grid),
            return_dict=False,
        )[0]
        return unpack(prediction, grid.height, grid.width, self.family.patch_size)

    @abstractmethod
    def conditions(self, text: TextEmbeds, grid: TokenGrid) -> dict[str, Any]:
        """The model's other arguments: positions, masks, guidance."""

    def unpack_latents(self, latents: Tensor, settings: SampleSettings) -> Tensor:
        side = self.family.pixels_per_token
        return unpack(latents, settings.height // side, settings.width // side, self.family.patch_size)
