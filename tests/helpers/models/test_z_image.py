"""What Z-Image does that no other family does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from tests.conftest import MakeFoundation
from tests.families.batches import make_batch
from tests.helpers.models.test_model_sampling import settings_of


def test_guidance_means_what_it_means_for_other_families(
    make_foundation: MakeFoundation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 is none, and 3 goes three times the way from the negative prompt's prediction to the prompt's."""
    foundation = make_foundation("z_image")
    foundation.load_model().eval()
    prompt, negative = foundation.encode_prompts(["a red cat", ""])
    step, told = FlowMatchEulerDiscreteScheduler.step, []

    def noting(self: Any, predicted: Tensor, timestep: Tensor, noisy: Tensor, **named: Any) -> Any:
        told.append((predicted, timestep, noisy))
        return step(self, predicted, timestep, noisy, **named)

    monkeypatch.setattr(FlowMatchEulerDiscreteScheduler, "step", noting)
    foundation.generate([prompt], negative, settings_of("z_image", guidance=3.0, steps=1))
    ((predicted, timestep, noisy),) = told
    batch = make_batch(foundation, "z_image", 1) | {"noisy_latents": noisy, "timesteps": timestep.expand(1)}
    with torch.no_grad():
        towards, away = (
            foundation.forward(batch | {"text": foundation.collate_text([item])}) for item in (prompt, negative)
        )
    torch.testing.assert_close(predicted, away + 3.0 * (towards - away), atol=1e-5, rtol=1e-4)
