"""Z-Image: a DiT over one sequence of image and text, trained by flow matching from noise to data."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor

from simpletuner.helpers.models.common import Batch, ImageModelFoundation, TextEmbeds
from simpletuner.helpers.models.sampling import SampleSettings
from simpletuner.helpers.utils.hidden_state_buffer import ForwardCall


class ZImageFoundation(ImageModelFoundation):
    NAME = "z_image"
    MODEL_CLASS = ZImageTransformer2DModel
    PIPELINE_CLASS = ZImagePipeline
    ONLY_ITS_PIPELINE = True  # not Omni
    AUTOENCODER_CLASS = AutoencoderKL
    TINY_AUTOENCODER = "madebyollin/taef1"
    BLOCK_CONTAINERS = ("noise_refiner", "layers")
    TEXT_MASKS = MappingProxyType({"prompt_embeds": "prompt_mask"})

    @property
    def hidden_size(self) -> int:
        return self.unwrap_model().config.dim

    @classmethod
    def image_tokens(cls, call: ForwardCall) -> int:
        # The image comes first, and is padded to a multiple of 32 tokens; all of a batch have one size.
        return cls.token_grid(call.arguments["x"][0], call.config).tokens

    def encode_text(self, pipeline: Any, prompts: list[str]) -> TextEmbeds:
        # The pipeline writes its chat template into the list that it is given.
        embeds, _ = pipeline.encode_prompt([*prompts], do_classifier_free_guidance=False)
        return self.collate_text([{"prompt_embeds": rows} for rows in embeds])

    def forward(self, prepared_batch: Batch) -> Tensor:
        text = prepared_batch["text"]
        prediction = self.model(
            list(self.noisy_input(prepared_batch).unsqueeze(2)),
            1 - prepared_batch["timesteps"] / 1000,  # its time is 0 for noise and 1 for data
            _ragged(text["prompt_embeds"], text["prompt_mask"]),
            return_dict=False,
        )[0]
        return -torch.stack(prediction).squeeze(2)

    def pipeline_arguments(self, text: TextEmbeds, negative: TextEmbeds, settings: SampleSettings) -> dict[str, Any]:
        arguments = super().pipeline_arguments(text, negative, settings)
        for name in ("prompt", "negative_prompt"):
            arguments[f"{name}_embeds"] = _ragged(arguments[f"{name}_embeds"], arguments.pop(f"{name}_mask"))
        # This pipeline's scale is how much of the difference is added: none is 0, not 1.
        return arguments | {"guidance_scale": settings.guidance - 1}


def _ragged(rows: Tensor, mask: Tensor) -> list[Tensor]:
    """The tokens of each sample without its padding."""
    return [row[kept] for row, kept in zip(rows, mask, strict=True)]
