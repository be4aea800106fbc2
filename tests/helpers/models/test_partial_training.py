"""LoRA on convolutions, training of parts, and a UNet that learns to predict something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from simpletuner.helpers.models.common import ModelFoundation
from simpletuner.helpers.training.weights import WEIGHTS_FILE, load_trained_weights, save_trained_weights
from tests.conftest import MakeFoundation
from tests.families.batches import prepared

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"]
PREFIXES = ["mid_block.", "down_blocks.3.", "up_blocks.0."]
TinyFolder = Callable[[str], Path]


def trained(foundation: ModelFoundation) -> ModelFoundation:
    """After a few steps, so that no adapter is zero."""
    foundation.load_model()
    optimizer = torch.optim.AdamW(foundation.trainable_parameters(), lr=1e-2)
    batch = prepared(foundation, "sd1x")
    for _ in range(3):
        foundation.loss(foundation.model_predict(batch), batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return foundation


def predicted(foundation: ModelFoundation, unet: Any) -> Tensor:
    batch = prepared(foundation, "sd1x")
    text = batch["text"]["prompt_embeds"]
    with torch.no_grad():
        return unet.eval()(batch["noisy_latents"], batch["timesteps"], encoder_hidden_states=text).sample


@pytest.mark.parametrize("targets", [TARGETS, [*TARGETS, "conv_shortcut"], ["conv1"]], ids=["six", "shortcut", "one"])
@pytest.mark.parametrize("prefixes", [PREFIXES, None], ids=["parts", "everywhere"])
def test_a_lora_on_convolutions_trains_and_loads_into_the_pipeline(
    targets: list[str],
    prefixes: list[str] | None,
    make_foundation: MakeFoundation,
    tiny_folder: TinyFolder,
    tmp_path: Path,
) -> None:
    options = {"model_type": "lora", "lora_rank": 2, "lora_alpha": 3.0, "peft_lora_target_modules": targets}
    foundation = trained(make_foundation("sd1x", trainable_prefixes=prefixes, **options))
    names = [name for name, p in foundation.unwrap_model().named_parameters() if p.requires_grad]
    assert names and all(".lora_" in name for name in names)
    if prefixes is not None:
        assert all(name.startswith(tuple(prefixes)) for name in names)
    assert {name.split(".lora_")[0].split(".")[-1] for name in names} == {t.split(".")[-1] for t in targets}
    assert all(p.abs().max() > 0 for p in foundation.trainable_parameters())

    file = foundation.save_lora(tmp_path)
    assert len(load_file(file)) == len(names)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder("sd1x"), requires_safety_checker=False)
    before = predicted(foundation, pipeline.unet)
    pipeline.load_lora_weights(tmp_path)
    after = predicted(foundation, pipeline.unet)
    assert torch.equal(after, predicted(foundation, foundation.unwrap_model()))
    assert (after - before).abs().max() > 1e-3


@pytest.mark.parametrize("model_type", ["lora", "full"])
def test_names_that_fit_nothing_are_refused_before_anything_is_cached(
    model_type: str, make_foundation: MakeFoundation
) -> None:
    foundation = make_foundation("sd1x", model_type=model_type, trainable_prefixes=["middle."])
    with pytest.raises(ValueError, match=r"trainable_prefixes: 'middle\.' is the start of no parameter's name"):
        foundation.verify()


def test_a_part_of_a_model_trains_and_the_rest_stays(
    make_foundation: MakeFoundation, tiny_folder: TinyFolder, tmp_path: Path
) -> None:
    """Only what is trained is in a checkpoint; the export is the whole model."""
    original = UNet2DConditionModel.from_pretrained(tiny_folder("sd1x"), subfolder="unet").state_dict()
    foundation = trained(make_foundation("sd1x", trainable_prefixes=PREFIXES))
    moved = {name for name, value in foundation.unwrap_model().state_dict().items() if (value != original[name]).any()}
    names = {name for name, p in foundation.unwrap_model().named_parameters() if p.requires_grad}
    assert moved == names == {name for name in original if name.startswith(tuple(PREFIXES))}
    assert len(foundation.trainable_parameters()) == len(names)

    save_trained_weights(foundation.unwrap_model(), tmp_path)
    assert load_file(tmp_path / WEIGHTS_FILE).keys() == names
    again = make_foundation("sd1x", trainable_prefixes=PREFIXES)
    load_trained_weights(again.load_model(), tmp_path)
    whole = UNet2DConditionModel.from_pretrained(foundation.save_model(tmp_path))
    expected = predicted(foundation, foundation.unwrap_model())
    assert torch.equal(predicted(foundation, whole), expected)
    assert torch.equal(predicted(foundation, again.unwrap_model()), expected)


@pytest.mark.parametrize("made_for", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_unet_learns_either_prediction(
    kind: str, made_for: str, make_foundation: MakeFoundation, tmp_path: Path
) -> None:
    """Target, recovered x0 and epsilon, and the sampling scheduler agree with diffusers (arXiv 2202.00512)."""
    foundation = make_foundation("sd1x", prediction_type=kind)
    foundation.scheduler_facts = foundation.scheduler_facts | {"prediction_type": made_for}
    batch = prepared(foundation, "sd1x", size=4)
    scheduler = DDPMScheduler.from_config(foundation.scheduler_facts)
    latents, noise, timesteps = batch["latents"], batch["noise"], batch["timesteps"]
    velocity = scheduler.get_velocity(latents, noise, timesteps)
    assert torch.equal(batch["target"], velocity if kind == "v_prediction" else noise)

    alpha = scheduler.alphas_cumprod[timesteps].sqrt().view(-1, 1, 1, 1)
    sigma = (1 - scheduler.alphas_cumprod[timesteps]).sqrt().view(-1, 1, 1, 1)
    noisy = batch["noisy_latents"]
    torch.testing.assert_close(alpha * noisy - sigma * velocity, latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sigma * noisy + alpha * velocity, noise, atol=1e-5, rtol=1e-5)

    foundation.load_model()
    sampler = foundation.sampling_pipeline().scheduler
    assert sampler.config.prediction_type == kind
    sampler.set_timesteps(1000)
    for row, timestep in enumerate(timesteps):
        output = sampler.step(batch["target"][row], timestep, noisy[row])
        torch.testing.assert_close(output.pred_original_sample, latents[row], atol=2e-3, rtol=1e-3)

    foundation.save_model(tmp_path)
    written = tmp_path / "scheduler" / "scheduler_config.json"
    assert written.is_file() == foundation.predicts_otherwise == (kind != made_for)
    if kind != made_for:
        assert json.loads(written.read_text())["prediction_type"] == kind
        assert DDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler").config.prediction_type == kind


def test_the_scheduler_of_another_prediction_lies_beside_a_lora(
    make_foundation: MakeFoundation, tiny_folder: TinyFolder, tmp_path: Path
) -> None:
    foundation = trained(make_foundation("sd1x", model_type="lora", prediction_type="v_prediction"))
    foundation.save_lora(tmp_path)
    scheduler = DDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder("sd1x"), requires_safety_checker=False)
    pipeline.load_lora_weights(tmp_path)  # the folder beside the file doesn't disturb it
