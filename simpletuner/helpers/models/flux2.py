"""FLUX.2 [dev] and [klein]: an MM-DiT that reads its prompts with Mistral or Qwen, trained by flow matching."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    DiffusionPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from torch import Tensor
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from simpletuner.helpers.models import loading
from simpletuner.helpers.models.common import TextEmbeds
from simpletuner.helpers.models.packing import PackedImageFoundation, image_ids
from simpletuner.helpers.models.sampling import SampleSettings
from simpletuner.helpers.training.alignment.geometry import TokenGrid

MOST_SINGLE_BLOCKS = 48  # [dev] has so many, [klein] fewer


class Flux2Foundation(PackedImageFoundation):
    """Latents are `(B, 128, h, w)` of 16 pixels: 2x2 of the autoencoder's own, normalised by its statistics."""

    NAME = "flux2"
    MODEL_CLASS = Flux2Transformer2DModel
    PIPELINE_CLASS = Flux2Pipeline
    AUTOENCODER_CLASS = AutoencoderKLFlux2
    BLOCK_CONTAINERS = ("transformer_blocks", "single_transformer_blocks")
    TEXT_FIRST = True
    LORA_TARGETS = (
        *(f"to_{part}" for part in ("q", "k", "v", "out.0", "qkv_mlp_proj")),
        # Of single blocks `to_out` is a layer, of double ones a list, which can't be adapted.
        *(f"single_transformer_blocks.{index}.attn.to_out" for index in range(MOST_SINGLE_BLOCKS)),
    )

    @cached_property
    def pipeline_class(self) -> Any:
        name = loading.load_facts(DiffusionPipeline, self.source)["_class_name"]
        return Flux2KleinPipeline if name == Flux2KleinPipeline.__name__ else Flux2Pipeline

    def encode_text(self, pipeline: Any, prompts: list[str]) -> TextEmbeds:
        embeds, _ = pipeline.encode_prompt(prompts)  # padding is attended to: it stays
        return {"prompt_embeds": embeds}

    # Latents

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        return self._normalised(super().encode_pixels(pixels))

    def decode_latents(self, latents: Tensor, *, vae: Any = None) -> Tensor:
        mean, std = self._statistics()
        return super().decode_latents(pixel_shuffle(latents.to(mean.device) * std + mean, 2), vae=vae)

    def _normalised(self, latents: Tensor) -> Tensor:
        """The autoencoder's own latents `(B, 32, 2h, 2w)` as patches, normalised."""
        mean, std = self._statistics()
        return (pixel_unshuffle(latents, 2) - mean) / std

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the patches, each `(128, 1, 1)`: a batch norm beside the autoencoder holds them."""
        vae = self.load_vae()
        std = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
        return vae.bn.running_mean[:, None, None], std[:, None, None]

    # Model

    def conditions(self, text: TextEmbeds, grid: TokenGrid) -> dict[str, Any]:
        embeds = text["prompt_embeds"]
        order = torch.arange(embeds.shape[1], device=embeds.device)
        return {
            # Trained at guidance 1, where the target is the data's own and no multiple of it; sampled at the scale
            # asked. [klein] has nowhere to put it and ignores it.
            "guidance": embeds.new_ones(len(embeds)),
            "img_ids": pad(image_ids(grid, embeds.device), (0, 1)),  # (0, row, column, 0)
            "txt_ids": pad(order[:, None], (3, 0)),  # (0, 0, 0, index)
        }

    def pipeline_arguments(self, text: TextEmbeds, negative: TextEmbeds, settings: SampleSettings) -> dict[str, Any]:
        arguments = super().pipeline_arguments(text, negative, settings)
        if self.pipeline_class is Flux2Pipeline:
            del arguments["negative_prompt_embeds"]  # it is told the guidance scale; [klein] takes two predictions
        return arguments

    def unpack_latents(self, latents: Tensor, settings: SampleSettings) -> Tensor:
        # At its end, and there alone, the pipeline of [klein] gives the autoencoder's own latents.
        return self._normalised(latents) if latents.ndim == 4 else super().unpack_latents(latents, settings)
