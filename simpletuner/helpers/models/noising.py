"""From a model's scheduler to what trains it and what samples from it."""

from __future__ import annotations

import logging
from typing import Any

import diffusers
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from simpletuner.helpers.training.objectives import DiscreteDiffusion, FlowMatching, Objective, PredictionType

logger = logging.getLogger(__name__)

Facts = dict[str, Any]


def scheduler_prediction_type(facts: Facts) -> PredictionType:
    """What a model was made to predict, by the JSON configuration of its scheduler."""
    stated = facts.get("prediction_type", "epsilon")
    is_flow = facts["_class_name"].startswith("FlowMatch") or stated == "flow_prediction"
    return "flow_matching" if is_flow else stated


def make_objective(
    prediction_type: PredictionType, facts: Facts, shift: float | None, snr_gamma: float | None
) -> Objective:
    """The objective for `prediction_type` with the schedule of the model's scheduler; `shift` None takes its shift."""
    unused, value = ("snr_gamma", snr_gamma) if prediction_type == "flow_matching" else ("flow_schedule_shift", shift)
    if value is not None:
        raise ValueError(f"{unused} is {value:g}, which has no effect on a model of {prediction_type}: remove it.")
    if prediction_type != "flow_matching":
        return DiscreteDiffusion(DDPMScheduler.from_config(facts, prediction_type=prediction_type), snr_gamma)
    if shift is None and facts.get("use_dynamic_shifting"):
        logger.warning(
            "flow_schedule_shift: is not set, and this model's sampler shifts its times by the size of the image. "
            "Training takes the scheduler's fixed shift, %g; set flow_schedule_shift (3 suits 1024 pixels) to train "
            "noisier times.",
            facts.get("shift", 1.0),
        )
    if shift is None:
        shift = next((facts[name] for name in ("shift", "flow_shift") if name in facts), 1.0)
    return FlowMatching(shift, num_train_timesteps=facts["num_train_timesteps"])


def sampling_scheduler(prediction_type: PredictionType, facts: Facts) -> Any:
    """The model's own scheduler; where the model was trained to predict something else, the plain one for that."""
    if scheduler_prediction_type(facts) == prediction_type:
        return getattr(diffusers, facts["_class_name"]).from_config(facts)
    if prediction_type == "flow_matching":
        return FlowMatchEulerDiscreteScheduler()
    # Where a flow scheduler came with the model, DDIM's own default would clip latents as if they were pixels.
    clip = facts.get("clip_sample", False)
    return DDIMScheduler.from_config(facts, prediction_type=prediction_type, clip_sample=clip)
