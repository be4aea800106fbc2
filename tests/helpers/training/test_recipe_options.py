"""The options of the SD 1.5 recipe together: adapters in parts of the UNet, several layers, conv_gn, v prediction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from simpletuner.configuration import load_config
from simpletuner.helpers.training.ema import averaged_weights
from simpletuner.helpers.training.trainer import Trainer
from simpletuner.helpers.utils.run_folder import METRICS_FILE, read_metrics
from tests import tiny_models
from tests.helpers.training.test_distributed import last_checkpoint, launch_training
from tests.runs import metrics, train, write_config, write_data

PREFIXES = ["mid_block.", "down_blocks.3.", "up_blocks.0."]
THREE_LAYERS = ["mid", "enc_last", "dec_first"]
TinyFolder = Callable[[str], Path]
pytestmark = pytest.mark.usefixtures("own_precision")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of width 32, which the groups of conv_gn divide."""
    return tiny_models.tiny_teacher(tmp_path_factory.mktemp("wide"), width=32)


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: TinyFolder, teacher: Path) -> Callable[..., Path]:
    """Writes a config.json of the recipe in small: 128 pixels, so that the middle has 2×2 cells."""

    def write(name: str = "run", **options: Any) -> Path:
        data = tmp_path / "multidatabackend.json"
        defaults: dict[str, Any] = {
            "data": data if data.exists() else write_data(tmp_path, crop_aspect="square"),
            "resolution": 128,
            "aspect_bucket_alignment": 64,
            "vae_cache_dtype": "fp16",
            "prediction_type": "v_prediction",
            "peft_lora_target_modules": ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"],
            "trainable_prefixes": PREFIXES,
            "gradient_accumulation_steps": 2,
            "gradient_checkpointing": True,
            "learning_rate": 1e-3,
            "lr_scheduler": "cosine",
            "lr_warmup_steps": 1,
            "use_ema": True,
            "ema_decay": 0.9,
            "urepa_enabled": True,
            "urepa_lambda": 0.8,
            "urepa_align_layers": THREE_LAYERS,
            "urepa_manifold_scope": "sample",
            "urepa_projector": "conv_gn",
            "urepa_model": str(teacher),
            "urepa_encoder_image_size": 56,
            "urepa_feature_cache_normalized": True,
        }
        return write_config(tmp_path, tiny_folder("sd1x"), name=name, **defaults | options)

    return write


def set_up(path: Path) -> Trainer:
    config, problems = load_config(path, [])
    assert config is not None, problems
    trainer = Trainer(config, live=False)
    trainer.setup()
    return trainer


@pytest.mark.parametrize("scope", ["token", "sample"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_everything_together_trains(recipe: Callable[..., Path], tmp_path: Path, scope: str, precision: str) -> None:
    trainer = set_up(recipe(urepa_manifold_scope=scope, mixed_precision=precision))
    assert trainer.foundation.alignment is not None and trainer.foundation.alignment.projector is not None
    projector = trainer.foundation.alignment.projector
    before = [parameter.detach().clone() for parameter in (*trainer.parameters, *projector.parameters())]
    trainer.run()
    rows = read_metrics(tmp_path / "run" / METRICS_FILE)
    assert len(rows) == 4
    assert all(row["projector_grad_norm"] > 0 and row["grad_norm"] > 0 for row in rows)
    assert all(row["urepa_manifold_loss"] > 0 and -1 <= row["urepa_similarity"] <= 1 for row in rows)
    after = (*trainer.parameters, *projector.parameters())
    assert all((one != other).any() for one, other in zip(before, after, strict=True))
    names = load_file(tmp_path / "run" / "pytorch_lora_weights.safetensors")
    assert all(name.removeprefix("unet.").startswith(tuple(PREFIXES)) for name in names)


def test_a_resumed_run_is_the_uninterrupted_one(recipe: Callable[..., Path], tmp_path: Path) -> None:
    set_up(recipe("whole")).run()
    set_up(recipe()).run(on_step=lambda trainer: trainer.request_stop())
    resumed = set_up(recipe(resume_from_checkpoint="latest"))
    assert 0 < resumed.step < resumed.total_steps
    resumed.run()
    assert metrics(tmp_path) == metrics(tmp_path, "whole")
    one, other = (load_file(tmp_path / name / "pytorch_lora_weights.safetensors") for name in ("run", "whole"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_part_of_the_unet_trains_averages_and_leaves_whole(
    recipe: Callable[..., Path], tmp_path: Path, tiny_folder: TinyFolder
) -> None:
    trainer = set_up(recipe(model_type="full", peft_lora_target_modules=None))
    assert trainer.ema is not None and len(trainer.ema.shadow_params) == len(trainer.parameters)
    trainer.run()
    exported = UNet2DConditionModel.from_pretrained(tmp_path / "run" / "unet").state_dict()
    original = UNet2DConditionModel.from_pretrained(tiny_folder("sd1x"), subfolder="unet").state_dict()
    assert exported.keys() == original.keys()
    moved = {name for name in original if not torch.equal(exported[name], original[name])}
    assert moved == {name for name in original if name.startswith(tuple(PREFIXES))}
    with averaged_weights(trainer.ema, trainer.parameters):
        now = trainer.foundation.unwrap_model().state_dict()
        assert all(torch.equal(now[name], exported[name]) for name in now)
    saved = load_file(tmp_path / "run" / "checkpoint-4" / "weights.safetensors")
    assert saved.keys() == moved
    assert (tmp_path / "run" / "scheduler" / "scheduler_config.json").is_file()


def test_other_targets_or_prefixes_are_refused_at_resume(recipe: Callable[..., Path]) -> None:
    set_up(recipe(max_train_steps=1, lr_warmup_steps=0)).run()
    for options, words in (
        ({"peft_lora_target_modules": ["conv1"]}, r"peft_lora_target_modules was \['to_q', .*\] and is \['conv1'\]"),
        ({"trainable_prefixes": ["mid_block."]}, r"trainable_prefixes was \['mid_block\.', .* and is \['mid_"),
        ({"trainable_prefixes": None}, r"trainable_prefixes was \['mid_block\.', .* and is None"),
    ):
        with pytest.raises(ValueError, match=words):
            set_up(recipe(resume_from_checkpoint="latest", **options))


@pytest.mark.parametrize("model_type", ["lora", "full"])
@pytest.mark.parametrize(
    ("prefixes", "layers", "tap"), [(["up_blocks.0."], ["mid"], "mid"), (["mid_block."], THREE_LAYERS, "enc_last")]
)
def test_an_alignment_that_trains_nothing_is_refused(
    recipe: Callable[..., Path], prefixes: list[str], layers: list[str], tap: str, model_type: str
) -> None:
    """Nothing before the tap is trained; checkpointing or not."""
    for checkpointing in (False, True):
        options: dict[str, Any] = {"peft_lora_target_modules": ["conv1"] if model_type == "lora" else None}
        options |= {"gradient_checkpointing": checkpointing, "model_type": model_type}
        trainer = set_up(recipe(trainable_prefixes=prefixes, urepa_align_layers=layers, **options))
        with pytest.raises((RuntimeError, ValueError), match=f"tap '{tap}' carry no gradient.*train nothing"):
            trainer.run()


def test_two_ranks_are_one_process_of_the_same_batch(recipe: Callable[..., Path], tmp_path: Path) -> None:
    """The manifold over samples is gathered over ranks, in every layer and with accumulation."""
    options: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "max_train_steps": 1}
    options |= {"lr_scheduler": "constant", "lr_warmup_steps": 0}
    one = train(recipe("one", train_batch_size=4, **options))
    assert one.returncode == 0, one.stderr
    two = launch_training(recipe("two", train_batch_size=2, **options))
    assert two.returncode == 0, two.stderr
    expected, got = last_checkpoint(tmp_path / "one", 1), last_checkpoint(tmp_path / "two", 1)
    assert expected.keys() == got.keys() and any(name.startswith("projector.enc_last.") for name in got)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=1e-5, rtol=1e-5)
    manifold = [metrics(tmp_path, name)[0]["urepa_manifold_loss"] for name in ("one", "two")]
    assert manifold[0] == pytest.approx(manifold[1], rel=1e-5) and manifold[0] > 0
