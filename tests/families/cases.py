"""A tiny model folder for each family, in diffusers' format, and the batches that fit it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simpletuner.configuration import Family
from simpletuner.helpers.models.registry import FAMILIES

Components = dict[str, object]


@dataclass(frozen=True)
class Case:
    """The real classes of a family with random weights, made on the spot.

    Attributes:
        pipeline: the class that `model_index.json` names.
        components: makes models, tokenizers and scheduler by their folders' names.
        latents: shape of one sample's; not square, and of several frames, where the family can.
        prompts: two, of different lengths.
        latent_ratio: pixels per latent side; None takes the family's.
        facts: what `model_index.json` states besides.
    """

    name: str
    pipeline: str
    components: Callable[[], Components]
    latents: tuple[int, ...]
    prompts: tuple[str, str] = ("a photo of a red cat", "dog")
    latent_ratio: int | None = None
    facts: tuple[tuple[str, object], ...] = ()

    @property
    def family(self) -> Family:
        return FAMILIES[self.name]

    @property
    def pixels(self) -> tuple[int, int, int]:
        """Frames, height and width of the pixels that have such latents."""
        ratio = self.family.latent_ratio if self.latent_ratio is None else self.latent_ratio
        frames = 1 + (self.latents[-3] - 1) * self.family.frame_ratio if self.is_video else 1
        return frames, self.latents[-2] * ratio, self.latents[-1] * ratio

    @property
    def is_video(self) -> bool:
        return self.family.media == "video"

    @property
    def prefix(self) -> str:
        """Of the alignment options that are for this family."""
        return "urepa" if self.family.model_type == "unet" else "crepa"
