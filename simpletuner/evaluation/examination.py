"""One run looked at for a report: how its hidden states resemble the teacher's features, its tokens, its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from simpletuner.evaluation.embeddings import choose_places, teacher_tokens_on, tokens_at
from simpletuner.evaluation.hidden_states import (
    TeacherTokens,
    aligned_blocks,
    block_features,
    block_tokens,
    projected_similarity,
    teacher_tokens,
)
from simpletuner.evaluation.similarity import MEASURES, similarities
from simpletuner.evaluation.trained_runs import LATEST, spread_samples
from simpletuner.helpers.data.build import EMPTY_PROMPT
from simpletuner.helpers.data.records import Records
from simpletuner.helpers.data.samples import Sample
from simpletuner.helpers.models.sampling import SampleSettings
from simpletuner.helpers.training.trainer import Trainer

LEVEL = 0.3  # of noise at which all blocks are looked at: details are gone, what an image shows is not
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FEWEST_IMAGES = 16
POINTS = 800  # of t-SNE and UMAP


@dataclass(frozen=True)
class ReportSettings:
    """What to compare and how to call it.

    Attributes:
        output: folder of the report.
        images: how many images at most hidden states are compared on.
        checkpoint: "latest", or the number of a step that every run has a checkpoint of.
        samples: prompts to sample from, the same with every run; 0 leaves the figure out.
        sample_steps, guidance: of these samples.
        seed: of all noise.
        notice: is put at the top of the report.
    """

    output: Path
    images: int = 256
    checkpoint: str = LATEST
    samples: int = 8
    sample_steps: int = 30
    guidance: float = 5.0
    seed: int = 0
    notice: str | None = None


@dataclass(frozen=True)
class Common:
    """What all runs are compared on.

    Attributes:
        samples: images of the training data.
        teacher: its tokens of them; teacher_rows: averaged over each image, `(n, D)`.
        block: whose hidden states are looked at closely: what the first run aligns.
        prompts: to sample from.
    """

    samples: list[Sample]
    teacher: TeacherTokens
    teacher_rows: Tensor
    block: str
    prompts: list[str]


@dataclass(frozen=True)
class Findings:
    """What was found of one run.

    Attributes:
        step: of the checkpoint.
        features: hidden states after the block, `(n, D)`.
        blocks: by measure and block, the similarity to the teacher at `LEVEL`.
        levels: by measure and noise level, that of the block; projected: the run's own token cosine, while it aligns.
        points, teacher_points: tokens after the block and the teacher's at the same places, `(points, D)`.
        owners: the image of each point.
        images: samples `(prompts, 3, H, W)` in [0, 1].
    """

    step: int
    features: Tensor
    blocks: dict[str, dict[str, float]]
    levels: dict[str, dict[float, float]]
    projected: dict[float, float]
    points: Tensor
    teacher_points: Tensor
    owners: list[int]
    images: Tensor | None


def common_ground(trainer: Trainer, settings: ReportSettings) -> Common:
    """What the first aligned run decides for all: images, teacher, block and prompts.

    Raises:
        ValueError: too few images, or the run has no encoder.
    """
    samples = spread_samples(trainer.samples, settings.images)
    if len(samples) < FEWEST_IMAGES:
        raise ValueError(
            f"A comparison of hidden states needs at least {FEWEST_IMAGES} images, and there are {len(samples)}: "
            f"{'raise --images' if settings.images < FEWEST_IMAGES else 'train on more data'}."
        )
    teacher = teacher_tokens(trainer, samples)
    block = next(iter(aligned_blocks(trainer.foundation).values()))
    captions = sorted({sample.caption for sample in trainer.samples})
    count = min(settings.samples, len(captions))
    prompts = [captions[index * len(captions) // count] for index in range(count)]
    return Common(samples, teacher, teacher.pooled, block, prompts)


def examine(trainer: Trainer, common: Common, settings: ReportSettings, *, with_samples: bool = True) -> Findings:
    """Everything that is measured of a run."""
    samples, teacher = _own(trainer, common.samples), common.teacher_rows
    block, seed = [common.block], settings.seed
    features = block_features(trainer, samples, level=LEVEL, seed=seed)
    blocks: dict[str, dict[str, float]] = {measure: {} for measure in MEASURES}
    for name, rows in features.items():
        for measure, value in similarities(rows, teacher).items():
            blocks[measure][name] = value
    # The projector maps to the run's own teacher; an untrained one's similarity says nothing.
    projects = trainer.step > 0 and trainer.foundation.is_aligning and not trainer.foundation.teacher_is_backbone
    own_teacher = teacher_tokens(trainer, samples) if projects else None
    levels: dict[str, dict[float, float]] = {measure: {} for measure in MEASURES}
    projected: dict[float, float] = {}
    for level in LEVELS:
        again = features if level == LEVEL else block_features(trainer, samples, level=level, blocks=block, seed=seed)
        for measure, value in similarities(again[common.block], teacher).items():
            levels[measure][level] = value
        if own_teacher is not None:
            cosine = projected_similarity(trainer, samples, own_teacher, level=level, seed=seed)
            projected |= {} if cosine is None else {level: cosine}
    tokens, grids = block_tokens(trainer, samples, common.block, level=LEVEL, seed=seed)
    places = choose_places(grids, POINTS)
    return Findings(
        step=trainer.step,
        features=features[common.block],
        blocks=blocks,
        levels=levels,
        projected=projected,
        points=tokens_at(tokens, places),
        teacher_points=tokens_at(teacher_tokens_on(common.teacher, grids), places),
        owners=[row for row, chosen in enumerate(places) for _ in chosen],
        images=_sampled(trainer, common, settings) if with_samples and common.prompts else None,
    )


def _own(trainer: Trainer, samples: Sequence[Sample]) -> list[Sample]:
    """The same samples as this run has them."""
    own = {sample.id: sample for sample in trainer.samples}
    for sample in samples:
        if sample.id not in own or own[sample.id].cut != sample.cut:
            raise ValueError(
                f"data_backend_config: {sample.id} isn't in the data of every run, or is cut otherwise. Only runs on "
                "the same data can be compared."
            )
    return [own[sample.id] for sample in samples]


def _sampled(trainer: Trainer, common: Common, settings: ReportSettings) -> Tensor:
    """One image `(3, H, W)` a prompt, stacked; of clips the first frame."""
    records, bucket = Records(trainer.config, trainer.samples), common.samples[0].bucket
    negative, images = records.prompt(EMPTY_PROMPT).read(), []
    for number, prompt in enumerate(common.prompts):
        wanted = SampleSettings(
            height=bucket.height,
            width=bucket.width,
            steps=settings.sample_steps,
            guidance=settings.guidance,
            seed=settings.seed + number,
            frames=bucket.frames,
        )
        pixels = trainer.foundation.generate([records.prompt(prompt).read()], negative, wanted)
        images.append(pixels[0, 0].float().cpu())
    return torch.stack(images)
