"""AuraFlow: four MM-DiT blocks before many single-stream ones, whose sequence is register tokens, text, image."""

from __future__ import annotations

from typing import Any

from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, AutoencoderKL
from torch import Tensor

from simpletuner.helpers.models.common import Batch, ImageModelFoundation, TextEmbeds
from simpletuner.helpers.models.lora import JOINT_ATTENTION


class AuraflowFoundation(ImageModelFoundation):
    NAME = "auraflow"
    MODEL_CLASS = AuraFlowTransformer2DModel
    PIPELINE_CLASS = AuraFlowPipeline
    AUTOENCODER_CLASS = AutoencoderKL
    TINY_AUTOENCODER = "madebyollin/taesdxl"
    BLOCK_CONTAINERS = ("joint_transformer_blocks", "single_transformer_blocks")
    TEXT_FIRST = True
    GUIDES_IN_INTERVALS = True
    LORA_TARGETS = JOINT_ATTENTION

    def encode_text(self, pipeline: Any, prompts: list[str]) -> TextEmbeds:
        # The model attends to the padding, which is zeros, so it stays; the pipeline asks for the mask and ignores it.
        embeds, mask, _, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        latents = super().encode_pixels(pixels)
        self._check_positions(latents)
        return latents

    def forward(self, prepared_batch: Batch) -> Tensor:
        latents = self.noisy_input(prepared_batch)
        self._check_positions(latents)
        return self.model(
            latents,
            encoder_hidden_states=prepared_batch["text"]["prompt_embeds"],
            timestep=prepared_batch["timesteps"] / 1000,
            return_dict=False,
        )[0]

    def _check_positions(self, latents: Tensor) -> None:
        """diffusers would silently take positions of other rows for a side that is too long."""
        grid = self.token_grid(latents, self.model_facts)
        side = int(self.model_facts["pos_embed_max_size"] ** 0.5)  # as diffusers reckons it
        if max(grid.height, grid.width) > side:
            raise ValueError(
                f"An image has {grid.height}×{grid.width} tokens, but this auraflow has positions for {side}×{side} "
                f"({side * self.family.pixels_per_token} pixels a side): lower resolution, or set crop_aspect to "
                "square in the data set."
            )
