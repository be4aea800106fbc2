"""Pixels to latents and back."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import MakeFoundation

PIXELS = {"dit": (1, 64, 64), "sd1x": (1, 64, 96), "sd3": (1, 64, 96), "wan": (9, 32, 48)}
LATENTS = {"dit": (4, 8, 8), "sd1x": (4, 8, 12), "sd3": (16, 8, 12), "wan": (16, 3, 4, 6)}


def random_pixels(frames: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", PIXELS)
def test_round_trip_keeps_shape_and_range(name: str, make_foundation: MakeFoundation) -> None:
    foundation = make_foundation(name)
    pixels = random_pixels(*PIXELS[name])
    with torch.no_grad():
        latents = foundation.encode_pixels(pixels)
        decoded = foundation.decode_latents(latents)
    assert latents.shape == (2, *LATENTS[name])
    assert latents.dtype == torch.float32
    assert decoded.shape == pixels.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1


@pytest.mark.parametrize("name", PIXELS)
def test_encoding_is_deterministic_and_normalised_as_the_pipeline_expects(
    name: str, make_foundation: MakeFoundation
) -> None:
    foundation = make_foundation(name)
    pixels = random_pixels(*PIXELS[name])
    with torch.no_grad():
        latents = foundation.encode_pixels(pixels)
        assert torch.equal(latents, foundation.encode_pixels(pixels))
        vae = foundation.load_vae()
        images = pixels.transpose(1, 2) if name == "wan" else pixels[:, 0]
        raw = vae.encode(images * 2 - 1).latent_dist.mean
    facts = vae.config
    if name == "wan":
        mean, std = (torch.tensor(facts[key]).view(1, -1, 1, 1, 1) for key in ("latents_mean", "latents_std"))
        expected = (raw - mean) / std
    else:
        expected = (raw - (facts.shift_factor if name == "sd3" else 0)) * facts.scaling_factor
    torch.testing.assert_close(latents, expected)


@pytest.mark.parametrize(("frames", "latent_frames", "seen"), [(1, 1, [0]), (5, 2, [0, 4]), (9, 3, [0, 4, 8])])
def test_one_and_four_k_frames_make_one_and_k_latent_frames(
    frames: int, latent_frames: int, seen: list[int], make_foundation: MakeFoundation
) -> None:
    """Mistake 11: of a clip only the frames used are encoded by the teacher, one for each latent frame."""
    foundation = make_foundation("wan")
    with torch.no_grad():
        latents = foundation.encode_pixels(random_pixels(frames, 16, 16))
    assert latents.shape[2] == latent_frames
    assert foundation.frame_indices(latent_frames) == seen


def test_a_later_latent_frame_does_not_see_earlier_than_its_group(make_foundation: MakeFoundation) -> None:
    """The frame map: pixel frame 4k changes latent frame k and later ones, none before."""
    foundation = make_foundation("wan")
    pixels = random_pixels(9, 16, 16)
    changed = pixels.clone()
    changed[:, 4] = 1 - changed[:, 4]
    with torch.no_grad():
        moved = (foundation.encode_pixels(pixels) - foundation.encode_pixels(changed)).abs().amax((0, 1, 3, 4))
    assert moved[0] == 0
    assert moved[1] > 0


def test_unloaded_components_come_back_when_needed(make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("sd3")
    foundation.load_vae()
    foundation.unload_vae()
    assert foundation.vae is None
    with torch.no_grad():
        assert foundation.encode_pixels(random_pixels(1, 16, 16)).shape == (2, 16, 2, 2)


def test_dit_without_an_autoencoder_works_on_grey_pixels(make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("dit_pixels")
    grey = random_pixels(1, 8, 8).mean(2, keepdim=True).expand(-1, -1, 3, -1, -1)
    latents = foundation.encode_pixels(grey)
    assert latents.shape == (2, 1, 8, 8)
    assert latents.min() < 0
    torch.testing.assert_close(foundation.decode_latents(latents), grey)


def test_dit_refuses_what_is_not_square(make_foundation: MakeFoundation) -> None:
    with pytest.raises(ValueError, match="crop_aspect to square"):
        make_foundation("dit").encode_pixels(random_pixels(1, 16, 32))
