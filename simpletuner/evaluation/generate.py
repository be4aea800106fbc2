"""Samples of a run's model for measuring: PNG files, resumable, the work split over processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from PIL import Image
from torch import Tensor, nn

from simpletuner.configuration import Config
from simpletuner.evaluation.features import Progress
from simpletuner.evaluation.pictures import grouped, originals
from simpletuner.evaluation.samples import labels_like
from simpletuner.helpers.data.build import EMPTY_PROMPT
from simpletuner.helpers.data.records import Records
from simpletuner.helpers.data.samples import Sample
from simpletuner.helpers.models.sampling import SampleSettings, to_images
from simpletuner.helpers.training.ema import averaged_weights
from simpletuner.helpers.training.trainer import Trainer

SETTINGS_FILE = "settings.json"


class EvaluationStopped(Exception):
    """The run was asked to stop while it was evaluated; what is done of it is kept."""


@dataclass(frozen=True)
class GenerationSettings:
    """What samples are to be like.

    Attributes:
        count: how many. steps: denoising steps of each. guidance: scale; 1 is none.
        guidance_interval: noise levels in [0, 1] between which there is guidance; None is everywhere.
        seed: with a sample's index it decides its noise. batch_size: samples made at once on a device.
    """

    count: int
    steps: int
    guidance: float
    guidance_interval: tuple[float, float] | None
    seed: int
    batch_size: int


@dataclass(frozen=True)
class Wish:
    """One sample to be made: what it shows, and its width and height in pixels."""

    caption: str
    size: tuple[int, int]


def generation_settings(config: Config) -> GenerationSettings:
    """The settings that a configuration asks for."""
    interval, seed = config.evaluation_guidance_interval, config.evaluation_seed
    return GenerationSettings(
        config.num_eval_images,
        config.evaluation_num_inference_steps,
        config.evaluation_guidance,
        None if interval is None else (interval[0], interval[1]),
        config.seed if seed is None else seed,
        config.evaluation_batch_size,
    )


def wishes_like(samples: Sequence[Sample], count: int) -> list[Wish]:
    """Captions and sizes of the training samples in their shares, in rounds; each class as often as it occurs.

    Of more captions than `count`, as many are taken, the same ones for the same data.
    """
    pairs = [Wish(sample.caption, (sample.bucket.width, sample.bucket.height)) for sample in originals(samples)]
    distinct = sorted(set(pairs), key=lambda wish: (wish.caption, wish.size))
    # What rounding leaves over would go to the first of the alphabet otherwise.
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(0)).tolist()
    label = {distinct[index]: number for number, index in enumerate(order)}
    labels = labels_like(torch.tensor([label[pair] for pair in pairs]), count, len(distinct))
    return [distinct[order[number]] for number in labels.tolist()]


def image_seed(seed: int, index: int) -> int:
    """The seed of one sample: of 63 bits, so that other seeds and indices share none of them."""
    return int.from_bytes(blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()) >> 1


def generate_images(
    trainer: Trainer,
    folder: Path,
    settings: GenerationSettings,
    progress: Progress,
    is_stopping: Callable[[], bool] = lambda: False,
) -> list[Path]:
    """Samples from the averaged weights, if there are any, with the training's own captions; returns the files.

    They lie in `folder/samples-{hash}`, a hash of all that decides them, the weights included: samples of other
    settings are never mixed, and those that are there and intact are kept. A batch of which one is missing is made
    as a whole, so that an interrupted run ends with the same files. Called on every rank.

    Args:
        is_stopping: asked between batches whether to give up.

    Raises:
        ValueError: the model's samples are not finite.
        EvaluationStopped: `is_stopping` was true on a rank.
    """
    accelerator = trainer.accelerator
    device = accelerator.device
    with (
        # Nothing of the training's randomness is used up.
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        averaged_weights(trainer.ema, trainer.parameters),
    ):
        wishes = wishes_like(trainer.samples, settings.count)
        identity = _identity(trainer, settings, wishes)
        folder = folder / f"samples-{_hash(identity)}"
        files = [folder / f"{index:06d}.png" for index in range(settings.count)]
        missing = _prepare(trainer, folder, files, identity)
        batches = [
            batch
            for batch in grouped([wish.size for wish in wishes], settings.batch_size)
            if not missing.isdisjoint(batch)
        ]
        advance = progress.task("Sampling", settings.count, "images")
        advance(settings.count - sum(map(len, batches)))
        maker = _Maker(trainer, settings, wishes, files)
        stopped = False
        for first in range(0, len(batches), accelerator.num_processes):
            stopped = _stops(trainer, is_stopping)
            if stopped:
                break
            turn = batches[first : first + accelerator.num_processes]
            maker.make(turn, missing)
            advance(sum(map(len, turn)))
    trainer.foundation.unload_vae()
    if any(gather_object([stopped])):
        raise EvaluationStopped
    return files


class _Maker:
    """Makes batches of samples on the ranks and writes them."""

    def __init__(
        self, trainer: Trainer, settings: GenerationSettings, wishes: Sequence[Wish], files: Sequence[Path]
    ) -> None:
        self._trainer, self._settings, self._wishes, self._files = trainer, settings, wishes, files
        self._records = Records(trainer.config, trainer.samples)

    def make(self, batches: Sequence[Sequence[int]], missing: set[int]) -> None:
        """Each rank its own of at most as many batches as there are ranks; files that are there stay."""
        rank = self._trainer.accelerator.process_index
        if rank < len(batches):
            pixels = self._sample(batches[rank])
            for index, (image,) in zip(batches[rank], to_images(pixels), strict=True):
                if index in missing:
                    beside = self._files[index].with_suffix(".partial")
                    image.save(beside, format="PNG", compress_level=1)
                    beside.replace(self._files[index])
        elif _is_sharded(self._trainer):
            self._sample(batches[0])  # every rank has a part of the model, and the others need it

    def _sample(self, indices: Sequence[int]) -> Tensor:
        """`(b, 1, 3, H, W)` in [0, 1]."""
        settings, (width, height) = self._settings, self._wishes[indices[0]].size
        pixels = self._trainer.foundation.generate(
            [self._records.prompt(self._wishes[index].caption).read() for index in indices],
            self._records.prompt(EMPTY_PROMPT).read(),
            SampleSettings(
                height,
                width,
                settings.steps,
                settings.guidance,
                tuple(image_seed(settings.seed, index) for index in indices),
                guidance_interval=settings.guidance_interval,
            ),
        )
        if not pixels.isfinite().all():
            raise ValueError(
                f"The model's samples of step {self._trainer.step} are not finite. Take an earlier checkpoint, lower "
                "evaluation_guidance, or use another mixed_precision."
            )
        return pixels


def _identity(trainer: Trainer, settings: GenerationSettings, wishes: Sequence[Wish]) -> dict[str, Any]:
    """All that decides the samples, as JSON."""
    config, sampling = trainer.config, asdict(settings)
    del sampling["batch_size"]
    return {
        "model": config.pretrained_model_name_or_path,
        "step": trainer.step,
        "weights": _fingerprint(trainer),
        "precision": config.mixed_precision,
        "prediction_type": trainer.foundation.prediction_type,
        "scheduler": dict(trainer.foundation.scheduler_facts),
        "captions": _hash([(wish.caption, wish.size) for wish in wishes]),
        **sampling,
    }


def _fingerprint(trainer: Trainer) -> str:
    """A hash of the trained weights as they are now; of all ranks' parts where they are sharded."""
    digest = blake2b(digest_size=16)
    for parameter in trainer.parameters:
        digest.update(_bytes_of(parameter))
    return _hash(sorted(set(gather_object([digest.hexdigest()]))))


def _bytes_of(parameter: nn.Parameter) -> bytes:
    local = getattr(parameter, "to_local", None)  # of a sharded one
    tensor = parameter.detach() if local is None else local().detach()
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _hash(content: object) -> str:
    return blake2b(json.dumps(content, sort_keys=True, default=str).encode(), digest_size=6).hexdigest()


def _prepare(trainer: Trainer, folder: Path, files: Sequence[Path], identity: dict[str, Any]) -> set[int]:
    """Makes the folder, and finds the indices of the files that are missing or torn; the same on every rank."""
    found: list[Any] = [None]
    if trainer.accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.glob("*.partial"):
            partial.unlink()
        (folder / SETTINGS_FILE).write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
        found = [{index for index, file in enumerate(files) if not _is_intact(file)}]
    broadcast_object_list(found)
    return found[0]


def _is_intact(file: Path) -> bool:
    """Whether the file is a whole PNG, by its checksums; a name is given last, but a disk may have lost the content."""
    try:
        with Image.open(file) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for broken files
        return False
    return True


def _is_sharded(trainer: Trainer) -> bool:
    return trainer.accelerator.distributed_type is DistributedType.FSDP


def _stops(trainer: Trainer, is_stopping: Callable[[], bool]) -> bool:
    """Whether to give up: each rank for itself, but all alike where they need each other."""
    return any(gather_object([is_stopping()])) if _is_sharded(trainer) else is_stopping()


def refuse_what_cannot_be_sampled(trainer: Trainer) -> None:
    """Raises ValueError where the family makes no images, or can't guide within an interval."""
    foundation, config = trainer.foundation, trainer.config
    if foundation.family.media != "image":
        raise ValueError(
            f"model_family is {foundation.NAME}, which makes clips, and only images are evaluated: set "
            "eval_steps_interval to 0."
        )
    if config.evaluation_guidance_interval is not None and not foundation.GUIDES_IN_INTERVALS:
        raise ValueError(
            f"evaluation_guidance_interval is set, but the pipeline of {foundation.NAME} can't guide a part of the "
            "steps only. Remove the option."
        )
