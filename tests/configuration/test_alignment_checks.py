from __future__ import annotations

from typing import Any

import pytest

from simpletuner.configuration import load_config
from tests.configuration.conftest import LOCAL, TRANSFORMER, UNET, VIDEO, Check

BACKBONE = {"crepa_enabled": True, "crepa_feature_source": "backbone"}
CREPA = {"crepa_enabled": True}
UREPA = {"urepa_enabled": True}
LAYERSYNC = {"layersync_enabled": True, "layersync_student_block": 8, "layersync_teacher_block": 16}


@pytest.mark.parametrize(
    "options",
    [
        {},
        CREPA,
        {**CREPA, "crepa_scheduler": "cosine", "crepa_decay_steps": 900, "crepa_cutoff_step": 950},
        {**CREPA, "crepa_block_index": 23, "crepa_encoder_image_size": "auto"},
        {**CREPA, "crepa_similarity_threshold": 0.5, "crepa_threshold_mode": "recoverable"},
        {**CREPA, "crepa_similarity_threshold": 0.0, "crepa_threshold_mode": "recoverable"},
        {**BACKBONE, "crepa_block_index": 8, "crepa_teacher_block_index": 16},
        {**CREPA, "irepa_enabled": True, "crepa_projector": "conv", "irepa_projector_kernel_size": 5},
        {**BACKBONE, "crepa_block_index": 8, "crepa_teacher_block_index": 16, "crepa_similarity_threshold": 0.95},
        {**CREPA, "crepa_plateau_stop": True, "max_train_steps": 2000},
        LAYERSYNC,
    ],
)
def test_good_configurations_have_no_problem(problems_of: Check, options: dict[str, Any]) -> None:
    assert problems_of(**options) == {}


@pytest.mark.parametrize(
    ("options", "name", "severity", "words"),
    [
        (UREPA, "urepa_enabled", "error", "sd3 is a transformer. Use crepa_enabled"),
        ({**CREPA, "crepa_block_index": 24}, "crepa_block_index", "error", "24 is too high: the model has 24 blocks"),
        (BACKBONE, "crepa_teacher_block_index", "error", "not set"),
        ({**BACKBONE, "crepa_teacher_block_index": 40}, "crepa_teacher_block_index", "error", "too high"),
        (
            {**BACKBONE, "crepa_block_index": 8, "crepa_teacher_block_index": 8},
            "crepa_teacher_block_index",
            "error",
            "is the student's block",
        ),
        (
            {**BACKBONE, "crepa_block_index": 8, "crepa_teacher_block_index": 4},
            "crepa_teacher_block_index",
            "warning",
            "shallower",
        ),
        (
            {**BACKBONE, "crepa_teacher_block_index": 16, "crepa_feature_cache_dim": 128},
            "crepa_feature_cache_dim",
            "warning",
            "crepa_feature_source is 'backbone'",
        ),
        (
            {**CREPA, "crepa_plateau_stop": True, "max_train_steps": 1999},
            "crepa_plateau_stop",
            "warning",
            "averages over too few steps in a run of 1999: chance may end the loss. Use crepa_cutoff_step",
        ),
        (
            {**CREPA, "irepa_enabled": True, "crepa_feature_cache_dim": 128},
            "crepa_feature_cache_dim",
            "warning",
            "whitens the tokens before iREPA",
        ),
        (
            {**CREPA, "irepa_enabled": True, "crepa_feature_cache_normalized": True},
            "crepa_feature_cache_normalized",
            "warning",
            "scales the tokens before iREPA",
        ),
        (
            {**CREPA, "irepa_enabled": True, "crepa_projector": "linear"},
            "crepa_projector",
            "warning",
            "is linear, but iREPA uses a convolution",
        ),
        ({**CREPA, "crepa_encoder": "dinov2_vitx14"}, "crepa_encoder", "error", "no known encoder"),
        ({**CREPA, "crepa_encoder": "./gone"}, "crepa_encoder", "error", "no such file"),
        ({**CREPA, "crepa_encoder_image_size": 512}, "crepa_encoder_image_size", "error", 'Use 504, 518 or "auto".'),
        (
            {**CREPA, "crepa_encoder": "timm/vit_base_patch16_dinov3.lvd1689m"},
            "crepa_encoder_image_size",
            "error",
            "multiple of 16",
        ),
        ({**CREPA, "crepa_lambda": 0}, "crepa_lambda", "warning", "has no effect"),
        ({**CREPA, "crepa_decay_steps": 100}, "crepa_decay_steps", "error", "crepa_scheduler is constant"),
        ({**CREPA, "crepa_lambda_end": 0.1}, "crepa_lambda_end", "error", "crepa_scheduler is constant"),
        ({**CREPA, "crepa_power": 2.0}, "crepa_power", "warning", "crepa_scheduler is 'constant'"),
        (
            {**CREPA, "crepa_scheduler": "linear", "crepa_lambda_end": 0.9},
            "crepa_lambda_end",
            "warning",
            "the weight would grow",
        ),
        ({**CREPA, "crepa_warmup_steps": 1000}, "crepa_warmup_steps", "error", "not below max_train_steps"),
        (
            {**CREPA, "crepa_scheduler": "linear", "crepa_warmup_steps": 200, "crepa_decay_steps": 900},
            "crepa_decay_steps",
            "warning",
            "step 1100, after max_train_steps (1000). Use at most 800",
        ),
        ({**CREPA, "crepa_cutoff_step": 1001}, "crepa_cutoff_step", "error", "can never take effect"),
        ({**CREPA, "crepa_cutoff_step": 1000}, "crepa_cutoff_step", "error", "can never take effect"),
        (
            {**CREPA, "crepa_scheduler": "linear", "crepa_lambda_end": 0.5},
            "crepa_lambda_end",
            "warning",
            "0.5 equals crepa_lambda: the weight stays as it is",
        ),
        ({**BACKBONE, "crepa_teacher_block_index": 8}, "crepa_teacher_block_index", "error", "is the student's block"),
        ({**BACKBONE, "crepa_teacher_block_index": 7}, "crepa_teacher_block_index", "warning", "shallower"),
        ({**CREPA, "crepa_encoder": "timm/"}, "crepa_encoder", "error", "no known encoder"),
        (
            {**CREPA, "crepa_feature_cache_dim": 2048},
            "crepa_feature_cache_dim",
            "error",
            "more than the width of dinov2_",
        ),
        (
            {**CREPA, "crepa_feature_cache_normalized": True, "crepa_feature_cache_dim": 128},
            "crepa_feature_cache_normalized",
            "error",
            "crepa_feature_cache_dim whitens the tokens, which undoes it. Remove one of them",
        ),
        (
            {**CREPA, "crepa_feature_cache": False, "crepa_feature_cache_normalized": True},
            "crepa_feature_cache_normalized",
            "warning",
            "crepa_feature_cache is false",
        ),
        (
            {**CREPA, "crepa_use_tae": True, "crepa_feature_cache_dim": 128},
            "crepa_feature_cache_dim",
            "warning",
            "features are made in the step",
        ),
        (
            {**CREPA, "crepa_cutoff_step": 50, "crepa_warmup_steps": 100},
            "crepa_cutoff_step",
            "warning",
            "within the warm-up",
        ),
        ({**CREPA, "crepa_similarity_threshold": 0.9}, "crepa_similarity_threshold", "warning", "saturate"),
        (
            {**CREPA, "crepa_threshold_mode": "recoverable"},
            "crepa_threshold_mode",
            "warning",
            "crepa_similarity_threshold is not set",
        ),
        ({**CREPA, "crepa_adjacent_distance": 2}, "crepa_adjacent_distance", "warning", "makes images"),
        ({"crepa_lambda": 0.3}, "crepa_lambda", "warning", "crepa_enabled is false"),
        ({"irepa_enabled": True}, "irepa_enabled", "error", "neither CREPA nor U-REPA"),
        ({**CREPA, "irepa_enabled": True, "crepa_projector": "mlp"}, "crepa_projector", "error", "is mlp"),
        ({**CREPA, "irepa_projector_kernel_size": 4}, "irepa_projector_kernel_size", "error", "even"),
        ({"layersync_enabled": True}, "layersync_student_block", "error", "not set"),
        ({**LAYERSYNC, "layersync_teacher_block": 24}, "layersync_teacher_block", "error", "too high"),
        ({**LAYERSYNC, "layersync_teacher_block": 4}, "layersync_teacher_block", "warning", "shallower"),
        ({**LAYERSYNC, "layersync_lambda": 0}, "layersync_lambda", "warning", "has no effect"),
    ],
)
def test_rules(problems_of: Check, options: dict[str, Any], name: str, severity: str, words: str) -> None:
    problem = problems_of(**options)[name]
    assert problem.severity == severity
    assert words in str(problem)


def test_layersync_teacher_must_differ(problems_of: Check) -> None:
    """Mistake 17: teacher = student gave a constant loss with no gradient, silently."""
    problem = problems_of(**{**LAYERSYNC, "layersync_teacher_block": 8})["layersync_teacher_block"]
    assert problem.severity == "error" and "constant" in problem.message


def test_thresholds_above_one_are_refused() -> None:
    """Mistake 10: a threshold was compared with a score that reaches 1.736."""
    config, problems = load_config(None, ["--crepa_similarity_threshold", "1.5"])
    assert config is None and "at most 1" in problems[0].message


def test_the_real_depth_counts(problems_of: Check) -> None:
    assert "4 blocks" in problems_of(depth=4, **CREPA, crepa_block_index=8)["crepa_block_index"].message


def test_a_model_on_the_hub_may_be_larger_than_the_published_one(problems_of: Check) -> None:
    """Wan with 14 B parameters has 40 blocks, and only its own config.json says so: the loader then refuses."""
    for options in (
        {**CREPA, "crepa_block_index": 35},
        {**BACKBONE, "crepa_teacher_block_index": 35},
        {**LAYERSYNC, "layersync_teacher_block": 35},
        {**BACKBONE, "crepa_teacher_block_index": 8},
        {"resolution": 1000},
        {"aspect_bucket_alignment": 8},
        {"validation_prompt": "x", "validation_resolution": 500},
    ):
        assert {problem.severity for problem in problems_of(TRANSFORMER, **options).values()} == {"warning"}, options
        assert "error" in {problem.severity for problem in problems_of(LOCAL, **options).values()}, options
    deep = problems_of(TRANSFORMER, **CREPA, crepa_block_index=35)["crepa_block_index"]
    assert "the published sd3, which has 24 blocks" in deep.message


def test_the_default_block_of_a_shallow_model_counts(problems_of: Check) -> None:
    """Block 8 of 24 is block 2 of 6, which is then the student."""
    assert problems_of(depth=6, **BACKBONE, crepa_teacher_block_index=3) == {}
    problem = problems_of(depth=6, **BACKBONE, crepa_teacher_block_index=2)["crepa_teacher_block_index"]
    assert problem.severity == "error" and "constant" in problem.message


def test_the_wrong_prefix_is_an_error_for_a_unet(problems_of: Check) -> None:
    """Mistake 3: nothing said that the regularizer was never built."""
    problems = problems_of(UNET, **CREPA, **LAYERSYNC)
    assert "urepa_enabled" in problems["crepa_enabled"].mend
    assert problems["layersync_enabled"].severity == "error"
    assert problems_of(UNET, **UREPA, urepa_align_layers=["mid", "dec_first"]) == {}
    assert "twice" in problems_of(UNET, **UREPA, urepa_align_layers=["mid", "mid"])["urepa_align_layers"].message


def test_frames_matter_for_video(problems_of: Check) -> None:
    assert problems_of(VIDEO, **CREPA, crepa_adjacent_distance=2, crepa_cumulative_neighbors=True) == {}
    problem = problems_of(VIDEO, **CREPA, crepa_adjacent_distance=0, crepa_adjacent_tau=2.0)["crepa_adjacent_tau"]
    assert "crepa_adjacent_distance is 0" in problem.message


def test_without_a_family_the_rest_is_checked(problems_of: Check) -> None:
    assert problems_of(None, **CREPA, **UREPA, crepa_block_index=99) == {}
    assert "crepa_cutoff_step" in problems_of(None, **CREPA, crepa_cutoff_step=2000)


def test_families_share_the_defaults(problems_of: Check) -> None:
    assert problems_of(TRANSFORMER) == {} == problems_of(VIDEO) == problems_of(UNET)
