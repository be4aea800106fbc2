"""LTX-Video's folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from simpletuner.configuration.family import with_local_facts
from simpletuner.helpers.models.registry import FAMILIES


def test_a_folder_tells_the_sides_of_a_latent(tiny_folder: Callable[[str], Path]) -> None:
    """Patches of 4 pixels, halved three times; the autoencoder's levels alone would say 8."""
    assert with_local_facts(FAMILIES["ltxvideo"], tiny_folder("ltxvideo")).latent_ratio == 32
