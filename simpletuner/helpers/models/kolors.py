"""Kolors: a UNet like that of Stable Diffusion XL, with ChatGLM3 in the place of both text encoders."""

from __future__ import annotations

from types import MappingProxyType

from diffusers import KolorsPipeline

from simpletuner.helpers.models.sdxl import SdxlFoundation


class KolorsFoundation(SdxlFoundation):
    NAME = "kolors"
    PIPELINE_CLASS = KolorsPipeline
    PIPELINE_ARGUMENTS = MappingProxyType({})
