"""FLUX.1: an MM-DiT of double and single blocks with CLIP and T5, trained by flow matching."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel

from simpletuner.helpers.models.common import TextEmbeds
from simpletuner.helpers.models.packing import PackedImageFoundation, position_ids
from simpletuner.helpers.models.sampling import SampleSettings
from simpletuner.helpers.training.alignment.geometry import TokenGrid

LORA_TARGETS = (
    *(f"attn.to_{part}" for part in ("q", "k", "v", "out.0")),
    *(f"attn.add_{part}_proj" for part in ("q", "k", "v")),
    "attn.to_add_out",
    *(f"{stream}.net.{layer}" for stream in ("ff", "ff_context") for layer in ("0.proj", "2")),
)


class FluxFoundation(PackedImageFoundation):
    NAME = "flux"
    MODEL_CLASS = FluxTransformer2DModel
    PIPELINE_CLASS = FluxPipeline
    AUTOENCODER_CLASS = AutoencoderKL
    TINY_AUTOENCODER = "madebyollin/taef1"
    BLOCK_CONTAINERS = ("transformer_blocks", "single_transformer_blocks")
    LORA_TARGETS = LORA_TARGETS

    @property
    def is_guidance_distilled(self) -> bool:
        """Whether the model is told a guidance scale, as FLUX.1 [dev] is and [schnell] is not."""
        return self.unwrap_model().config.guidance_embeds

    def encode_text(self, pipeline: Any, prompts: list[str]) -> TextEmbeds:
        embeds, pooled, _ = pipeline.encode_prompt(prompts)  # padding is attended to: it stays
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def conditions(self, text: TextEmbeds, grid: TokenGrid) -> dict[str, Any]:
        pooled = text["pooled_prompt_embeds"]
        # Trained at guidance 1, where the target is the data's own and no multiple of it; sampled at the scale asked.
        guidance = pooled.new_ones(len(pooled)) if self.is_guidance_distilled else None
        return {"pooled_projections": pooled, "guidance": guidance, **position_ids(text["prompt_embeds"], grid)}

    def pipeline_arguments(self, text: TextEmbeds, negative: TextEmbeds, settings: SampleSettings) -> dict[str, Any]:
        # Either the model is told `guidance_scale`, or two predictions are combined; the pipeline ignores the other.
        combined = 1.0 if self.is_guidance_distilled else settings.guidance
        return super().pipeline_arguments(text, negative, settings) | {"true_cfg_scale": combined}
