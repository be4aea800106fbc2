"""Stable Diffusion 3 and 3.5: an MM-DiT with three text encoders, trained by flow matching."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor

from simpletuner.helpers.models.common import Batch, ImageModelFoundation, TextEmbeds
from simpletuner.helpers.models.lora import JOINT_ATTENTION


class Sd3Foundation(ImageModelFoundation):
    NAME = "sd3"
    MODEL_CLASS = SD3Transformer2DModel
    PIPELINE_CLASS = StableDiffusion3Pipeline
    AUTOENCODER_CLASS = AutoencoderKL
    TINY_AUTOENCODER = "madebyollin/taesd3"
    GUIDES_IN_INTERVALS = True
    LORA_TARGETS = JOINT_ATTENTION

    def encode_text(self, pipeline: Any, prompts: list[str]) -> TextEmbeds:
        embeds, _, pooled, _ = pipeline.encode_prompt(prompts, None, None, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def forward(self, prepared_batch: Batch) -> Tensor:
        text = prepared_batch["text"]
        return self.model(
            self.noisy_input(prepared_batch),
            timestep=prepared_batch["timesteps"],
            encoder_hidden_states=text["prompt_embeds"],
            pooled_projections=text["pooled_prompt_embeds"],
            return_dict=False,
        )[0]
