"""SANA-Video at 480p, text to video: Sana's DiT over Wan's causal video autoencoder."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKLWan, SanaVideoPipeline, SanaVideoTransformer3DModel

from simpletuner.helpers.models import loading
from simpletuner.helpers.models.common import TextEmbeds, VideoModelFoundation
from simpletuner.helpers.models.pixart import PixartLike
from simpletuner.helpers.models.sampling import SampleSettings


class SanavideoFoundation(PixartLike, VideoModelFoundation):
    NAME = "sanavideo"
    MODEL_CLASS = SanaVideoTransformer3DModel
    PIPELINE_CLASS = SanaVideoPipeline
    ONLY_ITS_PIPELINE = True  # not image to video
    AUTOENCODER_CLASS = AutoencoderKLWan

    def verify(self) -> None:
        named = loading.load_facts(self.AUTOENCODER_CLASS, self.source, "vae").get("_class_name")
        if named != self.AUTOENCODER_CLASS.__name__:
            raise ValueError(
                f"pretrained_model_name_or_path is {self.source!r}, a SANA-Video whose autoencoder is {named}, with "
                "other latents and frames than those of the 480p model, which alone is supported."
            )
        super().verify()

    def pipeline_arguments(self, text: TextEmbeds, negative: TextEmbeds, settings: SampleSettings) -> dict[str, Any]:
        arguments = super().pipeline_arguments(text, negative, settings)
        arguments["frames"] = arguments.pop("num_frames")
        return arguments
