"""LTX-Video 0.9 and 0.9.1: a DiT with cross-attention over strongly compressed latents, one token each."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel
from torch import Tensor

from simpletuner.helpers.models.common import Batch, TextEmbeds, VideoModelFoundation
from simpletuner.helpers.models.sampling import SampleSettings

FRAME_RATE = 25  # what the pipeline assumes; the model's positions in time are in seconds


class LtxvideoFoundation(VideoModelFoundation):
    NAME = "ltxvideo"
    MODEL_CLASS = LTXVideoTransformer3DModel
    PIPELINE_CLASS = LTXPipeline
    # From 0.9.5 on, frames have other positions and tokens timesteps of their own (LTXConditionPipeline).
    ONLY_ITS_PIPELINE = True
    AUTOENCODER_CLASS = AutoencoderKLLTXVideo
    TEXT_MASKS = MappingProxyType({"prompt_embeds": "prompt_attention_mask"})

    def encode_text(self, pipeline: Any, prompts: list[str]) -> TextEmbeds:
        embeds, mask, _, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def forward(self, prepared_batch: Batch) -> Tensor:
        latents, text = self.noisy_input(prepared_batch), prepared_batch["text"]
        sides = dict(zip(("num_frames", "height", "width"), latents.shape[2:], strict=True))
        ratio = self.family.latent_ratio
        prediction = self.model(
            LTXPipeline._pack_latents(latents),
            encoder_hidden_states=text["prompt_embeds"],
            timestep=prepared_batch["timesteps"],
            encoder_attention_mask=text["prompt_attention_mask"],
            **sides,
            rope_interpolation_scale=(self.family.frame_ratio / FRAME_RATE, ratio, ratio),
            return_dict=False,
        )[0]
        return LTXPipeline._unpack_latents(prediction, **sides)

    def pipeline_arguments(self, text: TextEmbeds, negative: TextEmbeds, settings: SampleSettings) -> dict[str, Any]:
        return super().pipeline_arguments(text, negative, settings) | {"frame_rate": FRAME_RATE}

    def unpack_latents(self, latents: Tensor, settings: SampleSettings) -> Tensor:
        frames = 1 + (settings.frames - 1) // self.family.frame_ratio
        ratio = self.family.latent_ratio
        return LTXPipeline._unpack_latents(latents, frames, settings.height // ratio, settings.width // ratio)
