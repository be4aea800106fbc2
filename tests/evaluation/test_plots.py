"""Figures are written, whole, for the shapes of data that come up."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simpletuner.evaluation.plots import Curve, Panel, plot_curves, plot_samples, tile


def test_curves_of_several_arms_and_seeds(tmp_path: Path) -> None:
    arms = {
        "no alignment": Curve([100, 200, 300], [[9, 5, 3], [8, 6, 4]]),
        "REPA": Curve([100, 200, 300], [[7, 3, 2], [6, math.nan, 2]]),
    }
    similarity = {"REPA": Curve([100, 200, 300], [[0.2, 0.5, 0.6]])}
    panels = [
        Panel("Fréchet distance", arms, better="lower", log=True, level=3.5),
        Panel("similarity", similarity, better="higher"),
        Panel("nothing measured", {}),
    ]
    path = plot_curves(tmp_path / "new" / "curves.png", panels, title="Digits")
    with Image.open(path) as image:
        assert image.width > image.height > 300


def test_values_must_match_the_steps(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 steps but rows of"):
        plot_curves(tmp_path / "x.png", [Panel("distance", {"REPA": Curve([1, 2, 3], [[1, 2]])})])
    with pytest.raises(ValueError, match="no curve to draw"):
        plot_curves(tmp_path / "x.png", [Panel("distance", {})])


def test_sample_grids_in_grey_and_colour(tmp_path: Path) -> None:
    rows = {"real": torch.rand(6, 1, 8, 8), "REPA": torch.rand(6, 3, 8, 8)}
    path = plot_samples(tmp_path / "samples.png", rows, columns=["a", "b", "c"], title="Samples")
    assert path.is_file()
    plot_samples(tmp_path / "plain.png", {"real": torch.rand(2, 1, 8, 8)})
    with pytest.raises(ValueError, match="n at least 1"):
        plot_samples(tmp_path / "none.png", {"real": torch.rand(0, 1, 8, 8)})


def test_tile_puts_images_in_reading_order() -> None:
    images = torch.arange(3, dtype=torch.float32)[:, None, None, None].expand(3, 1, 2, 2) / 10
    canvas = tile(images, 2, gap=1)
    assert canvas.shape == (5, 5)
    np.testing.assert_allclose(canvas[0], [0, 0, 1, 0.1, 0.1], atol=1e-6)
    np.testing.assert_allclose(canvas[3], [0.2, 0.2, 1, 1, 1], atol=1e-6)
