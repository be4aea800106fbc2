"""AuraFlow's learned positions."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import MakeFoundation
from tests.families.batches import prepared


@pytest.mark.parametrize(("height", "width", "fits"), [(16, 16, True), (8, 18, False), (18, 8, False)])
def test_an_image_longer_than_the_positions_is_refused(
    height: int, width: int, fits: bool, make_foundation: MakeFoundation
) -> None:
    """Mistake 5: diffusers would give the tokens of one row the positions of another, silently."""
    foundation = make_foundation("auraflow")
    pixels = torch.zeros(1, 1, 3, 8 * height, 8 * width)
    foundation.load_model()
    batch = prepared(foundation, "auraflow") | {"noisy_latents": torch.zeros(2, 4, height, width)}
    if fits:
        assert foundation.encode_pixels(pixels).shape == (1, 4, height, width)
        assert foundation.forward(batch).shape == (2, 4, height, width)
    else:
        with pytest.raises(ValueError, match=r"positions for 8×8 \(128 pixels a side\)"):
            foundation.forward(batch)
        with pytest.raises(ValueError, match="An image has"):
            foundation.encode_pixels(pixels)
