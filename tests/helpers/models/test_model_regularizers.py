"""Which regularizer a foundation builds, what it reads, and what trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny

from simpletuner.helpers.models.common import ModelFoundation
from simpletuner.helpers.training.alignment.geometry import TokenGrid
from simpletuner.helpers.training.crepa import CrepaMode
from tests.conftest import MakeFoundation
from tests.families import CASES
from tests.families.batches import prepared

BACKBONE = {
    "crepa_enabled": True,
    "crepa_block_index": 0,
    "crepa_feature_source": "backbone",
    "crepa_teacher_block_index": 2,
}
LAYERSYNC = {"layersync_enabled": True, "layersync_student_block": 0, "layersync_teacher_block": 1}


def step(foundation: ModelFoundation, name: str, **batch: Any) -> tuple[torch.Tensor, dict, dict]:
    """Forward, base loss, auxiliary losses and backward of one batch."""
    made = prepared(foundation, name, **batch)
    output = foundation.model_predict(made)
    loss, logs = foundation.auxiliary_loss(output, made, foundation.loss(output, made))
    loss.backward()
    return loss, logs, output


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.prefix == "crepa"])
def test_repa_and_crepa_train_adapters_and_projector(
    name: str, checkpointing: bool, make_foundation: MakeFoundation, tiny_teacher: Path
) -> None:
    """Mistakes 2 and 3: the projector learns, and every family builds its regularizer. Checkpointing: Mistake 19."""
    foundation = make_foundation(
        name,
        model_type="lora",
        gradient_checkpointing=checkpointing,
        crepa_enabled=True,
        crepa_encoder=str(tiny_teacher),
        crepa_encoder_image_size="auto",
    )
    foundation.load_model()
    frames = CASES[name].latents[-3] if CASES[name].is_video else 1
    pixels = torch.rand(2, frames, 3, *CASES[name].pixels[1:])
    _, logs, output = step(foundation, name, pixels=pixels)
    regularizer = foundation.crepa_regularizer
    assert regularizer is not None
    assert foundation.alignment is regularizer
    assert foundation.needs_pixels
    assert regularizer.mode is CrepaMode(CASES[name].family.media)
    assert output["token_grid"].frames == frames
    assert output["crepa_hidden_states"].shape[1] == output["token_grid"].tokens
    assert output["hidden_states_buffer"] == {}
    assert -1 <= logs["crepa_similarity"] <= 1
    assert regularizer.projector is not None
    assert all(p.grad is not None and p.grad.isfinite().all() for p in regularizer.projector.parameters())
    gradients = [p.grad for p in foundation.trainable_parameters()]
    assert any(gradient is not None and gradient.any() for gradient in gradients)


def test_urepa_taps_the_mid_block(make_foundation: MakeFoundation, tiny_teacher: Path) -> None:
    foundation = make_foundation("sd1x", urepa_enabled=True, urepa_model=str(tiny_teacher), urepa_encoder_image_size=56)
    foundation.load_model()
    _, logs, output = step(foundation, "sd1x", pixels=torch.rand(2, 1, 3, 64, 128))
    assert output["urepa_hidden_states"].shape == (2, 16, 1, 2)
    assert output["token_grid"] == TokenGrid(1, 1, 2, offset=-0.4375)
    assert logs["urepa_manifold_loss"] > 0


def test_urepa_aligns_several_layers(make_foundation: MakeFoundation, tiny_teacher: Path) -> None:
    layers = ["mid", "enc_last", "dec_first"]
    foundation = make_foundation("sd1x", urepa_enabled=True, urepa_model=str(tiny_teacher), urepa_align_layers=layers)
    foundation.load_model()
    _, logs, output = step(foundation, "sd1x", pixels=torch.rand(2, 1, 3, 64, 128))
    assert list(output["urepa_hidden_states"]) == layers
    assert "urepa_loss" in logs


def test_one_capture_serves_crepa_its_backbone_teacher_and_layersync(make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("sd3", **BACKBONE, **LAYERSYNC)
    foundation.load_model()
    batch = prepared(foundation, "sd3")
    output = foundation.model_predict(batch)
    assert list(output["hidden_states_buffer"]) == ["layer_0", "layer_2", "layer_1"]
    tokens, grid = foundation.teacher_features(output, batch) or pytest.fail("the backbone is the teacher")
    assert tokens.shape == (2, 1, 24, 16)
    assert not tokens.requires_grad
    assert not foundation.needs_pixels
    assert grid == output["token_grid"] == TokenGrid(1, 4, 6)
    loss, logs = foundation.auxiliary_loss(output, batch, torch.zeros(()))
    assert {"crepa_loss", "layersync_loss"} <= set(logs)
    torch.testing.assert_close(loss.detach(), logs["crepa_loss"] + logs["layersync_loss"])


def test_without_pixels_only_the_frames_seen_are_encoded(make_foundation: MakeFoundation, tiny_teacher: Path) -> None:
    """Mistake 11: latents are decoded, and one frame of each latent frame goes to the teacher."""
    foundation = make_foundation("wan", crepa_enabled=True, crepa_encoder=str(tiny_teacher))
    foundation.load_model()
    batch = prepared(foundation, "wan")
    output = foundation.model_predict(batch)
    with torch.no_grad():
        decoded = foundation.decode_latents(batch["latents"])[:, [0, 4, 8]]
        expected, _ = foundation.auxiliary_loss(output, {**batch, "pixels": decoded}, torch.zeros(()))
        output = foundation.model_predict(batch)
        loss, _ = foundation.auxiliary_loss(output, batch, torch.zeros(()))
    torch.testing.assert_close(loss, expected)


def test_a_tiny_autoencoder_decodes_for_the_teacher(
    make_foundation: MakeFoundation, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`crepa_use_tae`: neither real pixels nor the full autoencoder are needed."""
    channels = (4, 4, 4, 4)
    tiny = AutoencoderTiny(latent_channels=16, encoder_block_out_channels=channels, decoder_block_out_channels=channels)
    tiny.save_pretrained(tmp_path)
    foundation = make_foundation("sd3", crepa_enabled=True, crepa_use_tae=True, crepa_encoder=str(tiny_teacher))
    monkeypatch.setattr(type(foundation), "TINY_AUTOENCODER", str(tmp_path))
    foundation.load_model()
    assert not foundation.needs_pixels
    _, logs, _ = step(foundation, "sd3")
    assert logs["crepa_similarity"].isfinite()
    assert foundation.vae is None


def test_a_family_without_a_tiny_autoencoder_says_so(make_foundation: MakeFoundation, tiny_teacher: Path) -> None:
    foundation = make_foundation("wan", crepa_enabled=True, crepa_use_tae=True, crepa_encoder=str(tiny_teacher))
    with pytest.raises(ValueError, match="crepa_use_tae is true, but there is no tiny autoencoder for wan"):
        foundation.load_model()


def test_only_the_layers_of_what_is_on_are_captured(make_foundation: MakeFoundation, tiny_teacher: Path) -> None:
    """Mistake 16: LayerSync goes on when the alignment has ended, and its blocks alone are held."""
    options = {
        "crepa_enabled": True,
        "crepa_encoder": str(tiny_teacher),
        "crepa_cutoff_step": 2,
        "crepa_block_index": 2,
    }
    foundation = make_foundation("sd3", **options, **LAYERSYNC)
    foundation.load_model()
    for number, layers in ((1, {"layer_0", "layer_1", "layer_2"}), (2, {"layer_0", "layer_1"})):
        output = foundation.model_predict(prepared(foundation, "sd3", step=number))
        assert set(output["hidden_states_buffer"]) == layers


@pytest.mark.parametrize("options", [{}, {"crepa_enabled": True, "crepa_cutoff_step": 2}])
def test_nothing_is_captured_when_nobody_wants_it(
    options: dict[str, Any], make_foundation: MakeFoundation, tiny_teacher: Path
) -> None:
    """Mistakes 11 and 16: after the cutoff there is no capture and no teacher."""
    foundation = make_foundation("sd3", crepa_encoder=str(tiny_teacher), **options)
    foundation.load_model()
    for number in (2, 3):  # what step 2 finds out holds from step 3 on
        _, logs, output = step(foundation, "sd3", step=number, pixels=torch.rand(2, 1, 3, 64, 96))
    assert set(output) == {"model_prediction", "hidden_states_buffer"}
    assert logs == {}
    assert not foundation.needs_pixels


@pytest.mark.parametrize(
    ("name", "wrong", "right"), [("sd1x", "crepa", "urepa"), ("sd3", "urepa", "crepa"), ("wan", "urepa", "crepa")]
)
def test_the_wrong_prefix_is_refused(name: str, wrong: str, right: str, make_foundation: MakeFoundation) -> None:
    """Mistake 3: not a silent no-op."""
    with pytest.raises(ValueError, match=rf"{wrong}_enabled is true, but {name} is a .*use {right}_enabled"):
        make_foundation(name, **{f"{wrong}_enabled": True}).load_model()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sd3", {"crepa_enabled": True, "crepa_block_index": 3}, "crepa_block_index is 3, but this sd3 has 3 blocks"),
        ("sd3", BACKBONE | {"crepa_teacher_block_index": 9}, "crepa_teacher_block_index is 9"),
        ("sd3", BACKBONE | {"crepa_teacher_block_index": None}, "crepa_teacher_block_index is not set"),
        ("sd3", LAYERSYNC | {"layersync_teacher_block": 7}, "layersync_teacher_block is 7"),
        ("sd1x", LAYERSYNC, "layersync_enabled is true, but sd1x is a unet"),
    ],
)
def test_blocks_that_do_not_exist_are_refused_by_name(
    name: str, options: dict[str, Any], message: str, make_foundation: MakeFoundation
) -> None:
    with pytest.raises(ValueError, match=message):
        make_foundation(name, **options).load_model()


def test_the_projector_is_no_part_of_the_model(make_foundation: MakeFoundation, tiny_teacher: Path) -> None:
    """Mistakes 14 and 15: it has its own parameter group and its own state."""
    foundation = make_foundation("sd3", crepa_enabled=True, crepa_encoder=str(tiny_teacher))
    model = foundation.load_model()
    assert foundation.crepa_regularizer is not None
    assert foundation.crepa_regularizer.projector is not None
    projector = {id(parameter) for parameter in foundation.crepa_regularizer.projector.parameters()}
    assert not projector & {id(parameter) for parameter in foundation.trainable_parameters()}
    assert not [name for name in model.state_dict() if "projector" in name and "embed" not in name]


@pytest.mark.parametrize("name", CASES)
def test_adapters_are_fp32_on_a_bf16_model(name: str, make_foundation: MakeFoundation) -> None:
    foundation = make_foundation(name, model_type="lora", mixed_precision="bf16")
    model = foundation.load_model()
    trained = foundation.trainable_parameters()
    assert trained
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert torch.bfloat16 in {p.dtype for p in model.parameters() if not p.requires_grad}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert foundation.forward(prepared(foundation, name)).isfinite().all()


def test_a_full_model_is_fp32_whatever_the_precision(make_foundation: MakeFoundation) -> None:
    foundation = make_foundation("sd3", mixed_precision="bf16")
    foundation.load_model()
    assert {parameter.dtype for parameter in foundation.trainable_parameters()} == {torch.float32}


def test_from_scratch_needs_the_configuration_only(make_foundation: MakeFoundation) -> None:
    loaded, random = make_foundation("dit"), make_foundation("dit", train_from_scratch=True)
    weights = loaded.load_model().state_dict()
    fresh = random.load_model().state_dict()
    assert weights.keys() == fresh.keys()
    assert any(not torch.equal(weights[name], fresh[name]) for name in weights)


def test_nothing_is_encoded_or_decoded_for_an_alignment_that_is_off_while_layersync_goes_on(
    make_foundation: MakeFoundation, tiny_teacher: Path
) -> None:
    """Mistake 11: after the cutoff no teacher is asked and no VAE is loaded, although states are still captured."""
    options = {"layersync_enabled": True, "layersync_student_block": 0, "layersync_teacher_block": 1}
    foundation = make_foundation(
        "sd3", crepa_enabled=True, crepa_encoder=str(tiny_teacher), crepa_cutoff_step=1, **options
    )
    foundation.load_model(max_train_steps=4)
    for step in range(3):
        batch = prepared(foundation, "sd3", step=step, pixels=torch.rand(2, 1, 3, 32, 48) if step == 0 else None)
        output = foundation.model_predict(batch)
        _, logs = foundation.auxiliary_loss(output, batch, foundation.loss(output, batch))
        assert "layersync_loss" in logs
    assert "crepa_loss" not in logs
    assert foundation.vae is None


def test_the_backbones_teacher_must_not_be_the_tap(make_foundation: MakeFoundation) -> None:
    """Mistake 17's sibling: a block aligned to itself."""
    foundation = make_foundation(
        "sd3",
        crepa_enabled=True,
        crepa_feature_source="backbone",
        crepa_block_index=1,
        crepa_teacher_block_index=1,
    )
    with pytest.raises(ValueError, match="crepa_teacher_block_index is 1"):
        foundation.load_model(max_train_steps=4)


def test_a_baseline_without_weight_has_the_aligned_runs_projector(make_foundation: MakeFoundation) -> None:
    """conv_gn fits 128 whitened channels, not the encoder's 432: a lambda of 0 must not bring those back."""
    foundation = make_foundation(
        "sd1x",
        urepa_enabled=True,
        urepa_lambda=0.0,
        urepa_model="efficientnet_lite0",
        urepa_feature_cache_dim=128,
        urepa_projector="conv_gn",
    )
    foundation.load_model()
    assert foundation.urepa_regularizer is not None and foundation.urepa_regularizer.teacher_width == 128
