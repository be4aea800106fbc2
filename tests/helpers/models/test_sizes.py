"""What encoders give is known before they are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from simpletuner.helpers.data.buckets import Bucket
from simpletuner.helpers.models.sizes import latent_shapes, prompt_bytes
from tests.conftest import MakeFoundation
from tests.families import CASES


@pytest.mark.parametrize("name", CASES)
def test_shapes_of_latents_are_those_that_encoding_gives(name: str, make_foundation: MakeFoundation) -> None:
    foundation, case = make_foundation(name), CASES[name]
    frames, height, width = case.pixels
    bucket = Bucket(width, height, frames)
    assert latent_shapes(foundation, [bucket]) == {bucket: case.latents}
    assert foundation.vae is None  # and what has no weights can't be encoded with


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_size_of_prompts_that_one_clip_encodes(precision: str, make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("sd1x", mixed_precision=precision)
    (encoded,) = foundation.encode_prompts(["a photo of a red cat"])
    assert prompt_bytes(foundation) == sum(tensor.nbytes for tensor in encoded.values())


@pytest.mark.parametrize("name", ["sdxl", "sd3", "wan", "dit", "dit_pixels"])
def test_other_prompts_are_known_once_encoded(name: str, make_foundation: MakeFoundation) -> None:
    assert prompt_bytes(make_foundation(name)) is None


def test_a_model_without_an_autoencoder_is_refused(tmp_path: Path, make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("sd1x")
    foundation.config = foundation.config.model_copy(update={"pretrained_model_name_or_path": str(tmp_path)})
    with pytest.raises(ValueError, match="a configuration of vae/ could not be read"):
        latent_shapes(foundation, [Bucket(64, 64)])
