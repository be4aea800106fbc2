"""Noising and targets agree with the schedulers that sample from the models."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from simpletuner.helpers.models import noising
from simpletuner.helpers.training.objectives import FlowMatching
from tests.conftest import MakeFoundation
from tests.helpers.models.cases import prepared


@pytest.mark.parametrize(
    ("name", "prediction_type"),
    [
        ("dit", "epsilon"),
        ("dit", "v_prediction"),
        ("dit", "flow_matching"),
        ("dit_pixels", None),
        ("sd1x", None),
        ("sd1x", "v_prediction"),
        ("sd3", None),
        ("wan", None),
    ],
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
            scheduler.set_timesteps(scheduler.config.num_train_timesteps)
            clean = scheduler.step(target, timestep, noisy).pred_original_sample
        torch.testing.assert_close(clean, batch["latents"][row], atol=2e-3, rtol=1e-3)
    assert foundation.loss({"model_prediction": batch["target"]}, batch) == 0


@pytest.mark.parametrize("name", ["dit_pixels", "sd3", "wan"])
def test_an_oracle_walks_from_noise_to_the_latents_with_the_familys_scheduler(
    name: str, make_foundation: MakeFoundation
) -> None:
    foundation = make_foundation(name)
    batch = prepared(foundation, name)
    scheduler = noising.sampling_scheduler(foundation.prediction_type, foundation.scheduler_facts)
    scheduler.set_timesteps(7)
    latents = batch["noise"]
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
