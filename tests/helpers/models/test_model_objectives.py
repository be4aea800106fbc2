"""Noising and targets agree with the schedulers that sample from the models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from simpletuner.helpers.models import noising
from simpletuner.helpers.training.objectives import FlowMatching
from tests.conftest import MakeFoundation
from tests.families import CASES
from tests.families.batches import prepared

KINDS = [(name, kind) for name, case in CASES.items() for kind in (None, *case.family.prediction_types)]


def denoised(scheduler: Any, prediction: Tensor, timestep: Tensor, noisy: Tensor) -> Tensor:
    """The clean latents as a scheduler of discrete diffusion makes them out of a prediction."""
    if isinstance(scheduler, DPMSolverMultistepScheduler):  # it doesn't tell them, but a single step leads to them
        scheduler.set_timesteps(timesteps=[int(timestep)])
        return scheduler.step(prediction, scheduler.timesteps[0], noisy).prev_sample
    scheduler.set_timesteps(scheduler.config.num_train_timesteps)
    return scheduler.step(prediction, timestep, noisy).pred_original_sample


@pytest.mark.parametrize(
    ("name", "prediction_type"),
    KINDS,
)
def test_an_oracle_recovers_the_clean_latents(
    name: str, prediction_type: str | None, make_foundation: MakeFoundation
) -> None:
    """With the training target as prediction, one step of diffusers' scheduler undoes the noise; the loss is 0."""
    foundation = make_foundation(name, prediction_type=prediction_type)
    batch = prepared(foundation, name, size=4)
    for row, timestep in enumerate(batch["timesteps"]):
        noisy, target = batch["noisy_latents"][row], batch["target"][row]
        if foundation.prediction_type == "flow_matching":
            scheduler = FlowMatchEulerDiscreteScheduler()
            scheduler.set_timesteps(sigmas=[batch["sigmas"][row].item()])
            torch.testing.assert_close(scheduler.timesteps[0], timestep)
            clean = scheduler.step(target, scheduler.timesteps[0], noisy).prev_sample
        else:
            scheduler = noising.sampling_scheduler(foundation.prediction_type, foundation.scheduler_facts)
            clean = denoised(scheduler, target, timestep, noisy)
        torch.testing.assert_close(clean, batch["latents"][row], atol=2e-3, rtol=1e-3)
    assert foundation.loss({"model_prediction": batch["target"]}, batch) == 0


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if "flow_matching" in c.family.prediction_types])
def test_an_oracle_walks_from_noise_to_the_latents_with_the_familys_scheduler(
    name: str, make_foundation: MakeFoundation
) -> None:
    foundation = make_foundation(name, prediction_type="flow_matching")
    batch = prepared(foundation, name)
    scheduler = noising.sampling_scheduler(foundation.prediction_type, foundation.scheduler_facts)
    shape = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(7, **shape)
    start = scheduler.sigmas[0]
    assert start > 0.999  # DPM-Solver starts a little after pure noise
    latents = (1 - start) * batch["latents"] + start * batch["noise"]
    for timestep in scheduler.timesteps:
        latents = scheduler.step(batch["target"], timestep, latents).prev_sample
    torch.testing.assert_close(latents, batch["latents"], atol=1e-4, rtol=1e-4)


def test_the_shift_is_the_schedulers_unless_it_is_set(make_foundation: MakeFoundation) -> None:
    """Mistake 8: an option that is set counts; None takes the model's own."""
    own, given = make_foundation("sd3").objective, make_foundation("sd3", flow_schedule_shift=1.0).objective
    assert isinstance(own, FlowMatching)
    assert isinstance(given, FlowMatching)
    assert (own.shift, given.shift) == (3.0, 1.0)


def test_noise_depends_on_seed_step_and_row_alone(make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("sd3")
    both = prepared(foundation, "sd3", step=3)
    single = {**both, "latents": both["latents"][1:], "text": {k: t[1:] for k, t in both["text"].items()}}
    again = foundation.prepare_batch(single, step=3, rows=[1])
    torch.testing.assert_close(again["noise"], both["noise"][1:])
    other = foundation.prepare_batch(single, step=3, rows=[1], seed=7)
    assert not torch.equal(other["noise"], again["noise"])


def test_a_prediction_type_that_the_family_does_not_know_is_refused(make_foundation: MakeFoundation) -> None:
    with pytest.raises(ValueError, match="prediction_type is 'epsilon', but sd3 knows flow_matching only"):
        _ = make_foundation("sd3", prediction_type="epsilon").prediction_type


def test_the_published_models_variance_is_not_part_of_the_prediction(make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("dit")
    foundation.load_model()
    batch = prepared(foundation, "dit")
    assert foundation.forward(batch).shape == batch["latents"].shape
