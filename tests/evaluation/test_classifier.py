"""The judge learns its classes, repeats itself, and never touches anyone else's randomness."""

from __future__ import annotations

import pytest
import torch

from simpletuner.evaluation.classifier import SmallClassifier, train_classifier
from simpletuner.evaluation.datasets import LabelledImages, digits_splits


def bars(count: int, side: int = 12) -> LabelledImages:
    """Horizontal against vertical bars at random places."""
    generator = torch.Generator().manual_seed(0)
    images = 0.1 * torch.rand(count, 1, side, side, generator=generator)
    labels = torch.arange(count) % 2
    for index, place in enumerate(torch.randint(2, side - 2, (count,), generator=generator).tolist()):
        target = images[index, 0] if labels[index] else images[index, 0].T
        target[place] = 1.0
    return LabelledImages(images, labels, ("vertical", "horizontal"))


def test_learns_and_features_have_the_width_asked_for() -> None:
    data = bars(256)
    classifier = train_classifier(data, epochs=6, batch_size=32)
    assert classifier.accuracy(bars(64)) > 0.95
    features = classifier.features(data.images)
    assert features.shape == (256, 64) and not features.requires_grad
    torch.testing.assert_close(classifier.head(features), classifier(data.images))


def test_same_seed_same_weights_and_the_global_generator_stays() -> None:
    data = bars(64)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (train_classifier(data, seed=seed, epochs=1) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), same.state_dict().values(), strict=True))
    assert not torch.equal(one.head.weight, other.head.weight)
    assert not one.training and not any(parameter.requires_grad for parameter in one.parameters())


def test_digits_are_learned_from_450_of_them() -> None:
    splits = digits_splits()
    classifier = train_classifier(splits.classifier, epochs=20, batch_size=64)
    assert classifier.accuracy(splits.held_out) > 0.9


def test_noise_in_training_makes_features_calm() -> None:
    """Faint noise moves the features of a judge trained with noise less, measured against their own spread."""
    data = bars(256)
    disturbed = (data.images + 0.1 * torch.randn(data.images.shape, generator=torch.Generator().manual_seed(3))).clamp(
        0, 1
    )
    moved = {}
    for noise in (0.0, 0.3):
        classifier = train_classifier(data, epochs=6, batch_size=32, noise=noise)
        features = classifier.features(data.images)
        moved[noise] = float((classifier.features(disturbed) - features).norm() / (features - features.mean(0)).norm())
    assert moved[0.3] < moved[0.0]


def test_colour_images_of_another_size() -> None:
    assert SmallClassifier(3, channels=3, feature_width=16).eval().features(torch.rand(2, 3, 32, 20)).shape == (2, 16)


def test_refuses_what_it_cannot_train_on() -> None:
    with pytest.raises(ValueError, match="cannot train a classifier"):
        train_classifier(bars(1))
