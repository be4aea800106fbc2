"""Wan 2.1 and 2.2, text to video: a DiT with cross-attention over a causal video autoencoder."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from torch import Tensor

from simpletuner.helpers.models import loading
from simpletuner.helpers.models.common import Batch, TextEmbeds, VideoModelFoundation

TEXT_TOKENS = 512


class WanFoundation(VideoModelFoundation):
    NAME = "wan"
    MODEL_CLASS = WanTransformer3DModel
    PIPELINE_CLASS = WanPipeline
    ONLY_ITS_PIPELINE = True  # not image to video
    AUTOENCODER_CLASS = AutoencoderKLWan
    BLOCK_CONTAINERS = ("blocks",)

    def verify(self) -> None:
        if loading.load_facts(self.PIPELINE_CLASS, self.source).get("boundary_ratio") is not None:
            raise ValueError(
                f"pretrained_model_name_or_path is {self.source!r}, a Wan 2.2 with two "
                "experts for high and low noise, which can't be trained as one; take Wan 2.1 or Wan 2.2 TI2V-5B."
            )
        super().verify()

    def encode_text(self, pipeline: Any, prompts: list[str]) -> TextEmbeds:
        embeds, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=TEXT_TOKENS)
        return {"prompt_embeds": embeds}

    def forward(self, prepared_batch: Batch) -> Tensor:
        return self.model(
            self.noisy_input(prepared_batch),
            timestep=prepared_batch["timesteps"],
            encoder_hidden_states=prepared_batch["text"]["prompt_embeds"],
            return_dict=False,
        )[0]
