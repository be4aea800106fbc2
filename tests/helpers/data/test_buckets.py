"""Aspect buckets keep area and aspect, whatever the source's size."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simpletuner.helpers.data.buckets import MAX_ASPECT, Bucket, area_side, bucket_size, clip_length, place

sizes = st.integers(8, 8000)
alignments = st.sampled_from([8, 16, 32, 64])
cells = st.integers(4, 32)
"""Sides of the target in multiples of the alignment."""


@given(sizes, sizes, alignments, cells)
def test_sides_are_multiples_and_near_the_ideal_ones(width: int, height: int, alignment: int, side: int) -> None:
    aspect = min(max(width / height, 1 / MAX_ASPECT), MAX_ASPECT)
    ideal = (side * alignment * aspect**0.5, side * alignment / aspect**0.5)
    for length, wanted in zip(bucket_size(width, height, side * alignment, alignment), ideal, strict=True):
        assert length % alignment == 0
        assert abs(length - wanted) <= alignment / 2 + 1e-6


@given(sizes, sizes, alignments, cells)
def test_area_and_aspect_errors_are_bounded(width: int, height: int, alignment: int, side: int) -> None:
    bucket_width, bucket_height = bucket_size(width, height, side * alignment, alignment)
    aspect = min(max(width / height, 1 / MAX_ASPECT), MAX_ASPECT)
    # Half a cell on the shorter ideal side is the largest relative error of either side.
    error = 0.5 / (side / max(aspect, 1 / aspect) ** 0.5)
    assert (1 - error) ** 2 <= bucket_width * bucket_height / (side * alignment) ** 2 <= (1 + error) ** 2
    assert (1 - error) / (1 + error) <= bucket_width / bucket_height / aspect <= (1 + error) / (1 - error)


@given(sizes, alignments, cells)
def test_square_stays_square_and_exact(width: int, alignment: int, side: int) -> None:
    assert bucket_size(width, width, side * alignment, alignment) == (side * alignment, side * alignment)


@given(sizes, sizes, alignments, cells)
def test_turned_source_gets_turned_bucket(width: int, height: int, alignment: int, side: int) -> None:
    upright = bucket_size(width, height, side * alignment, alignment)
    assert bucket_size(height, width, side * alignment, alignment) == upright[::-1]


@given(sizes, sizes)
def test_square_cut_ignores_the_aspect(width: int, height: int) -> None:
    assert bucket_size(width, height, 512, 64, square=True) == (512, 512)


@given(sizes, sizes, cells, cells)
def test_crop_has_the_buckets_aspect_and_touches_two_edges(width: int, height: int, across: int, down: int) -> None:
    """Mistake 18: nothing is squashed to fit."""
    bucket = Bucket(across * 16, down * 16)
    left, top, right, bottom = place(width, height, bucket, crop=True).box
    assert (right - left) / (bottom - top) == pytest.approx(bucket.width / bucket.height)
    assert left + right == pytest.approx(width)
    assert top + bottom == pytest.approx(height)
    assert left >= 0 and top >= 0
    assert min(left, top) == pytest.approx(0, abs=1e-6)


def test_crop_offset_is_in_resized_pixels() -> None:
    placement = place(200, 100, Bucket(64, 64), crop=True)
    assert placement.box == (50, 0, 150, 100)
    assert placement.offset == (0, 32)


def test_without_crop_all_is_kept() -> None:
    assert place(200, 100, Bucket(64, 64), crop=False).box == (0, 0, 200, 100)


@pytest.mark.parametrize(
    ("available", "wanted", "ratio", "length"),
    [(100, 49, 4, 49), (48, 49, 4, 45), (50, 50, 4, 49), (4, 49, 4, 1), (0, 49, 4, 0), (7, 5, 1, 5), (3, 5, 1, 3)],
)
def test_clip_length_fits_a_causal_autoencoder(available: int, wanted: int, ratio: int, length: int) -> None:
    assert clip_length(available, wanted, ratio) == length


def test_a_megapixel_is_1024_squared() -> None:
    assert area_side(1.0) == 1024
    assert area_side(0.25) == 512


@given(sizes, sizes, st.sampled_from([224, 256, 512]), st.sampled_from([0.75, 0.875, 0.95, 1.0]))
def test_crop_pct_is_resize_and_center_crop(width: int, height: int, side: int, crop_pct: float) -> None:
    """The field of view of torchvision's Resize(side / crop_pct) and CenterCrop(side), to within a pixel of the result.

    torchvision rounds the resized longer side down and where the cut begins to whole pixels.
    """
    assume(max(width, height) <= 6 * min(width, height))
    resized = round(side / crop_pct)
    across, down = (resized * length / min(width, height) for length in (width, height))
    left, top, right, bottom = place(width, height, Bucket(side, side), crop=True, crop_pct=crop_pct).box
    scale = resized / min(width, height)
    wanted = ((int(across) - side) / 2, (int(down) - side) / 2)
    assert (left * scale, top * scale) == pytest.approx(wanted, abs=1)
    assert ((right - left) * scale, (bottom - top) * scale) == pytest.approx((side, side), abs=1)


@given(sizes, sizes, cells, cells, st.floats(0.1, 1.0))
def test_crop_pct_keeps_so_much_of_the_cut(width: int, height: int, across: int, down: int, crop_pct: float) -> None:
    """In buckets of any aspect too; and 1 changes nothing."""
    bucket = Bucket(across * 16, down * 16)
    whole = place(width, height, bucket, crop=True)
    left, top, right, bottom = place(width, height, bucket, crop=True, crop_pct=crop_pct).box
    assert right - left == pytest.approx(crop_pct * (whole.box[2] - whole.box[0]))
    assert bottom - top == pytest.approx(crop_pct * (whole.box[3] - whole.box[1]))
    assert (left + right, top + bottom) == pytest.approx((width, height))
    assert place(width, height, bucket, crop=True, crop_pct=1.0) == whole
    assert place(width, height, bucket, crop=False, crop_pct=crop_pct).box == (0, 0, width, height)
