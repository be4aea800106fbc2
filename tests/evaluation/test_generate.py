"""Samples for measuring: which ones, always the same, and resumable."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from simpletuner.evaluation.generate import (
    EvaluationStopped,
    GenerationSettings,
    generate_images,
    generation_settings,
    image_seed,
    refuse_what_cannot_be_sampled,
    wishes_like,
)
from simpletuner.helpers.models.sampling import SampleSettings
from tests.evaluation.class_runs import QUIET, class_run, trainer_of
from tests.runs import run, write_config

TinyFolder = Callable[[str], Path]


def contents(files: list[Path]) -> list[bytes]:
    return [file.read_bytes() for file in files]


def pixels(files: list[Path]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files]).float()


def test_classes_are_asked_for_in_their_shares(tmp_path: Path, tiny_folder: TinyFolder) -> None:
    """Six cats and three dogs; the mirror images count for nothing."""
    trainer = trainer_of(class_run(tmp_path, tiny_folder("dit_pixels")))
    wishes = wishes_like(trainer.samples, 12)
    assert Counter(wish.caption for wish in wishes) == {"cat": 8, "dog": 4}
    assert {wish.size for wish in wishes} == {(8, 8)}
    assert len({wish.caption for wish in wishes[:2]}) == 2, "classes come in rounds"
    samples = [*trainer.samples, *(replace(sample, mirrored=True) for sample in trainer.samples)]
    assert wishes_like(samples, 12) == wishes_like(list(reversed(trainer.samples)), 12) == wishes
    assert len(wishes_like(trainer.samples, 1)) == 1


@given(seed=st.integers(0, 2**63 - 1), index=st.integers(0, 10**6))
def test_seeds_depend_on_seed_and_index_alone(seed: int, index: int) -> None:
    found = image_seed(seed, index)
    assert 0 <= found < 2**63 and found == image_seed(seed, index)
    assert found not in (image_seed(seed, index + 1), image_seed(seed + 1, index))


def test_samples_do_not_depend_on_the_batch_size(tmp_path: Path, tiny_folder: TinyFolder) -> None:
    trainer = trainer_of(class_run(tmp_path, tiny_folder("dit_pixels")))
    settings = generation_settings(trainer.config)
    assert settings == GenerationSettings(10, 2, 1.0, None, 42, 4)
    files = generate_images(trainer, tmp_path / "a", settings, QUIET)
    assert [file.name for file in files] == [f"{index:06d}.png" for index in range(10)]
    again = generate_images(trainer, tmp_path / "b", replace(settings, batch_size=3), QUIET)
    assert again[0].parent.name == files[0].parent.name
    assert (pixels(files) - pixels(again)).abs().max() <= 1, "more than rounding"
    other = generate_images(trainer, tmp_path / "a", replace(settings, seed=1), QUIET)
    assert other[0].parent != files[0].parent
    assert (pixels(files) - pixels(other)).abs().mean() > 5


def test_samples_are_those_of_the_averaged_weights_of_this_step(tmp_path: Path, tiny_folder: TinyFolder) -> None:
    """Other weights make other samples in another folder; the average counts, not what it is of."""
    trainer = trainer_of(class_run(tmp_path, tiny_folder("dit_pixels"), use_ema=True))
    settings = generation_settings(trainer.config)
    files = generate_images(trainer, tmp_path / "samples", settings, QUIET)
    before = [parameter.detach().clone() for parameter in trainer.parameters]
    with torch.no_grad():
        trainer.parameters[0].add_(1)
    same = generate_images(trainer, tmp_path / "samples", settings, QUIET)
    assert same == files
    assert trainer.ema is not None
    trainer.ema.shadow_params[0].add_(1)
    assert generate_images(trainer, tmp_path / "samples", settings, QUIET)[0].parent != files[0].parent
    torch.testing.assert_close(trainer.parameters[0].detach(), before[0] + 1, rtol=0, atol=0)


def test_only_what_is_missing_or_torn_is_made_again(tmp_path: Path, tiny_folder: TinyFolder) -> None:
    trainer = trainer_of(class_run(tmp_path, tiny_folder("dit_pixels")))
    settings = generation_settings(trainer.config)
    files = generate_images(trainer, tmp_path / "samples", settings, QUIET)
    expected = contents(files)
    files[2].unlink()
    files[5].write_bytes(expected[5][:-20])
    files[6].write_bytes(b"")
    (files[0].parent / "000007.partial").write_bytes(b"half")
    stamps = {file: file.stat().st_mtime_ns for file in files if file.exists()}
    assert generate_images(trainer, tmp_path / "samples", settings, QUIET) == files
    assert contents(files) == expected
    assert [number for number, file in enumerate(files) if stamps.get(file) != file.stat().st_mtime_ns] == [2, 5, 6]
    assert not list(files[0].parent.glob("*.partial"))
    told = json.loads((files[0].parent / "settings.json").read_text())
    assert told["seed"] == 42 and told["count"] == 10 and told["step"] == 0


KILLED = """
import os, signal, sys
from pathlib import Path
from simpletuner.evaluation.generate import generate_images, generation_settings
from tests.evaluation.class_runs import QUIET, trainer_of

trainer, asked = trainer_of(Path(sys.argv[1])), 0

def kill_at_the_third() -> bool:
    global asked
    asked += 1
    if asked == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return False

generate_images(trainer, Path(sys.argv[2]), generation_settings(trainer.config), QUIET, kill_at_the_third)
"""


def test_a_killed_sampling_ends_as_one_that_was_not(tmp_path: Path, tiny_folder: TinyFolder) -> None:
    config = class_run(tmp_path, tiny_folder("dit_pixels"))
    trainer = trainer_of(config)
    whole = generate_images(trainer, tmp_path / "whole", generation_settings(trainer.config), QUIET)
    killed = run("-c", KILLED, str(config), str(tmp_path / "killed"), "2")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list((tmp_path / "killed").glob("*/*.png"))) == 4
    ended = run("-c", KILLED, str(config), str(tmp_path / "killed"), "100")
    assert ended.returncode == 0, ended.stderr
    files = sorted((tmp_path / "killed").glob("*/*.png"))
    assert files[0].parent.name == whole[0].parent.name
    assert contents(files) == contents(whole)


def test_a_stop_is_heeded_between_batches(tmp_path: Path, tiny_folder: TinyFolder) -> None:
    trainer = trainer_of(class_run(tmp_path, tiny_folder("dit_pixels")))
    answers = iter([False, True])
    with pytest.raises(EvaluationStopped):
        generate_images(
            trainer, tmp_path / "samples", generation_settings(trainer.config), QUIET, lambda: next(answers)
        )
    assert len(list((tmp_path / "samples").glob("*/*.png"))) == 4


def test_broken_models_and_unfit_families_are_told(tmp_path: Path, tiny_folder: TinyFolder) -> None:
    trainer = trainer_of(class_run(tmp_path, tiny_folder("dit_pixels")))
    with torch.no_grad():
        trainer.parameters[0].fill_(torch.nan)
    with pytest.raises(ValueError, match="samples of step 0 are not finite"):
        generate_images(trainer, tmp_path / "samples", generation_settings(trainer.config), QUIET)
    other = tmp_path / "flux"
    other.mkdir()
    config = write_config(other, tiny_folder("flux"), evaluation_guidance_interval=[0, 0.5])
    with pytest.raises(ValueError, match="evaluation_guidance_interval is set, but the pipeline of flux"):
        refuse_what_cannot_be_sampled(trainer_of(config))


def test_sizes_follow_the_training(tmp_path: Path, tiny_folder: TinyFolder) -> None:
    """Seven captions in buckets of several shapes: each sample has its own's."""
    config = write_config(tmp_path, tiny_folder("sd1x"), num_eval_images=7, evaluation_num_inference_steps=1)
    trainer = trainer_of(config)
    files = generate_images(trainer, tmp_path / "samples", generation_settings(trainer.config), QUIET)
    made = Counter(Image.open(file).size for file in files)
    assert made == Counter((sample.bucket.width, sample.bucket.height) for sample in trainer.samples)
    assert len(made) > 1


def test_seeds_of_a_batch() -> None:
    settings = SampleSettings(8, 8, 2, 1.0, 5)
    assert [generator.initial_seed() for generator in settings.generators(2)] == [5, 6]
    chosen = replace(settings, seed=(9, 3)).generators(2)
    assert [generator.initial_seed() for generator in chosen] == [9, 3]
    with pytest.raises(ValueError, match="2 seeds for 3 samples"):
        replace(settings, seed=(9, 3)).generators(3)


def test_guidance_within_an_interval() -> None:
    settings = SampleSettings(8, 8, 2, 4.0, 5, guidance_interval=(0.2, 0.7))
    assert [settings.guidance_at(level) for level in (0, 0.2, 0.5, 0.7, 0.71)] == [1, 4, 4, 4, 1]
    assert replace(settings, guidance_interval=None).guidance_at(1.0) == 4
