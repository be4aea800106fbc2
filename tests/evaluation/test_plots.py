"""Figures are written, whole, for the shapes of data that come up."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simpletuner.evaluation.plots import Curve, Panel, plot_bars, plot_curves, plot_points, plot_samples, tile


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


def test_named_places_instead_of_steps(tmp_path: Path) -> None:
    """Arms have their place among all, drawn or not."""
    curve = Curve(range(40), [[float(step) for step in range(40)]])
    panel = Panel("CKNNA", {"REPA": curve}, xlabel="block", ticks=[str(step) for step in range(40)])
    path = plot_curves(tmp_path / "blocks.png", [panel], arms=["no alignment", "REPA"])
    with Image.open(path) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**20) or []}
    assert (0xD5, 0x5E, 0x00) in colours and (0x00, 0x72, 0xB2) not in colours


@pytest.mark.parametrize("count", [1, 4, 5])
def test_maps_of_points(tmp_path: Path, count: int) -> None:
    panels = {f"run {index}": np.random.default_rng(index).normal(size=(30, 2)) for index in range(count)}
    labels = [f"class {index % 10}" for index in range(30)]
    assert plot_points(tmp_path / "labelled.png", panels, labels=labels).is_file()
    assert plot_points(tmp_path / "plain.png", panels).is_file()
    with pytest.raises(ValueError, match="run 0 has 30 points and 2 labels"):
        plot_points(tmp_path / "wrong.png", panels, labels=["a", "b"])
    with pytest.raises(ValueError, match="no map to draw"):
        plot_points(tmp_path / "none.png", {})


def test_bars_of_arms_that_lack_a_measure(tmp_path: Path) -> None:
    panels = {
        "fid": {"baseline": [9.0, 8.5], "mid": [7.0]},
        "similarity": {"baseline": [], "mid": [0.4]},
        "kid": {"mid": []},
    }
    with Image.open(plot_bars(tmp_path / "bars.png", panels)) as image:
        assert image.width > image.height > 100
    with pytest.raises(ValueError, match="no value to draw"):
        plot_bars(tmp_path / "none.png", {"kid": {"mid": []}})


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
