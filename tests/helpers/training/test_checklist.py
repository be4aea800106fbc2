"""What is looked at before the first step, what is said of it, and what stops a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from simpletuner.configuration import load_config
from simpletuner.helpers.training.checklist import CHECKLIST_FILE, Check, checklist, require_checklist, table
from simpletuner.helpers.training.trainer import Trainer
from tests.runs import metrics, train, write_config, write_data

TinyFolder = Callable[[str], Path]
pytestmark = pytest.mark.usefixtures("own_precision")
SetUp = Callable[..., Trainer]
CREPA = {"crepa_enabled": True, "crepa_encoder_image_size": 56}
UREPA = {"urepa_enabled": True, "urepa_encoder_image_size": 56}


@pytest.fixture
def set_up(tmp_path: Path, tiny_folder: TinyFolder, tiny_teacher: Path) -> SetUp:
    """A run that is set up but not run."""

    def make(family: str = "sd1x", **options: Any) -> Trainer:
        encoder = {"urepa_model" if family == "sd1x" else "crepa_encoder": str(tiny_teacher)}
        own = (encoder if any(name.endswith("_enabled") for name in options) else {}) | options
        data = tmp_path / "multidatabackend.json"
        own["data"] = data if data.exists() else write_data(tmp_path, crop_aspect="square")
        own |= {"resolution": 128, "aspect_bucket_alignment": 64}
        config, problems = load_config(write_config(tmp_path, tiny_folder(family), **own), [])
        assert config is not None, problems
        trainer = Trainer(config, live=False)
        trainer.setup()
        return trainer

    return make


def by_name(checks: list[Check]) -> dict[str, Check]:
    found = {check.name: check for check in checks}
    assert len(found) == len(checks)
    return found


def test_a_unet_with_adapters_in_parts(set_up: SetUp) -> None:
    trainer = set_up(
        trainable_prefixes=["mid_block.", "up_blocks.0."],
        peft_lora_target_modules=["conv1", "to_q"],
        prediction_type="v_prediction",
        gradient_accumulation_steps=3,
        use_ema=True,
        ema_decay=0.5,
        urepa_align_layers=["mid", "dec_first"],
        urepa_warmup_steps=1,
        **UREPA,
    )
    checks = by_name(checklist(trainer))
    assert all(check.ok for check in checks.values()), checks
    values = {name: check.value for name, check in checks.items()}
    trained = sum(parameter.numel() for parameter in trainer.parameters) / 1000
    assert values["model"].startswith("UNet2DConditionModel, ") and f" {trained:.3g} k of them" in values["model"]
    assert values["LoRA"] == "rank 4 on 6 layers: mid_block 4, up_blocks.0 2"
    assert values["taps"] == "mid (mid_block.resnets.1), dec_first (up_blocks.0.resnets.1), 2×2 tokens"
    assert values["projector"].startswith("2 × linear 16 → 16, ")
    assert "4×4 tokens, cached (bf16)" in values["teacher"] and "width 16" in values["teacher"]
    assert values["U-REPA"] == "weight 0.5, warm-up until step 1, manifold of tokens × 3"
    assert values["latents"].startswith("2×4×16×16 float32, finite, mean")
    assert values["text"] == "prompt_embeds 2×77×16 float32, finite"
    assert values["features"] == "tokens 2×1×16×16 bfloat16, finite"
    assert values["objective"].startswith("v_prediction, other than the model was made for")
    assert values["EMA"] == "decay 0.5, every step"
    assert values["batch"] == "6 = 2 × 3 accumulated × 1 process"
    assert values["run"] == "4 steps, 3 passes over 7 samples"


@pytest.mark.parametrize(
    ("family", "options", "expected"),
    [
        ("sd1x", {}, {"LoRA": "rank 4 on 80 layers: down_blocks 24", "EMA": "off", "objective": "epsilon; fp32"}),
        ("sd1x", {**UREPA, "urepa_lambda": 0.0}, {"U-REPA": "off: urepa_lambda is 0"}),
        ("sd1x", {"model_type": "full"}, {"trained part": "the whole model"}),
        ("sd1x", {"model_type": "full", "trainable_prefixes": ["mid_block"]}, {"trained part": ": mid_block "}),
        (
            "sd1x",
            {**UREPA, "urepa_feature_cache_normalized": True, "urepa_feature_cache_dtype": "int8"},
            {"teacher": "cached (int8, unit length)", "features": "scale 2×1×16×1 float32, tokens 2×1×16×16 int8"},
        ),
        (
            "sd3",
            {**CREPA, "crepa_feature_cache": False},
            {"REPA": "weight 0.5", "teacher": "4×4 tokens, encoded in every step"},
        ),
        ("sd3", {**CREPA, "crepa_feature_cache_dim": 8}, {"teacher": "width 8, 4×4 tokens, cached (bf16, whitened)"}),
        (
            "sd3",
            {**CREPA, "crepa_block_index": 0, "crepa_feature_source": "backbone", "crepa_teacher_block_index": 1},
            {"teacher": "block 1 of the model itself", "taps": "0 (transformer_blocks.0), 1 (transformer_blocks.1)"},
        ),
        (
            "sd3",
            {"layersync_enabled": True, "layersync_student_block": 0, "layersync_teacher_block": 1},
            {"LayerSync": "weight 0.2, block 0 toward block 1"},
        ),
    ],
    ids=["plain", "zero", "full", "part", "int8", "in-step", "whitened", "backbone", "layersync"],
)
def test_what_is_said_of_runs(family: str, options: dict[str, Any], expected: dict[str, str], set_up: SetUp) -> None:
    checks = by_name(checklist(set_up(family, **options)))
    assert all(check.ok for check in checks.values()), checks
    for name, words in expected.items():
        assert words in checks[name].value
    if not expected.keys() & {"teacher", "taps"}:
        assert options.get("urepa_lambda") != 0.0 or "teacher" not in checks


def test_the_batch_that_is_looked_at_is_the_first_one_of_the_training(set_up: SetUp, tmp_path: Path) -> None:
    trainer = set_up(**UREPA)
    seen = trainer.coming_batch()
    checklist(trainer)
    assert trainer.sampler.position == 0
    first = next(trainer.batches())
    assert seen["sample_ids"] == first["sample_ids"] and torch.equal(seen["latents"], first["latents"])
    assert seen.keys() == first.keys()
    trainer.sampler.load_state_dict({**trainer.sampler.state_dict(), "epoch": 0, "position": 0})
    trainer.run()
    content = json.loads((tmp_path / "run" / CHECKLIST_FILE).read_text())
    assert content["step"] == 0 and content["ok"] is True
    assert {check["name"] for check in content["checks"]} >= {"model", "LoRA", "taps", "projector", "teacher", "run"}


def freeze_projector(trainer: Trainer) -> None:
    assert trainer.foundation.alignment is not None and trainer.foundation.alignment.projector is not None
    trainer.foundation.alignment.projector.requires_grad_(False)


def widen_projector(trainer: Trainer) -> None:
    assert trainer.foundation.alignment is not None
    trainer.foundation.alignment.projector = nn.Linear(16, 24)


def unhook(trainer: Trainer) -> None:
    trainer.foundation.unwrap_model().mid_block.resnets[-1]._forward_hooks.clear()


def thaw(trainer: Trainer) -> None:
    trainer.foundation.unwrap_model().conv_in.requires_grad_(True)


def freeze_all(trainer: Trainer) -> None:
    trainer.foundation.unwrap_model().requires_grad_(False)


def spoil(trainer: Trainer) -> None:
    """Latents that another program has written."""
    records = trainer.coming_batch
    broken = records()
    broken["latents"][0, 0, 0, 0] = torch.nan
    trainer.coming_batch = lambda: broken  # type: ignore[method-assign]


def narrow(trainer: Trainer) -> None:
    broken = trainer.coming_batch()
    broken["features"] = {"tokens": broken["features"]["tokens"][..., :8]}
    trainer.coming_batch = lambda: broken  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("spoilt", "name", "words"),
    [
        (freeze_projector, "projector", "not all trained. Some of its parameters are frozen"),
        (widen_projector, "projector", r"16 → 24, 408 parameters, not all trained. It must be 16 → 16\."),
        (unhook, "taps", "no hook on mid. A hook was removed"),
        (thaw, "LoRA", r"2 trained parameters are no part of it, such as conv_in\.weight. Only adapters within"),
        (freeze_all, "model", "0 of them trained .* Nothing is trained"),
        (spoil, "latents", "not all finite. Another program has spoilt the cache"),
        (narrow, "teacher", r"features of shape 2×1×16×8. Run `simpletuner cache --rebuild`"),
    ],
)
def test_what_is_not_as_it_must_be_stops_the_run(
    spoilt: Callable[[Trainer], None], name: str, words: str, set_up: SetUp, tmp_path: Path
) -> None:
    trainer = set_up(trainable_prefixes=["mid_block."], **UREPA)
    spoilt(trainer)
    with pytest.raises(ValueError, match=f"The run can't begin: .*{name}: .*{words}"):
        trainer.run()
    content = json.loads((tmp_path / "run" / CHECKLIST_FILE).read_text())
    assert content["ok"] is False
    assert name in [check["name"] for check in content["checks"] if not check["ok"]]
    assert not metrics(tmp_path)


def test_a_failed_check_is_told_without_a_live_run(set_up: SetUp, tmp_path: Path) -> None:
    trainer = set_up()
    require_checklist(trainer)
    assert json.loads((tmp_path / "run" / CHECKLIST_FILE).read_text())["ok"]


def test_the_table_fits_a_terminal() -> None:
    console = Console(width=80, record=True, force_terminal=False)
    with console.capture() as captured:
        console.print(table([Check("model", "word " * 30), Check("taps", "none [here]", ok=False, mend="Mend it.")]))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) == 4
    assert lines[0].startswith("✓ model") and lines[-1].startswith("✗ taps  none [here]")


def test_a_user_sees_the_list_once(tmp_path: Path, tiny_folder: TinyFolder) -> None:
    result = train(write_config(tmp_path, tiny_folder("sd3"), max_train_steps=1))
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("✓ model") == 1 and "SD3Transformer2DModel" in result.stderr
