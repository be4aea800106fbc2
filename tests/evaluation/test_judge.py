"""What the judge looks at: every class, the same for every model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor

from simpletuner.evaluation.classifier import train_classifier
from simpletuner.evaluation.datasets import LabelledImages, load_digits
from simpletuner.evaluation.judge import Judge


@pytest.fixture(scope="module")
def by_class() -> LabelledImages:
    """Digits in the order in which class folders are read: one class after the other."""
    digits = load_digits()
    return digits.select(torch.cat([(digits.labels == label).nonzero().flatten()[:24] for label in range(10)]))


@pytest.fixture(scope="module")
def model() -> DiTTransformer2DModel:
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        in_channels=1,
        out_channels=1,
        sample_size=28,
        patch_size=4,
        num_embeds_ada_norm=10,
    ).eval()


def pixels_as_tokens(images: Tensor) -> Tensor:
    return images.flatten(1)


def judge_of(data: LabelledImages, examined: int) -> Judge:
    classifier = train_classifier(data, epochs=1)
    return Judge(
        classifier,
        data,
        data,
        pixels_as_tokens,
        tap=0,
        conditional=True,
        samples=20,
        denoising=2,
        probe=True,
        examined=examined,
    )


def test_images_sorted_by_class_are_examined_in_every_class(by_class: LabelledImages) -> None:
    """The first n of them would be of the first class or two: neighbours and a probe of nothing."""
    judge = judge_of(by_class, examined=100)
    assert judge.probe_images is not None
    for images in (judge.examined, judge.probe_images):
        assert images.labels.bincount(minlength=10).tolist() == [10] * 10
    torch.testing.assert_close(judge.teacher_tokens, pixels_as_tokens(judge.examined.images))


def test_a_model_is_measured_alike_every_time(by_class: LabelledImages, model: DiTTransformer2DModel) -> None:
    judge = judge_of(by_class, examined=100)
    first, samples = judge.measure(model, 1, 0.5)
    again, same = judge.measure(model, 1, 0.5)
    assert first == again and torch.equal(samples, same)
    assert samples.shape == (20, 1, 28, 28)
    assert first.probe is not None and first.probe > 0.2  # twice what guessing gives
    assert first.plain_distance is None
    assert judge.measure(model, 2, 0.5)[0] == replace(first, step=2)
