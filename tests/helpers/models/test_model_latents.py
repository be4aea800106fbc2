"""Pixels to latents and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.conftest import MakeFoundation
from tests.families import CASES

WITH_AUTOENCODER = [name for name in CASES if name != "dit_pixels"]


def random_pixels(frames: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(2, frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CASES)
def test_round_trip_keeps_shape_and_range(name: str, make_foundation: MakeFoundation) -> None:
    foundation, case = make_foundation(name), CASES[name]
    pixels = random_pixels(*case.pixels)
    with torch.no_grad():
        latents = foundation.encode_pixels(pixels)
        decoded = foundation.decode_latents(latents)
    assert latents.shape == (2, *case.latents)
    assert latents.dtype == torch.float32
    assert decoded.shape == pixels.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1
    assert foundation.frame_indices(case.latents[-3] if case.is_video else 1)[-1] == case.pixels[0] - 1


@pytest.mark.parametrize("name", WITH_AUTOENCODER)
def test_encoding_is_deterministic_and_decoding_undoes_its_normalisation(
    name: str, make_foundation: MakeFoundation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the autoencoder is given to decode is what it encoded to: the most likely latents, before normalisation."""
    foundation = make_foundation(name)
    vae = foundation.load_vae()
    encode, decode = vae.encode, vae.decode
    encoded, given = [], []

    def noting_encode(*args: Any, **kwargs: Any) -> Any:
        encoded.append(encode(*args, **kwargs))
        return encoded[-1]

    def noting_decode(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(latents)
        return decode(latents, *args, **kwargs)

    monkeypatch.setattr(vae, "encode", noting_encode)
    monkeypatch.setattr(vae, "decode", noting_decode)
    pixels = random_pixels(*CASES[name].pixels)
    with torch.no_grad():
        latents = foundation.encode_pixels(pixels)
        assert torch.equal(latents, foundation.encode_pixels(pixels))
        foundation.decode_latents(latents)
    likely = encoded[0].latent_dist.mode() if "latent_dist" in encoded[0] else encoded[0].latent
    torch.testing.assert_close(given[0], likely, atol=1e-4, rtol=1e-4)


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


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.is_video])
def test_a_later_latent_frame_does_not_see_earlier_than_its_group(name: str, make_foundation: MakeFoundation) -> None:
    """The frame map: pixel frame r k, which the teacher sees for latent frame k, is the last that it covers."""
    foundation = make_foundation(name)
    pixels = random_pixels(*CASES[name].pixels)
    # HunyuanVideo's autoencoder normalises over all frames at once, so that each moves every other a little.
    for part in list(foundation.load_vae().encoder.modules()):
        for child, module in part.named_children():
            if isinstance(module, nn.GroupNorm):
                setattr(part, child, nn.Identity())

    def moved_by(pixel_frame: int) -> torch.Tensor:
        """How much each latent frame changes, by its largest element, when a pixel frame is inverted."""
        changed = pixels.clone()
        changed[:, pixel_frame] = 1 - changed[:, pixel_frame]
        return (whole - foundation.encode_pixels(changed)).abs().amax((0, 1, 3, 4))

    with torch.no_grad():
        whole = foundation.encode_pixels(pixels)
        seen = foundation.frame_indices(CASES[name].latents[1])
        for latent_frame, pixel_frame in enumerate(seen):
            moved = moved_by(pixel_frame)
            assert moved[latent_frame] > 0
            assert not moved[:latent_frame].any(), f"latent frame {latent_frame}"
        for latent_frame, pixel_frame in enumerate(seen[:-1]):
            beyond = moved_by(pixel_frame + 1)[: latent_frame + 1]
            assert not beyond.any(), f"latent frame {latent_frame} sees beyond its group"


def test_unloaded_components_come_back_when_needed(make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("sd3")
    foundation.load_vae()
    foundation.unload_vae()
    assert foundation.vae is None
    with torch.no_grad():
        assert foundation.encode_pixels(random_pixels(1, 16, 16)).shape == (2, 16, 2, 2)


@pytest.mark.parametrize("name", [name for name in WITH_AUTOENCODER if CASES[name].prefix == "crepa"])
def test_latents_are_decoded_without_the_encoder(name: str, make_foundation: MakeFoundation) -> None:
    """`crepa_drop_vae_encoder`: the memory is given back, and the pixels are the same."""
    latents = torch.randn(1, *CASES[name].latents, generator=torch.Generator().manual_seed(0))
    whole, halved = (
        make_foundation(name, crepa_enabled=True, crepa_drop_vae_encoder=dropped) for dropped in (False, True)
    )
    with torch.no_grad():
        torch.testing.assert_close(halved.decode_latents(latents), whole.decode_latents(latents))
    assert not list(halved.vae.encoder.parameters())


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
