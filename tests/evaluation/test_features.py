"""Features for measuring, and the reference that is kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from simpletuner.evaluation.distribution import fidelity_module, fit_gaussian
from simpletuner.evaluation.features import (
    EncoderFeatures,
    InceptionFeatures,
    extract,
    inception_weights,
    make_extractor,
    reference_features,
)
from simpletuner.evaluation.pictures import (
    Picture,
    file_pictures,
    folder_pictures,
    grouped,
    training_pictures,
)
from simpletuner.helpers.training.alignment.encoders import load_encoder
from simpletuner.helpers.training.alignment.teachers import make_teacher
from tests.evaluation.class_runs import QUIET
from tests.evaluation.inception import write_inception
from tests.helpers.data.files import make_config, picture, scan, write_images


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inception(tmp_path_factory.mktemp("inception") / "weights.pth")


def random_images(count: int, side: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


class MeanColour:
    """An extractor that one can check by hand; counts its calls."""

    def __init__(self, version: int = 1) -> None:
        self.version, self.calls = version, 0

    @property
    def identity(self) -> dict[str, Any]:
        return {"features": "colour", "version": self.version}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        return {"pool": images.float().mean(dim=(2, 3))}


# Inception


def test_inception_gives_the_features_of_fid_sfid_and_the_score(inception_file: Path) -> None:
    images = random_images(3)
    extractor = InceptionFeatures(str(inception_file))
    found = extractor(images)
    assert {name: tuple(rows.shape) for name, rows in found.items()} == {
        "pool": (3, 2048),
        "spatial": (3, 2023),
        "logits": (3, 1008),
    }
    assert all(rows.dtype == torch.float32 and rows.std(0).mean() > 1e-4 for rows in found.values())
    assert (found["spatial"] >= 0).all() and (found["spatial"] > 0).any(), "features after the ReLU"

    # The library's own features, and by hand what lies between its blocks: seven channels of the fourth block of
    # 17 × 17, in TensorFlow's order (row, column, channel).
    library = fidelity_module("feature_extractor_inceptionv3")
    network = library.FeatureExtractorInceptionV3("own", ["2048", "logits_unbiased"], str(inception_file))
    pool, logits = network(images)
    torch.testing.assert_close(found["pool"], pool)
    torch.testing.assert_close(found["logits"], logits)
    resized = fidelity_module("interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x(
        images.float(), size=(299, 299), align_corners=False
    )
    hidden = (resized - 128) / 128
    blocks = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
    blocks += ("MaxPool_2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c")
    for name in blocks:
        hidden = getattr(network, name)(hidden)
    branch = network.Mixed_6d.branch1x1
    normed = (branch.conv(hidden) - branch.bn.running_mean.view(1, -1, 1, 1)) / torch.sqrt(
        branch.bn.running_var.view(1, -1, 1, 1) + branch.bn.eps
    )
    expected = F.relu(normed)[:, :7].permute(0, 2, 3, 1).reshape(3, 2023)
    torch.testing.assert_close(found["spatial"], expected, atol=1e-4, rtol=1e-4)


def test_other_weights_have_another_identity(inception_file: Path, tmp_path: Path) -> None:
    state = torch.load(inception_file, weights_only=True)
    state["fc.bias"] += 1
    torch.save(state, tmp_path / "other.pth")
    one, other = InceptionFeatures(str(inception_file)), InceptionFeatures(str(tmp_path / "other.pth"))
    assert one.identity != other.identity
    assert one.identity == InceptionFeatures(str(inception_file)).identity


def test_weights_that_are_missing_or_something_else_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluation_inception_weights: there is no file .*weights-inception"):
        make_extractor("inception", str(tmp_path / "none.pth"))
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="holds no weights of torch-fidelity's Inception network"):
        InceptionFeatures(str(tmp_path / "other.pth"))
    (tmp_path / "text.pth").write_text("no weights at all")
    with pytest.raises(ValueError, match="holds no weights"):
        InceptionFeatures(str(tmp_path / "text.pth"))


def test_without_a_network_the_error_says_where_the_weights_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that isn't there refuses at once."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="can't be downloaded") as told:
        inception_weights(None)
    words = str(told.value)
    assert "weights-inception-2015-12-05" in words and "github.com" in words
    assert "evaluation_inception_weights" in words and "evaluation_features" in words
    kept = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    assert str(kept) in words and not kept.exists()
    kept.write_bytes(b"here now")
    assert inception_weights(None) == kept


# Encoders


def test_an_encoders_tokens_are_averaged(tiny_teacher: Path) -> None:
    images = random_images(4, 64)
    extractor = make_extractor(str(tiny_teacher), None)
    assert isinstance(extractor, EncoderFeatures)
    teacher = make_teacher(str(tiny_teacher), image_size=extractor.identity["side"])
    tokens, _ = teacher.encode(images.float() / 255)
    torch.testing.assert_close(extractor(images)["pool"], tokens[:, 0].mean(1))
    assert list(extractor(images)) == ["pool"]


def test_tokens_of_efficientnet_are_taken_as_they_are() -> None:
    """No statistics of any data enter, so distances of different runs can be compared."""
    images = random_images(2, 64)
    found = EncoderFeatures("efficientnet_lite0")(images)["pool"]
    encoder: Any = load_encoder("efficientnet_lite0")
    resized = F.interpolate(images.float() / 255, size=(224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (encoder.mean, encoder.std))
    with torch.no_grad():
        expected = encoder.eval().raw_tokens((resized - mean) / std)[0].mean(1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_an_unknown_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="'nothing' is unknown"):
        make_extractor("nothing", None)


# Pictures


def test_training_pictures_are_what_is_trained(tmp_path: Path) -> None:
    samples = scan(write_images(tmp_path / "data", [(64, 64), (96, 64)]), make_config(tmp_path), horizontal_flip=True)
    pictures = training_pictures(samples)
    assert len(pictures) == 2 and len(samples) == 4
    for found, sample in zip(pictures, [s for s in samples if not s.mirrored], strict=True):
        assert found.size == (sample.bucket.width, sample.bucket.height)
        torch.testing.assert_close(found.read().float() / 255, sample.pixels()[0])


def test_pictures_of_a_folder_are_brought_to_the_samples_size(tmp_path: Path) -> None:
    picture(32, 32, 1).save(tmp_path / "same.png")
    wide = picture(64, 32, 2)
    wide.save(tmp_path / "wide.png")
    found = folder_pictures(tmp_path, (32, 32))
    assert [p.key[0] for p in found] == ["same.png", "wide.png"]
    (whole,) = file_pictures([tmp_path / "same.png"])
    assert torch.equal(found[0].read(), whole.read())
    centre = torch.tensor(list(wide.crop((16, 0, 48, 32)).tobytes()), dtype=torch.uint8).view(32, 32, 3)
    assert torch.equal(found[1].read(), centre.permute(2, 0, 1))


def test_folders_without_pictures_and_broken_files_are_told(tmp_path: Path) -> None:
    picture(8, 8).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"evaluation_reference: .* holds one image, and at least 2"):
        folder_pictures(tmp_path, (8, 8))
    (tmp_path / "b.png").write_bytes(b"nothing")
    _, broken = folder_pictures(tmp_path, (8, 8))
    with pytest.raises(ValueError, match=r"evaluation_reference: .*b\.png"):
        broken.read()


def test_batches_are_of_one_size() -> None:
    sizes = [(8, 8), (16, 8), (8, 8), (8, 8), (16, 8)]
    assert grouped(sizes, 2) == [[0, 2], [3], [1, 4]]


# The reference


def pictures_of(images: Sequence[Tensor], version: int = 0) -> list[Picture]:
    def reader(image: Tensor) -> Callable[[], Tensor]:
        return lambda: image

    return [Picture((n, version), (image.shape[2], image.shape[1]), reader(image)) for n, image in enumerate(images)]


def test_features_are_in_the_order_of_the_pictures() -> None:
    images = [*random_images(3, 8), *random_images(3, 12), *random_images(2, 8)]
    found = extract(pictures_of(images), MeanColour(), QUIET)
    torch.testing.assert_close(found["pool"], torch.stack([image.float().mean((1, 2)) for image in images]))


def test_a_reference_is_measured_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = list(random_images(5))
    extractor = MeanColour()
    first = reference_features(pictures_of(images), extractor, tmp_path, QUIET)
    rows = torch.stack([image.float().mean((1, 2)) for image in images])
    expected = fit_gaussian([rows])
    torch.testing.assert_close(first.gaussians["pool"].covariance, expected.covariance)
    torch.testing.assert_close(first.rows, rows)
    (file,) = tmp_path.iterdir()

    again = MeanColour()
    second = reference_features(pictures_of(images), again, tmp_path, QUIET)
    assert again.calls == 0 and second.gaussians["pool"].count == 5
    torch.testing.assert_close(second.gaussians["pool"].covariance, first.gaussians["pool"].covariance, rtol=0, atol=0)
    torch.testing.assert_close(second.rows, first.rows, rtol=0, atol=0)

    reference_features(pictures_of(images, version=2), MeanColour(), tmp_path, QUIET)
    reference_features(pictures_of(images), MeanColour(version=2), tmp_path, QUIET)
    assert len(list(tmp_path.iterdir())) == 3, "other pictures and other features have files of their own"

    file.write_bytes(file.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        repaired = reference_features(pictures_of(images), again, tmp_path, QUIET)
    assert again.calls == 1 and "is damaged" in caplog.text
    torch.testing.assert_close(repaired.rows, first.rows, rtol=0, atol=0)
