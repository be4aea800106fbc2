"""The regularizers through their public names, as somebody's own training loop would use them."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simpletuner.helpers.training.alignment.geometry import TokenGrid, resample_tokens, to_tokens
from simpletuner.helpers.training.alignment.losses import manifold_loss, spatial_norm, token_cosine
from simpletuner.helpers.training.crepa import CrepaMode, CrepaRegularizer, UrepaRegularizer
from simpletuner.helpers.training.layersync import LayerSyncRegularizer

VIDEO = SimpleNamespace(crepa_mode=CrepaMode.VIDEO)


def crepa(*, foundation: Any = None, width: int = 6, steps: int = 0, **options: Any) -> CrepaRegularizer:
    config = SimpleNamespace(crepa_enabled=True, **options)
    regularizer = CrepaRegularizer(config, None, width, model_foundation=foundation, max_train_steps=steps)
    regularizer.projector = nn.Identity()
    return regularizer


def urepa(*, width: int = 6, **options: Any) -> UrepaRegularizer:
    regularizer = UrepaRegularizer(SimpleNamespace(urepa_enabled=True, **options), None, width)
    regularizer.projector = nn.Identity()
    return regularizer


def tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loss_of(result: tuple[Tensor | None, dict[str, Tensor] | None]) -> float:
    assert result[0] is not None
    return result[0].item()


def test_repa_is_minus_lambda_times_the_token_cosine() -> None:
    student, teacher = tensor(2, 16, 6, seed=1).requires_grad_(), tensor(2, 16, 6, seed=2)
    loss, logs = crepa(crepa_lambda=0.3).compute_loss(student, frame_features=teacher)
    expected = token_cosine(student[:, None], teacher[:, None]).mean()
    assert loss is not None and logs is not None
    torch.testing.assert_close(loss, -0.3 * expected)
    assert set(logs) == {
        "crepa_loss",
        "crepa_similarity",
        "crepa_alignment_score",
        "crepa_weight",
        "crepa_cutoff",
    }
    assert all(not value.requires_grad and value.ndim == 0 for value in logs.values())
    torch.testing.assert_close(logs["crepa_similarity"], expected.detach())
    assert logs["crepa_weight"].item() == pytest.approx(0.3)
    loss.backward()
    assert student.grad is not None and student.grad.abs().sum() > 0


def test_an_explicit_zero_is_zero_and_none_is_the_default() -> None:
    """Mistake 8: `value or default` turned 0 into 0.5, 3.0 or 0.2."""
    student, teacher = tensor(1, 16, 6, seed=1), tensor(1, 16, 6, seed=2)
    zero = crepa(crepa_lambda=0.0)
    assert not zero.wants_hidden_states()
    assert zero.compute_loss(None) == (None, None)
    default = crepa(crepa_lambda=None)
    assert default.compute_loss(student, frame_features=teacher)[1]["crepa_weight"] == 0.5  # type: ignore[index]

    maps = tensor(1, 6, 4, 4, seed=1)
    token_only, logs = urepa(urepa_manifold_weight=0.0).compute_loss(maps, frame_features=teacher)
    assert logs is not None and logs["urepa_manifold_loss"] == 0
    torch.testing.assert_close(token_only, 0.5 * logs["urepa_alignment_loss"])
    with_manifold, logs = urepa(urepa_manifold_weight=None).compute_loss(maps, frame_features=teacher)
    assert logs is not None and logs["urepa_manifold_loss"] > 0
    torch.testing.assert_close(with_manifold, 0.5 * (logs["urepa_alignment_loss"] + 3.0 * logs["urepa_manifold_loss"]))
    assert not LayerSyncRegularizer(
        SimpleNamespace(
            layersync_enabled=True, layersync_student_block=0, layersync_teacher_block=1, layersync_lambda=0.0
        )
    ).wants_hidden_states()


def test_disabled_by_default() -> None:
    regularizer = CrepaRegularizer(SimpleNamespace(), None, 6)
    assert not regularizer.enabled and not regularizer.wants_hidden_states()
    assert regularizer.compute_loss(None) == (None, None)


def test_a_wrong_value_or_name_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="crepa_lambda"):
        crepa(crepa_lambda="strong")
    with pytest.raises(ValueError, match="crepa_lamda"):
        crepa(crepa_lamda=0.5)


def test_video_aligns_frames_with_their_neighbours() -> None:
    """Mistake 7: 3 frames of 2×4 tokens; the score is CREPA's, the similarity the own frame's."""
    grid = TokenGrid(3, 2, 4)
    student, teacher = tensor(1, 24, 6, seed=1), tensor(1, 3, 8, 6, seed=2)
    loss, logs = crepa(foundation=VIDEO).compute_loss(student, frame_features=teacher, grid=grid)
    frames = student.view(1, 3, 8, 6)
    score = 0.0
    for f in range(3):
        for k in range(3):
            weight = {0: 1.0, 1: 0.36787944}.get(abs(f - k), 0.0)
            score += weight * token_cosine(frames[:, f : f + 1], teacher[:, k : k + 1]).item() / 3
    assert loss is not None and logs is not None
    assert loss.item() == pytest.approx(-0.5 * score, abs=1e-5)
    assert logs["crepa_alignment_score"].item() == pytest.approx(score, abs=1e-5)
    assert logs["crepa_similarity"].item() == pytest.approx(token_cosine(frames, teacher).mean().item(), abs=1e-5)


def test_the_threshold_is_compared_with_the_normalised_similarity() -> None:
    """Mistake 10: the sum over neighbours of identical clips is 1.49; the similarity is 1 at most."""
    same = tensor(1, 1, 4, 6, seed=1).expand(1, 3, 4, 6)
    regularizer = crepa(foundation=VIDEO, crepa_similarity_threshold=1.0, crepa_similarity_ema_decay=0.0)
    nearly = same + 0.3 * tensor(1, 3, 4, 6, seed=2)
    for step in range(4):
        _, logs = regularizer.compute_loss(nearly, frame_features=same, step=step)
        assert logs is not None
        assert logs["crepa_alignment_score"] > 1 > logs["crepa_similarity"]
    assert not regularizer.scheduler.cut_off


def test_pooling_both_sides_without_spatial_align() -> None:
    student, teacher = tensor(2, 16, 6, seed=1), tensor(2, 16, 6, seed=2)
    loss = loss_of(crepa(crepa_spatial_align=False).compute_loss(student, frame_features=teacher))
    pooled = torch.nn.functional.cosine_similarity(student.mean(1), teacher.mean(1), dim=-1).mean()
    assert loss == pytest.approx(-0.5 * pooled.item(), abs=1e-6)


@pytest.mark.parametrize(("where", "grid"), [("smaller", (2, 3)), ("student", (2, 3)), ("teacher", (4, 6))])
def test_grids_meet_where_the_option_says(where: str, grid: tuple[int, int]) -> None:
    """Mistake 5: a 2×3 student and a 4×6 teacher are resampled in two dimensions."""
    student, teacher = tensor(1, 6, 6, seed=1), tensor(1, 24, 6, seed=2)
    small, large, target = TokenGrid(1, 2, 3), TokenGrid(1, 4, 6), TokenGrid(1, *grid)
    got = loss_of(
        crepa(crepa_token_resample=where).compute_loss(student, frame_features=teacher, grid=small, feature_grid=large)
    )
    expected = token_cosine(
        resample_tokens(student[:, None], small, target), resample_tokens(teacher[:, None], large, target)
    ).mean()
    assert got == pytest.approx(-0.5 * expected.item(), abs=1e-6)


def test_without_a_grid_only_a_square_is_accepted() -> None:
    """Mistake 5: nothing guesses 24×24 for 18×32 or rows for a clip."""
    with pytest.raises(ValueError, match="18 tokens make no square"):
        crepa().compute_loss(tensor(1, 18, 6), frame_features=tensor(1, 18, 6))
    with pytest.raises(ValueError, match="frames"):
        crepa(foundation=VIDEO).compute_loss(tensor(1, 16, 6), frame_features=tensor(1, 4, 4, 6))
    with pytest.raises(ValueError, match="don't fill the token grid"):
        crepa().compute_loss(tensor(1, 16, 6), frame_features=tensor(1, 16, 6), grid=TokenGrid(1, 3, 5))


def test_urepa_projects_and_upsamples_to_the_teacher() -> None:
    maps, teacher = tensor(2, 6, 2, 3, seed=1), tensor(2, 24, 6, seed=2)
    loss, _ = urepa().compute_loss(maps, frame_features=teacher, feature_grid=TokenGrid(1, 4, 6))
    student = resample_tokens(to_tokens(maps, 1), TokenGrid(1, 2, 3), TokenGrid(1, 4, 6))
    cosine, manifold = token_cosine(student, teacher[:, None]).mean(), manifold_loss(student, teacher[:, None])
    assert loss is not None
    assert loss.item() == pytest.approx(0.5 * (3 * manifold - cosine).item(), abs=1e-6)


def test_urepa_averages_several_layers_each_with_its_projector(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    regularizer = UrepaRegularizer(
        SimpleNamespace(urepa_enabled=True, urepa_align_layers=["mid", "enc_last"], urepa_model="efficientnet_lite0"),
        None,
        6,
    )
    regularizer.attach_to_model(model)
    layers = {"mid": tensor(1, 6, 2, 2, seed=1), "enc_last": tensor(1, 6, 2, 2, seed=2)}
    teacher = tensor(1, 4, 432, seed=3)
    both = loss_of(regularizer.compute_loss(layers, frame_features=teacher))
    projectors = regularizer.projector
    assert isinstance(projectors, nn.ModuleDict)
    single = []
    for name, maps in layers.items():
        one = UrepaRegularizer(SimpleNamespace(urepa_enabled=True), None, 6)
        one.projector = projectors[name]
        single.append(loss_of(one.compute_loss(maps, frame_features=teacher)))
    assert both == pytest.approx(sum(single) / 2, abs=1e-6)


def test_irepa_normalises_the_teacher_and_has_a_convolution() -> None:
    student, teacher = tensor(1, 16, 6, seed=1), tensor(1, 16, 6, seed=2)
    regularizer = crepa(irepa_enabled=True, irepa_spatial_norm_alpha=0.8)
    got = loss_of(regularizer.compute_loss(student, frame_features=teacher))
    expected = token_cosine(student[:, None], spatial_norm(teacher[:, None], 0.8)).mean()
    assert got == pytest.approx(-0.5 * expected.item(), abs=1e-6)
    own = CrepaRegularizer(
        SimpleNamespace(
            crepa_enabled=True, irepa_enabled=True, irepa_projector_kernel_size=5, crepa_feature_source="backbone"
        ),
        None,
        6,
    )
    own.attach_to_model(nn.Linear(1, 1))
    assert own.projector is not None
    assert next(own.projector.parameters()).shape == (6, 6, 5, 5)


def attached(**options: Any) -> tuple[CrepaRegularizer, nn.Module]:
    torch.manual_seed(0)
    model = nn.Linear(6, 6).requires_grad_(False)
    regularizer = CrepaRegularizer(
        SimpleNamespace(crepa_enabled=True, crepa_feature_source="backbone", **options), None, 6
    )
    regularizer.attach_to_model(model)
    return regularizer, model


def test_the_projector_is_trained_even_in_a_frozen_model() -> None:
    """Mistake 2: it stayed at its random init in LoRA training."""
    regularizer, model = attached()
    assert model.crepa_projector is regularizer.projector
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=1.0)
    before = copy.deepcopy(regularizer.projector.state_dict())  # type: ignore[union-attr]
    loss, _ = regularizer.compute_loss(tensor(1, 16, 6, seed=1), frame_features=tensor(1, 16, 6, seed=2))
    assert loss is not None
    loss.backward()
    optimizer.step()
    after = regularizer.projector.state_dict()  # type: ignore[union-attr]
    assert all(not torch.equal(before[name], after[name]) for name in before)
    regularizer.detach_from_model()
    assert "crepa_projector" not in dict(model.named_children())


def test_nothing_is_wanted_after_a_permanent_cutoff_and_it_survives_a_resume() -> None:
    """Mistakes 11 and 12: nothing is paid after the cutoff, and it doesn't come back at resume."""
    options = {"crepa_similarity_threshold": 0.2, "crepa_similarity_ema_decay": 0.0}
    regularizer, _ = attached(**options)
    regularizer.projector = nn.Identity()
    same = tensor(1, 16, 6, seed=1)
    wanted = []
    for step in range(4):
        wanted.append(regularizer.wants_hidden_states())
        regularizer.compute_loss(same if wanted[-1] else None, frame_features=same, step=step)
    # The similarity of step 0 is read during step 2, one step late.
    assert wanted == [True, True, True, False]
    assert regularizer.compute_loss(None, step=4) == (None, None)

    resumed, _ = attached(**options)
    resumed.projector = nn.Identity()
    resumed.load_state_dict(regularizer.state_dict())
    assert not resumed.wants_hidden_states()


def test_a_recoverable_cutoff_goes_on_measuring_without_gradient() -> None:
    regularizer, _ = attached(
        crepa_similarity_threshold=0.9, crepa_similarity_ema_decay=0.0, crepa_threshold_mode="recoverable"
    )
    regularizer.projector = nn.Identity()
    near, far = tensor(1, 16, 6, seed=1), tensor(1, 16, 6, seed=2)
    weights: dict[int, float] = {}
    for step in range(25):
        student = (near if step < 8 else far).requires_grad_()
        loss, logs = regularizer.compute_loss(student, frame_features=near.detach(), step=step)
        assert (logs is not None) == regularizer.wants_hidden_states()
        if logs is not None:
            weights[step] = logs["crepa_weight"].item()
            assert (loss is None) == (weights[step] == 0)
    # Cut off from step 2 on, as step 0 showed; measured ten steps later, which counts when the next one is over.
    assert weights == {0: 0.5, 1: 0.5, 11: 0.0} | dict.fromkeys(range(13, 25), 0.5)


def test_the_state_restores_projector_and_schedule_bit_for_bit() -> None:
    regularizer, model = attached(crepa_scheduler="linear", crepa_decay_steps=10, crepa_similarity_threshold=0.99)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)

    def train(one: CrepaRegularizer, opt: torch.optim.Optimizer, steps: range) -> list[float]:
        losses = []
        for step in steps:
            opt.zero_grad()
            loss, _ = one.compute_loss(tensor(1, 16, 6, seed=step), frame_features=tensor(1, 16, 6, seed=99), step=step)
            assert loss is not None
            loss.backward()
            opt.step()
            losses.append(loss.item())
        return losses

    train(regularizer, optimizer, range(4))
    state = copy.deepcopy(regularizer.state_dict())
    rest = train(regularizer, optimizer, range(4, 8))
    resumed, other = attached(crepa_scheduler="linear", crepa_decay_steps=10, crepa_similarity_threshold=0.99)
    resumed.load_state_dict(state)
    again = torch.optim.SGD([p for p in other.parameters() if p.requires_grad], lr=0.5)
    assert train(resumed, again, range(4, 8)) == rest
    assert resumed.scheduler.state_dict() == regularizer.scheduler.state_dict()


def test_features_of_another_encoder_are_refused() -> None:
    with pytest.raises(ValueError, match=r"width 6 .* features have 8"):
        crepa().compute_loss(tensor(1, 16, 6), frame_features=tensor(1, 16, 8))


def test_missing_inputs_are_named() -> None:
    with pytest.raises(ValueError, match="frame_features, or pixels, or latents"):
        crepa().compute_loss(tensor(1, 16, 6))
    with pytest.raises(ValueError, match="pass the vae"):
        crepa().compute_loss(tensor(1, 16, 6), latents=tensor(1, 4, 8, 8))
    bare = CrepaRegularizer(SimpleNamespace(crepa_enabled=True), None, 6)
    with pytest.raises(RuntimeError, match="attach_to_model"):
        bare.compute_loss(tensor(1, 16, 6), frame_features=tensor(1, 16, 6))


def test_pixels_are_encoded_and_latents_decoded_first() -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, scaling_factor=0.5)
    regularizer = CrepaRegularizer(
        SimpleNamespace(crepa_enabled=True, crepa_encoder="efficientnet_lite0", crepa_encoder_image_size=64), None, 6
    )
    pixels = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    regularizer.teacher.standardise([pixels])
    regularizer.attach_to_model(nn.Linear(1, 1))
    student = tensor(2, 16, 6)
    with torch.no_grad():
        latents = vae.encode(pixels[:, 0] * 2 - 1).latent_dist.mode() * 0.5
        decoded = (vae.decode(latents / 0.5).sample / 2 + 0.5).clamp(0, 1)[:, None]
    from_latents = loss_of(regularizer.compute_loss(student, latents, vae))
    assert from_latents == pytest.approx(loss_of(regularizer.compute_loss(student, pixels=decoded)), abs=1e-6)
    assert from_latents != pytest.approx(loss_of(regularizer.compute_loss(student, pixels=pixels)), abs=1e-6)


def test_layersync_refuses_a_block_that_follows_itself() -> None:
    """Mistake 17: a constant loss with no gradient, silently."""
    with pytest.raises(ValueError, match="both 4"):
        LayerSyncRegularizer(
            SimpleNamespace(layersync_enabled=True, layersync_student_block=4, layersync_teacher_block=4)
        )
    with pytest.raises(ValueError, match="layersync_teacher_block is not set"):
        LayerSyncRegularizer(SimpleNamespace(layersync_enabled=True, layersync_student_block=0))


def test_layersync_pulls_the_student_to_the_detached_teacher() -> None:
    regularizer = LayerSyncRegularizer(
        SimpleNamespace(layersync_enabled=True, layersync_student_block=0, layersync_teacher_block=2)
    )
    assert regularizer.layers == (0, 2)
    student, teacher = tensor(2, 5, 6, seed=1).requires_grad_(), tensor(2, 5, 6, seed=2).requires_grad_()
    loss, logs = regularizer.compute_loss({"layer_0": student, "layer_2": teacher})
    assert loss is not None and logs is not None
    cosine = torch.nn.functional.cosine_similarity(student, teacher, dim=-1).mean()
    torch.testing.assert_close(loss, -0.2 * cosine)
    loss.backward()
    assert student.grad is not None and teacher.grad is None


def test_a_grid_is_taken_from_the_side_that_has_one() -> None:
    """Mistake 5: where only the teacher's grid is known, tokens as many as its own lie as its own do."""
    same, rows = tensor(1, 16, 6, seed=1), TokenGrid(1, 2, 8)
    _, logs = crepa().compute_loss(same, frame_features=same, feature_grid=rows)
    assert logs is not None and logs["crepa_similarity"] == pytest.approx(1.0, abs=1e-5)
    clip = tensor(1, 3, 24, 6, seed=1)
    _, logs = crepa(foundation=VIDEO).compute_loss(clip, frame_features=clip, feature_grid=TokenGrid(3, 4, 6))
    assert logs is not None and logs["crepa_similarity"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("foundation", "grid", "features"),
    [(None, TokenGrid(1, 9, 16), (1, 576, 6)), (VIDEO, TokenGrid(3, 2, 2), (1, 3, 16, 6))],
    ids=["18 by 32 is no 24 by 24", "a clip's frames are not taken for squares"],
)
def test_features_on_an_unknown_grid_are_refused(foundation: Any, grid: TokenGrid, features: tuple[int, ...]) -> None:
    """Mistake 5: 576 features beside a student that isn't square could be 18×32."""
    with pytest.raises(ValueError, match=r"don't say how they lie.*feature_grid="):
        crepa(foundation=foundation).compute_loss(
            tensor(1, grid.tokens, 6), frame_features=tensor(*features), grid=grid
        )


def test_a_projector_that_was_frozen_after_it_was_attached_is_refused() -> None:
    """Mistake 2, in the order in which it happened: attach, then freeze the model for LoRA."""
    regularizer, model = attached()
    model.requires_grad_(False)
    student, teacher = tensor(1, 16, 6, seed=1).requires_grad_(), tensor(1, 16, 6, seed=2)
    with pytest.raises(RuntimeError, match=r"the projector is frozen.*attach_to_model"):
        regularizer.compute_loss(student, frame_features=teacher)
    with torch.no_grad():  # an evaluation may
        assert regularizer.compute_loss(student, frame_features=teacher)[0] is not None


def test_an_evaluation_does_not_count_for_the_cutoff() -> None:
    same, far = tensor(1, 16, 6, seed=1), tensor(1, 16, 6, seed=2)
    regularizer = crepa(crepa_similarity_threshold=0.9, crepa_similarity_ema_decay=0.0)
    for step in range(5):
        regularizer.compute_loss(same, frame_features=far, step=step)
        with torch.no_grad():
            regularizer.compute_loss(same, frame_features=same, step=step)
    assert not regularizer.scheduler.cut_off
    assert regularizer.scheduler.similarity_ema is not None and regularizer.scheduler.similarity_ema < 0.5


def test_without_an_accelerator_the_regularizer_is_where_the_model_is() -> None:
    regularizer = CrepaRegularizer(
        SimpleNamespace(crepa_enabled=True, crepa_feature_source="backbone"), None, 6
    ).attach_to_model(nn.Linear(6, 6, device="meta"))
    assert regularizer.device.type == "meta"
    assert regularizer.projector is not None
    assert {parameter.device.type for parameter in regularizer.projector.parameters()} == {"meta"}


def test_a_captured_buffer_can_be_passed_as_it_is() -> None:
    options = SimpleNamespace(
        urepa_enabled=True, urepa_align_layers=["mid", "enc_last"], urepa_model="efficientnet_lite0"
    )
    regularizer = UrepaRegularizer(options, None, 6).attach_to_model(nn.Linear(2, 2))
    maps, teacher = tensor(1, 6, 2, 2, seed=1), tensor(1, 4, 432, seed=3)
    named = loss_of(regularizer.compute_loss({"mid": maps, "enc_last": maps}, frame_features=teacher))
    captured = loss_of(regularizer.compute_loss({"layer_mid": maps, "layer_enc_last": maps}, frame_features=teacher))
    assert named == captured
    with pytest.raises(ValueError, match="urepa_align_layers is mid, enc_last, but hidden states of mid were passed"):
        regularizer.compute_loss({"layer_mid": maps}, frame_features=teacher)


def test_what_the_teacher_sees_must_fit_the_student(tiny_teacher: Path) -> None:
    options = SimpleNamespace(crepa_enabled=True, crepa_encoder=str(tiny_teacher), crepa_encoder_image_size=56)
    regularizer = CrepaRegularizer(options, None, 6).attach_to_model(nn.Linear(2, 2))
    tokens, wide = tensor(1, 16, 6), torch.rand(1, 3, 28, 112)  # 2×8 tokens, as many as 4×4
    with pytest.raises(ValueError, match="28×112, which is no square"):
        regularizer.compute_loss(tokens, pixels=wide)
    with pytest.raises(ValueError, match="2×8, which is no square"):
        regularizer.compute_loss(tokens, frame_features=tensor(1, 32, 16), feature_grid=TokenGrid(2, 2, 8))
    assert loss_of(regularizer.compute_loss(tokens, pixels=wide, grid=TokenGrid(1, 2, 8))) < 1
    other = CrepaRegularizer(options, None, 6).attach_to_model(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"in \[0, 1\], not in \[-1, 1\]"):
        other.compute_loss(tokens, pixels=torch.rand(1, 3, 56, 56) * 2 - 1)
    with pytest.raises(ValueError, match="9 pixel frames for 3 frames"):
        other.compute_loss(tensor(1, 48, 6), pixels=torch.rand(1, 9, 3, 56, 56), grid=TokenGrid(3, 4, 4))


def test_a_teacher_is_not_loaded_for_its_width(tiny_teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_teacher / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    options = SimpleNamespace(crepa_enabled=True, crepa_encoder=str(tmp_path))
    regularizer = CrepaRegularizer(options, None, 6).attach_to_model(nn.Linear(2, 2))
    assert loss_of(regularizer.compute_loss(tensor(1, 16, 6), frame_features=tensor(1, 16, 16))) < 1
    with pytest.raises(ValueError, match=r"^crepa_encoder: .*can't be loaded"):
        regularizer.compute_loss(tensor(1, 16, 6), pixels=torch.rand(1, 3, 56, 56))


def test_the_teacher_is_let_go_when_the_loss_is_off_for_good(tiny_teacher: Path) -> None:
    """Mistake 11: nothing is held after the cutoff."""
    options = SimpleNamespace(crepa_enabled=True, crepa_encoder=str(tiny_teacher), crepa_cutoff_step=1)
    regularizer = CrepaRegularizer(options, None, 6).attach_to_model(nn.Linear(2, 2))
    held = weakref.ref(regularizer.teacher.encoder)
    regularizer.compute_loss(tensor(1, 16, 6), pixels=torch.rand(1, 3, 56, 56))
    regularizer.begin_step(1)
    gc.collect()
    assert held() is None
