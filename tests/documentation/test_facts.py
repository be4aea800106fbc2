"""What the tables of the guides say of models and schedules is what the code has, in every language."""

from __future__ import annotations

import math
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from documentation_tools.pages import LANGUAGES, ROOT, read_page, translation_of
from simpletuner.configuration.cache_sizes import feature_bytes
from simpletuner.configuration.coefficient import FAST_SPAN, RAMP_SPAN, SLOW_SPAN, CoefficientSchedule
from simpletuner.configuration.encoders import encoder_width
from simpletuner.configuration.family import Family
from simpletuner.helpers.models.registry import FAMILIES
from simpletuner.helpers.training.alignment.geometry import (
    TokenGrid,
    pixel_frames_of_latents,
    teacher_input_size,
)

GUIDES = ROOT / "documentation" / "experimental"
IMAGE, VIDEO, LAYERSYNC = (GUIDES / f"{name}.md" for name in ("IMAGE_REPA", "VIDEO_CREPA", "LAYERSYNC"))
REPA_SHARE = 8 / 28  # of the depth, where REPA taps its large models (arXiv 2410.06940)
PATCH = 14

pytestmark = pytest.mark.parametrize("language", LANGUAGES)


def rows(english: Path, anchor: str, language: str, table: int = 0) -> list[tuple[str, ...]]:
    """The rows below the headings of a table, by the anchor of its English section."""
    (number,) = [number for number, section in enumerate(read_page(english).sections) if section.anchor == anchor]
    return list(read_page(translation_of(english, language)).sections[number].tables[table].rows[1:])


def families_of(cell: str) -> list[Family]:
    found = [FAMILIES[name] for name in re.findall(r"`(\w+)`", cell)]
    assert found, cell
    return found


def numbers(cell: str) -> list[float]:
    """Those of a cell, with a point or a comma before decimals, and with or without a sign between thousands."""
    cell = re.sub(r"(?<=\d)[,.\u202f\u00a0 ](?=\d{3}(?!\d))", "", cell) if "." not in cell else cell
    return [float(number.replace(",", ".")) for number in re.findall(r"-?\d+(?:[.,]\d+)?", cell)]


def first(cell: str) -> float:
    return numbers(cell)[0]


def test_blocks_of_image_models(language: str) -> None:
    told = set()
    for name, blocks, _, default, share in rows(IMAGE, "recommended-blocks", language):
        for family in families_of(name):
            told.add(family.name)
            assert family.depth is not None
            assert [family.depth, family.default_block] == [first(blocks), first(default)], name
            assert round(family.depth * REPA_SHARE) == first(share), name
    assert told == {name for name, family in FAMILIES.items() if family.alignment == "REPA"}


def test_blocks_of_video_models(language: str) -> None:
    told = set()
    for name, blocks, default in rows(VIDEO, "which-block", language):
        for family in families_of(name):
            told.add(family.name)
            assert [family.depth, family.default_block] == [first(blocks), first(default)], name
    assert told == {name for name, family in FAMILIES.items() if family.alignment == "CREPA"}


def test_blocks_for_layersync(language: str) -> None:
    told = set()
    for name, blocks, student, teacher in rows(LAYERSYNC, "which-blocks", language):
        for family in families_of(name):
            told.add(family.name)
            facts = [family.depth, family.default_block, family.teaching_block]
            assert facts == [first(blocks), first(student), first(teacher)], name
    assert told == {name for name, family in FAMILIES.items() if family.model_type == "transformer"}


def test_sizes_of_the_mid_block(language: str) -> None:
    for model, image, latents, middle, *teachers in rows(IMAGE, "sizes-of-the-mid-block", language):
        family = FAMILIES["sd1x" if model.startswith("Stable Diffusion") else "sdxl"]
        width, height = numbers(image)
        assert numbers(latents) == [width / family.latent_ratio, height / family.latent_ratio], model
        grid = TokenGrid(1, round(height / family.pixels_per_token), round(width / family.pixels_per_token))
        assert numbers(middle) == [grid.width, grid.height], model
        sizes: tuple[int | str, ...] = ("auto", 518, 224)
        for cell, size in zip(teachers, sizes, strict=True):
            rows_, columns = teacher_input_size(
                round(height), round(width), patch=PATCH, image_size=size, student_grid=grid, scale=2
            )
            assert numbers(cell) == [columns / PATCH, rows_ / PATCH], (model, size)


def test_weights_of_neighbours(language: str) -> None:
    yes = rows(VIDEO, "neighbours-and-tau", language, 1)[-1][2]
    for distance, tau, cumulative, _, middle, end in rows(VIDEO, "neighbours-and-tau", language, 1):
        farthest = round(first(distance))
        taken = range(1, farthest + 1) if cumulative == yes else range(farthest, farthest + (farthest > 0))
        one_side = sum(math.exp(-step / first(tau)) for step in taken)
        assert first(middle) == pytest.approx(1 + 2 * one_side, abs=1e-3)
        assert first(end) == pytest.approx(1 + one_side, abs=1e-3)


def test_pixel_frames_of_the_teacher(language: str) -> None:
    told = {}
    for name, frame_ratio, clip, latent_frames, seen in rows(VIDEO, "frames-and-latents", language):
        told |= dict.fromkeys(re.findall(r"`(\w+)`", name), first(frame_ratio))
        frames = pixel_frames_of_latents(round(first(latent_frames)), round(first(frame_ratio)))
        assert frames[-1] + 1 == first(clip)
        named = numbers(seen)
        assert named == [frame for frame in frames if frame in named]
        assert (named[0], named[1], named[-1]) == (frames[0], frames[1], frames[-1])
    assert told == {name: family.frame_ratio for name, family in FAMILIES.items() if family.media == "video"}


def test_size_of_the_teachers_input(language: str) -> None:
    width = encoder_width("dinov2_vitb14")
    assert width is not None
    for clip, size, pixels, tokens, cache in rows(VIDEO, "the-size-of-the-teachers-input", language):
        (columns, lines), (size_of_teacher, *whitened) = numbers(clip), numbers(size)
        side = teacher_input_size(round(lines), round(columns), patch=PATCH, image_size=round(size_of_teacher))
        assert numbers(pixels) == list(side)
        grid = [side[0] // PATCH, side[1] // PATCH]
        assert numbers(tokens) == grid
        size_in_bytes = feature_bytes(21 * grid[0] * grid[1], round(whitened[0]) if whitened else width, "bf16")
        assert first(cache) == pytest.approx(size_in_bytes / 2**20, abs=0.05)


def test_coefficients(language: str) -> None:
    for step, *told in rows(VIDEO, "schedules-with-the-exact-arithmetic", language):
        for kind, cell in zip(("linear", "cosine", "polynomial"), told, strict=True):
            schedule = CoefficientSchedule(kind, base=0.5, end=0.0, warmup_steps=100, decay_steps=5000, power=2.0)
            assert first(cell) == pytest.approx(schedule(round(first(step))), abs=6e-5), (step, kind)


def test_facts_of_a_family(language: str) -> None:
    """Those in which families differ from the defaults; tap, depth and hidden size stand in the row that is shown."""
    table = rows(ROOT / "documentation/ADDING_A_FAMILY.md", "2-the-row", language)
    told = {name for fact, *_ in table for name in re.findall(r"`(\w+)`", fact)}
    defaults = {field.name: field.default for field in fields(Family)}
    stated = {
        name
        for family in FAMILIES.values()
        for name, default in defaults.items()
        if default is not MISSING and getattr(family, name) != default
    }
    assert told - {"media"} == stated - {"default_block", "depth", "hidden_size"}


def test_spans_of_the_plateau(language: str) -> None:
    for run, *told in rows(VIDEO, "by-plateau", language):
        steps = first(run)
        warmup = steps * 0.125
        expected = [steps * FAST_SPAN, steps * SLOW_SPAN, warmup, steps * RAMP_SPAN, warmup + steps * RAMP_SPAN]
        assert [first(cell) for cell in told] == expected, run
