"""Stable Diffusion XL: a UNet with two text encoders that is told how its images were scaled and cropped."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor

from simpletuner.helpers.models.common import Batch, ImageModelFoundation, ModelTypes, TextEmbeds


class SdxlFoundation(ImageModelFoundation):
    NAME = "sdxl"
    MODEL_TYPE = ModelTypes.UNET
    MODEL_CLASS = UNet2DConditionModel
    PIPELINE_CLASS: ClassVar[Any] = StableDiffusionXLPipeline
    GUIDES_IN_INTERVALS = True
    ONLY_ITS_PIPELINE = True  # not the refiner, not inpainting
    AUTOENCODER_CLASS = AutoencoderKL
    TINY_AUTOENCODER = "madebyollin/taesdxl"
    PIPELINE_ARGUMENTS = MappingProxyType({"add_watermarker": False})

    def verify(self) -> None:
        facts = self.model_facts
        unfit = {
            "has no input for the pooled text and the image's sizes": facts.get("addition_embed_type") != "text_time",
            "takes more than the noisy latents, as for inpainting": facts.get("in_channels") != facts["out_channels"],
            "is distilled and takes the guidance as an input": facts.get("time_cond_proj_dim") is not None,
            "is trained with EDM's preconditioning": self.scheduler_facts["_class_name"].startswith("EDM"),
        }
        for reason, applies in unfit.items():
            if applies:
                raise ValueError(
                    f"pretrained_model_name_or_path is {self.source!r}, a model that {reason}; it can't be trained as "
                    f"{self.NAME}. Take a base model."
                )
        super().verify()

    def encode_text(self, pipeline: Any, prompts: list[str]) -> TextEmbeds:
        embeds, _, pooled, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
        if pipeline.config.force_zeros_for_empty_prompt:
            # SDXL learned zeros as the absence of a prompt, and its pipeline guides away from them.
            empty = torch.tensor([prompt == "" for prompt in prompts], device=embeds.device)
            embeds = embeds.masked_fill(empty[:, None, None], 0.0)
            pooled = pooled.masked_fill(empty[:, None], 0.0)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def forward(self, prepared_batch: Batch) -> Tensor:
        text, noisy = prepared_batch["text"], self.noisy_input(prepared_batch)
        # Height before width, top before left (arXiv 2307.01952); fp32, since bf16 doesn't hold every size.
        sizes = [prepared_batch[name] for name in ("original_sizes", "crops", "target_sizes")]
        time_ids = torch.cat(sizes, dim=1).to(noisy.device, torch.float32)
        return self.model(
            noisy,
            prepared_batch["timesteps"],
            encoder_hidden_states=text["prompt_embeds"],
            added_cond_kwargs={"text_embeds": text["pooled_prompt_embeds"], "time_ids": time_ids},
            return_dict=False,
        )[0]
