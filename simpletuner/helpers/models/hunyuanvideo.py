"""HunyuanVideo, text to video: blocks of two streams, then of one, over a causal video autoencoder.

The published model is distilled from guidance: it takes the guidance scale as an input. It is trained at scale 1, which
is no guidance; validation samples at the scale asked for.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from simpletuner.helpers.models.common import Batch, TextEmbeds, VideoModelFoundation
from simpletuner.helpers.models.sampling import SampleSettings

NO_GUIDANCE = 1000.0  # the model's input is the guidance scale times 1000


class HunyuanvideoFoundation(VideoModelFoundation):
    NAME = "hunyuanvideo"
    MODEL_CLASS = HunyuanVideoTransformer3DModel
    PIPELINE_CLASS = HunyuanVideoPipeline
    ONLY_ITS_PIPELINE = True  # not image to video
    AUTOENCODER_CLASS = AutoencoderKLHunyuanVideo
    BLOCK_CONTAINERS = ("transformer_blocks", "single_transformer_blocks")
    IMAGE_STREAM = 0
    TEXT_MASKS = MappingProxyType({"prompt_embeds": "prompt_attention_mask"})

    def load_text_encoders(self) -> Any:
        if self._text_pipeline is None:
            pipeline = super().load_text_encoders()
            # The model folder names LlamaTokenizerFast, which reads Llama 3's vocabulary as if it were Llama 2's: it
            # loses the spaces, and pads on the left, where `encode_prompt` then cuts the instruction off.
            pipeline.tokenizer = PreTrainedTokenizerFast.from_pretrained(
                self.source, subfolder="tokenizer", padding_side="right"
            )
        return self._text_pipeline

    def encode_text(self, pipeline: Any, prompts: list[str]) -> TextEmbeds:
        embeds, pooled, mask = pipeline.encode_prompt(prompts)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled, "prompt_attention_mask": mask}

    @property
    def is_distilled(self) -> bool:
        """Whether the model takes the guidance scale as an input."""
        return self.unwrap_model().config.guidance_embeds

    def forward(self, prepared_batch: Batch) -> Tensor:
        text, timesteps = prepared_batch["text"], prepared_batch["timesteps"]
        return self.model(
            self.noisy_input(prepared_batch),
            timestep=timesteps,
            encoder_hidden_states=text["prompt_embeds"],
            encoder_attention_mask=text["prompt_attention_mask"],
            pooled_projections=text["pooled_prompt_embeds"],
            guidance=timesteps.new_full((len(timesteps),), NO_GUIDANCE) if self.is_distilled else None,
            return_dict=False,
        )[0]

    def pipeline_arguments(self, text: TextEmbeds, negative: TextEmbeds, settings: SampleSettings) -> dict[str, Any]:
        arguments = super().pipeline_arguments(text, negative, settings)
        if not self.is_distilled:
            arguments["true_cfg_scale"] = arguments.pop("guidance_scale")
        return arguments
