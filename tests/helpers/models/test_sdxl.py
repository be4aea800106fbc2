"""What Stable Diffusion XL and Kolors are told besides the prompt, and the relatives that are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import EulerDiscreteScheduler

from simpletuner.configuration import Config
from simpletuner.helpers.models import noising
from simpletuner.helpers.models.common import ModelFoundation
from simpletuner.helpers.models.registry import foundation_class
from tests.conftest import MakeFoundation
from tests.families.batches import prepared

NAMES = ("sdxl", "kolors")
EULER = {"_class_name": "EulerDiscreteScheduler", "interpolation_type": "linear"}


def changed(folder: Path, copy: Path, file: str, **facts: Any) -> ModelFoundation:
    """A foundation of a copy of `folder` in which a JSON file has other facts."""
    shutil.copytree(folder, copy)
    path = copy / file
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    config = Config(
        model_family=folder.name, pretrained_model_name_or_path=str(copy), model_type="full", mixed_precision="no"
    )
    return foundation_class(folder.name)(config, Accelerator(cpu=True))


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_crops_are_told_as_the_pipeline_tells_them(name: str, make_foundation: MakeFoundation) -> None:
    foundation = make_foundation(name)
    model = foundation.load_model().eval()
    told: list[dict[str, torch.Tensor]] = []
    model.register_forward_pre_hook(
        lambda module, arguments, named: told.append(named["added_cond_kwargs"]), with_kwargs=True
    )
    batch = prepared(foundation, name, size=1) | {
        "original_sizes": torch.tensor([[1083, 2047]]),
        "crops": torch.tensor([[8, 16]]),
        "target_sizes": torch.tensor([[64, 96]]),
    }
    with torch.no_grad():
        foundation.forward(batch)
    foundation.sampling_pipeline()(
        **batch["text"],
        original_size=(1083, 2047),
        crops_coords_top_left=(8, 16),
        target_size=(64, 96),
        height=64,
        width=96,
        num_inference_steps=1,
        guidance_scale=1.0,
        output_type="latent",
    )
    ours, theirs = told
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_prompt_is_zeros_where_the_model_says_so(name: str, make_foundation: MakeFoundation) -> None:
    """What caption dropout trains is what SDXL's pipeline guides away from; Kolors encodes it as any prompt."""
    empty, other = make_foundation(name).encode_prompts(["", "dog"])
    assert all(bool(tensor.any()) == (name == "kolors") for tensor in empty.values())
    assert all(tensor.any() for tensor in other.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_published_scheduler_undoes_the_training_noise(
    name: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Euler's latents are ours divided by the signal's share."""
    foundation = changed(tiny_folder(name), tmp_path / name, "scheduler/scheduler_config.json", **EULER)
    batch = prepared(foundation, name, size=4)
    for row, time in enumerate(batch["timesteps"]):
        scheduler = noising.sampling_scheduler("epsilon", foundation.scheduler_facts)
        assert type(scheduler) is EulerDiscreteScheduler
        scheduler.set_timesteps(scheduler.config.num_train_timesteps)
        noisy = batch["noisy_latents"][row] / scheduler.alphas_cumprod[time].sqrt()
        clean = scheduler.step(batch["target"][row], time.float(), noisy).pred_original_sample
        torch.testing.assert_close(clean, batch["latents"][row], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("file", "facts", "reason"),
    [
        ("unet/config.json", {"addition_embed_type": None}, "has no input for the pooled text"),
        ("unet/config.json", {"in_channels": 9}, "inpainting"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "takes the guidance as an input"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "EDM"),
        ("model_index.json", {"_class_name": "StableDiffusionXLImg2ImgPipeline"}, "which takes other inputs"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_relatives_that_need_other_inputs_are_refused(
    name: str, file: str, facts: dict[str, Any], reason: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    foundation = changed(tiny_folder(name), tmp_path / name, file, **facts)
    with pytest.raises(ValueError, match=f"pretrained_model_name_or_path is .*{reason}.*trained"):
        foundation.load_model()
