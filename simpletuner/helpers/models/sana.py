"""Sana 1.0 and 1.5: a DiT with linear attention on the latents of an autoencoder that shrinks sides 32-fold."""

from __future__ import annotations

from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel

from simpletuner.helpers.models.common import ImageModelFoundation
from simpletuner.helpers.models.pixart import PixartLike


class SanaFoundation(PixartLike, ImageModelFoundation):
    NAME = "sana"
    MODEL_CLASS = SanaTransformer2DModel
    PIPELINE_CLASS = SanaPipeline
    ONLY_ITS_PIPELINE = True  # not Sprint, which is distilled to a few steps
    AUTOENCODER_CLASS = AutoencoderDC
