"""PixArt-α and PixArt-Σ: a DiT with cross-attention to the text, trained to predict epsilon."""

from __future__ import annotations

import inspect
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel
from torch import Tensor

from simpletuner.helpers.models import loading
from simpletuner.helpers.models.common import Batch, ImageModelFoundation, ModelFoundation, TextEmbeds
from simpletuner.helpers.models.sampling import SampleSettings


class PixartLike(ModelFoundation):
    """What PixArt shares with Sana and SANA-Video, which follow it: cross-attention to one masked text.

    Captions are encoded as the pipelines encode prompts by default: lower-cased, not cleaned of web addresses and the
    like, and after Sana's instruction to the text encoder; an empty one without it, as where the pipelines guide.
    """

    TEXT_MASKS = MappingProxyType({"prompt_embeds": "prompt_attention_mask"})
    GUIDES_IN_INTERVALS = True

    @property
    def text_tokens(self) -> int:
        """The length to which captions are cut."""
        return 300

    def encode_text(self, pipeline: Any, prompts: list[str]) -> TextEmbeds:
        def encode(texts: list[str], **instruction: Any) -> tuple[Tensor, Tensor]:
            return pipeline.encode_prompt(
                texts, do_classifier_free_guidance=False, max_sequence_length=self.text_tokens, **instruction
            )[:2]

        call = inspect.signature(type(pipeline).__call__).parameters
        told = {name: call[name].default for name in ("complex_human_instruction",) if name in call}
        embeds, mask = encode(prompts, **told)
        blank = [row for row, prompt in enumerate(prompts) if not prompt.strip()]
        if told and blank:
            embeds[blank], mask[blank] = encode([""] * len(blank))
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def forward(self, prepared_batch: Batch) -> Tensor:
        text, latents = prepared_batch["text"], self.noisy_input(prepared_batch)
        prediction = self.model(
            latents,
            timestep=prepared_batch["timesteps"],
            encoder_hidden_states=text["prompt_embeds"],
            encoder_attention_mask=text["prompt_attention_mask"],
            **self.conditions(latents),
            return_dict=False,
        )[0]
        # Some predict a variance too, in the second half of the channels; it isn't trained here.
        return prediction[:, : latents.shape[1]]

    def conditions(self, latents: Tensor) -> dict[str, Any]:
        """What the model is given besides latents, time and text."""
        return {}

    def pipeline_arguments(self, text: TextEmbeds, negative: TextEmbeds, settings: SampleSettings) -> dict[str, Any]:
        # By default it is "", which clashes with embeddings. Binning would sample at another size and scale the pixels.
        ours = {"negative_prompt": None, "use_resolution_binning": False}
        return super().pipeline_arguments(text, negative, settings) | ours


class PixartFoundation(PixartLike, ImageModelFoundation):
    NAME = "pixart"
    MODEL_CLASS = PixArtTransformer2DModel
    PIPELINE_CLASS = PixArtSigmaPipeline
    AUTOENCODER_CLASS = AutoencoderKL
    TINY_AUTOENCODER = "madebyollin/taesdxl"

    @cached_property
    def is_alpha(self) -> bool:
        """Whether it is PixArt-α, by the pipeline that its folder names; PixArt-Σ otherwise."""
        name = loading.load_facts(self.PIPELINE_CLASS, self.source).get("_class_name")
        return name == PixArtAlphaPipeline.__name__

    @property
    def text_tokens(self) -> int:
        return 120 if self.is_alpha else super().text_tokens

    def load_tiny_autoencoder(self) -> Any:
        if self.is_alpha:
            raise ValueError(
                "crepa_use_tae is true, but the tiny autoencoder of pixart is for the latents of PixArt-Σ, and "
                f"{self.source!r} is PixArt-α: set it to false."
            )
        return super().load_tiny_autoencoder()

    def conditions(self, latents: Tensor) -> dict[str, Any]:
        if not self.unwrap_model().use_additional_conditions:
            return {}
        # PixArt-α at 1024 pixels is told the size of the image that it makes.
        height, width = (side * self.family.latent_ratio for side in latents.shape[-2:])
        resolution = torch.tensor([[height, width]], dtype=torch.float32, device=latents.device)
        aspect_ratio = torch.tensor([[height / width]], dtype=torch.float32, device=latents.device)
        rows = len(latents)
        return {
            "added_cond_kwargs": {
                "resolution": resolution.expand(rows, 2),
                "aspect_ratio": aspect_ratio.expand(rows, 1),
            }
        }

    def sampling_pipeline(self) -> Any:
        pipeline = super().sampling_pipeline()
        if self.is_alpha:
            told: Any = PixArtAlphaPipeline(**pipeline.components)  # the size of the image, unlike the other
            told.set_progress_bar_config(disable=True)
            return told
        return pipeline
