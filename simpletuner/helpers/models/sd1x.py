"""Stable Diffusion 1.x and 2.x: a UNet that predicts epsilon, or v in 2.x at 768 pixels."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from simpletuner.helpers.models import loading
from simpletuner.helpers.models.common import Batch, ImageModelFoundation, ModelTypes, TextEmbeds


class Sd1xFoundation(ImageModelFoundation):
    NAME = "sd1x"
    MODEL_TYPE = ModelTypes.UNET
    MODEL_CLASS = UNet2DConditionModel
    PIPELINE_CLASS = StableDiffusionPipeline
    AUTOENCODER_CLASS = AutoencoderKL
    TINY_AUTOENCODER = "madebyollin/taesd"
    GUIDES_IN_INTERVALS = True
    PIPELINE_ARGUMENTS = MappingProxyType({"requires_safety_checker": False})

    def verify(self) -> None:
        taken, given = self.model_facts.get("in_channels"), self.model_facts.get("out_channels")
        if taken != given:
            raise ValueError(
                f"{loading.SOURCE_OPTION} is {self.source!r}, whose model takes {taken} channels and gives {given}: it "
                "wants more than noisy latents, as for inpainting. Take a base model."
            )
        super().verify()

    def encode_text(self, pipeline: Any, prompts: list[str]) -> TextEmbeds:
        embeds, _ = pipeline.encode_prompt(prompts, pipeline.device, 1, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds}

    def forward(self, prepared_batch: Batch) -> Tensor:
        return self.model(
            self.noisy_input(prepared_batch),
            prepared_batch["timesteps"],
            encoder_hidden_states=prepared_batch["text"]["prompt_embeds"],
            return_dict=False,
        )[0]
