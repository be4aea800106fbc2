"""Qwen-Image: an MM-DiT that reads its prompts with Qwen2.5-VL, over a video autoencoder used for single frames."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
from torch import Tensor

from simpletuner.helpers.models import autoencoder, loading
from simpletuner.helpers.models.common import TextEmbeds
from simpletuner.helpers.models.packing import PackedImageFoundation
from simpletuner.helpers.models.sampling import SampleSettings
from simpletuner.helpers.training.alignment.geometry import TokenGrid


class QwenImageFoundation(PackedImageFoundation):
    NAME = "qwen_image"
    MODEL_CLASS = QwenImageTransformer2DModel
    PIPELINE_CLASS = QwenImagePipeline
    AUTOENCODER_CLASS = AutoencoderKLQwenImage
    TEXT_MASKS = MappingProxyType({"prompt_embeds": "prompt_embeds_mask"})

    def verify(self) -> None:
        if self.model_facts.get("guidance_embeds"):
            raise ValueError(
                f"{loading.SOURCE_OPTION} is {self.source!r}, whose transformer has guidance_embeds, which diffusers' "
                "class can't run; take a Qwen-Image that is not guidance-distilled."
            )
        super().verify()

    def encode_text(self, pipeline: Any, prompts: list[str]) -> TextEmbeds:
        embeds, mask = pipeline.encode_prompt(prompts)
        whole = embeds.new_ones(embeds.shape[:2])  # no mask comes where all prompts are of one length
        return {"prompt_embeds": embeds, "prompt_embeds_mask": whole if mask is None else mask}

    def conditions(self, text: TextEmbeds, grid: TokenGrid) -> dict[str, Any]:
        mask = text["prompt_embeds_mask"]
        shape = (1, grid.height, grid.width)
        return {"encoder_hidden_states_mask": mask, "img_shapes": [[shape]] * len(mask)}

    def pipeline_arguments(self, text: TextEmbeds, negative: TextEmbeds, settings: SampleSettings) -> dict[str, Any]:
        arguments = super().pipeline_arguments(text, negative, settings)
        del arguments["guidance_scale"]  # for distilled models; this one takes two predictions
        return arguments | {"true_cfg_scale": settings.guidance}

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        return autoencoder.encode(self.load_vae(), pixels.transpose(1, 2))[:, :, 0]

    def decode_latents(self, latents: Tensor, *, vae: Any = None) -> Tensor:
        return super().decode_latents(latents[:, :, None], vae=vae)
