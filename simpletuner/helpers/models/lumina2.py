"""Lumina Image 2.0: a DiT over one sequence of text and image, trained by flow matching from noise to data."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, Lumina2Pipeline, Lumina2Transformer2DModel
from torch import Tensor

from simpletuner.helpers.models.common import Batch, ImageModelFoundation, TextEmbeds
from simpletuner.helpers.utils.hidden_state_buffer import ForwardCall


class Lumina2Foundation(ImageModelFoundation):
    NAME = "lumina2"
    MODEL_CLASS = Lumina2Transformer2DModel
    PIPELINE_CLASS = Lumina2Pipeline
    AUTOENCODER_CLASS = AutoencoderKL
    TINY_AUTOENCODER = "madebyollin/taef1"
    BLOCK_CONTAINERS = ("noise_refiner", "layers")
    TEXT_MASKS = MappingProxyType({"prompt_embeds": "prompt_attention_mask"})

    @property
    def hidden_size(self) -> int:
        return self.unwrap_model().config.hidden_size

    @classmethod
    def select_tokens(cls, raw_output: Any, block_index: int, call: ForwardCall) -> Tensor:
        count = cls.image_tokens(call)
        if raw_output.shape[1] == count:  # the refiners see the image alone
            return raw_output
        # In each sample the image follows that sample's own text, without padding between them.
        text_lengths = call.arguments["encoder_attention_mask"].sum(1, keepdim=True)
        positions = text_lengths + torch.arange(count, device=raw_output.device)
        return raw_output.take_along_dim(positions[..., None], dim=1)

    def encode_text(self, pipeline: Any, prompts: list[str]) -> TextEmbeds:
        blank = [not prompt.strip() for prompt in prompts]
        embeds, mask, empty, empty_mask = pipeline.encode_prompt(prompts, do_classifier_free_guidance=any(blank))
        for row in range(len(prompts)):
            if blank[row]:  # as where the pipeline guides: without the instructions that it puts before a prompt
                embeds[row], mask[row] = empty[row], empty_mask[row]
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def forward(self, prepared_batch: Batch) -> Tensor:
        text = prepared_batch["text"]
        prediction = self.model(
            self.noisy_input(prepared_batch),
            timestep=1 - prepared_batch["timesteps"] / 1000,  # its time is 0 for noise and 1 for data
            encoder_hidden_states=text["prompt_embeds"],
            encoder_attention_mask=text["prompt_attention_mask"],
            return_dict=False,
        )[0]
        return -prediction
