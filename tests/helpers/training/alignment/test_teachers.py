"""Teachers with real timm models at random weights, saved to folders, and the real EfficientNet-Lite0."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from simpletuner.helpers.training.alignment.geometry import TokenGrid
from simpletuner.helpers.training.alignment.teachers import Teacher, make_teacher

ARCHITECTURES = {"plain": "vit_small_patch14_dinov2", "registers": "vit_small_patch14_reg4_dinov2"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """timm folders of two-block DINOv2 models (class token; class token and four registers)."""
    root = tmp_path_factory.mktemp("encoders")
    for name, architecture in ARCHITECTURES.items():
        torch.manual_seed(0)
        arguments = {"depth": 2, "img_size": 518}
        model = timm.create_model(architecture, num_classes=0, **arguments)
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps({"architecture": architecture, "model_args": arguments}))
        save_file(model.state_dict(), root / name / "model.safetensors")
    return root


def pixels(height: int, width: int, frames: int = 1, batch: int = 1) -> Tensor:
    return torch.rand(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("size", [(56, 84), (84, 42)])
def test_the_teacher_is_all_patch_tokens(folder: Path, name: str, size: tuple[int, int]) -> None:
    """Mistake 1: N = (h/14)(w/14) distinct patch tokens; class and register tokens are dropped."""
    teacher = make_teacher(str(folder / name), image_size=round((size[0] * size[1]) ** 0.5))
    features, grid = teacher.encode(pixels(*size, frames=2))
    assert grid == TokenGrid(2, size[0] // 14, size[1] // 14)
    assert features.shape == (1, 2, grid.tokens_per_frame, 384)
    assert features.dtype == torch.float32
    assert features[0, 0].std(0).mean() > 1e-3  # not one vector everywhere
    images = (pixels(*size)[0] - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    encoder = teacher.encoder.model  # type: ignore[union-attr]
    whole = encoder.forward_features(images)  # type: ignore[operator]
    torch.testing.assert_close(features[0, 0], whole[0, -grid.tokens_per_frame :], atol=1e-4, rtol=1e-4)


def test_a_patch_moves_its_own_token_most(folder: Path) -> None:
    """Mistake 1 and 5: on a non-square input, the token of the changed patch moves the most."""
    teacher = make_teacher(str(folder / "registers"), image_size=72)
    image = pixels(56, 98)
    base, grid = teacher.encode(image)
    assert (grid.height, grid.width) == (4, 7)
    for row, column in [(0, 6), (2, 3), (3, 0)]:
        changed = image.clone()
        changed[..., row * 14 : row * 14 + 14, column * 14 : column * 14 + 14] = 1.0
        moved = (teacher.encode(changed)[0] - base)[0, 0].norm(dim=-1)
        assert moved.argmax().item() == row * 7 + column


def test_chunks_of_frames_change_nothing(folder: Path) -> None:
    whole = make_teacher(str(folder / "plain"), image_size=42)
    chunked = make_teacher(str(folder / "plain"), image_size=42, frames_batch_size=2)
    clip = pixels(42, 42, frames=5)
    torch.testing.assert_close(whole.encode(clip)[0], chunked.encode(clip)[0], atol=1e-5, rtol=1e-5)


def test_features_can_enter_a_loss(folder: Path) -> None:
    features, _ = make_teacher(str(folder / "plain"), image_size=42).encode(pixels(42, 42))
    student = torch.randn_like(features, requires_grad=True)
    (student * features).sum().backward()
    assert student.grad is not None and not features.requires_grad


def test_auto_gives_the_students_grid(folder: Path) -> None:
    teacher = make_teacher(str(folder / "plain"), image_size="auto")
    features, grid = teacher.encode(pixels(64, 96), student_grid=TokenGrid(1, 4, 6))
    assert grid == TokenGrid(1, 4, 6) and features.shape[2] == 24


@pytest.fixture(scope="module")
def lite() -> Teacher:
    return make_teacher("efficientnet_lite0", image_size=112)


def test_efficientnet_lite0_is_pretrained(lite: Teacher) -> None:
    """It recognises scikit-learn's photograph of a Chinese palace (ImageNet class 698)."""
    from sklearn.datasets import load_sample_image

    photo = torch.tensor(load_sample_image("china.jpg")).permute(2, 0, 1)[None, None, :, :, 106:533] / 255.0
    teacher = Teacher(lite.encoder, "efficientnet_lite0", image_size=224)
    images = teacher._prepare(photo, 224)
    classes = lite.encoder.model(images).softmax(-1)[0]  # type: ignore[operator]
    assert 698 in classes.topk(3).indices.tolist()


def test_efficientnet_lite0_standardises_its_channels_over_the_data(lite: Teacher) -> None:
    with pytest.raises(RuntimeError, match=r"teacher\.standardise"):
        lite.encode(pixels(28, 28))
    data = [pixels(28, 28, batch=8), pixels(28, 28, batch=8).flip(-1)]
    lite.standardise(data)
    features, grid = lite.encode(torch.cat(data))
    assert grid == TokenGrid(1, 7, 7) and features.shape == (16, 1, 49, 432)
    flat = features.flatten(0, 2)
    torch.testing.assert_close(flat.mean(0), torch.zeros(432), atol=1e-3, rtol=0)
    torch.testing.assert_close(flat.std(0, unbiased=False), torch.ones(432), atol=1e-2, rtol=0)

    restored = make_teacher("efficientnet_lite0", image_size=112)
    restored.load_state_dict(lite.state_dict())
    torch.testing.assert_close(restored.encode(data[0])[0], lite.encode(data[0])[0])


def test_only_efficientnet_lite0_is_standardised(folder: Path) -> None:
    with pytest.raises(ValueError, match="normalises its tokens itself"):
        make_teacher(str(folder / "plain")).standardise([pixels(28, 28)])


def test_a_teacher_goes_by_the_name_it_was_given(lite: Teacher) -> None:
    assert lite.name == "efficientnet_lite0"


def test_efficientnet_lite0_takes_auto() -> None:
    """Its statistics are of the size of its own training; then it follows the student's grid."""
    teacher = make_teacher("efficientnet_lite0", image_size="auto")
    teacher.standardise([torch.rand(2, 1, 3, 64, 96)])
    features, grid = teacher.encode(torch.rand(1, 1, 3, 64, 96), student_grid=TokenGrid(1, 4, 6))
    assert grid == TokenGrid(1, 4, 6)
    assert features.shape == (1, 1, 24, 432) and features.isfinite().all()
