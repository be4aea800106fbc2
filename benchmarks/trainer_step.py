"""The trainer's step against a bare loop of PyTorch on the same model, and what reading cached features adds to it.

python benchmarks/trainer_step.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from figures import Figure, machine_ready, run_alone
from runs import make_images, pixel_dit_config, write_pixel_dit, write_teacher
from torch import Tensor, nn

from simpletuner.helpers.data.dataset import TrainingDataset, training_batches
from simpletuner.helpers.training.trainer import Trainer

SIDE, PATCH, BATCH = 32, 2, 4
STEPS = {"cpu": 16, "cuda": 200}
IMAGES = 64
WARMUP = 3


def measure(device: torch.device) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        listing = make_images(root / "images", IMAGES, SIDE)
        write_pixel_dit(root / "model", side=SIDE, patch=PATCH)
        return [_bare_loop(root, listing, device), *_reading(root, listing, device)]


def _bare_loop(root: Path, listing: Path, device: torch.device) -> Figure:
    """Both steps in turns: the bare one is taken between two of the trainer's."""
    steps = STEPS[device.type]
    config = pixel_dit_config(root, listing, SIDE, train_batch_size=BATCH, max_train_steps=steps, max_workers=0)
    trainer = Trainer(config, live=False)
    trainer.setup()
    bare = _BareStep(root, device)
    seconds: dict[str, list[float]] = {"trainer": [], "bare": []}
    since = time.perf_counter()

    def on_step(_: Trainer) -> None:
        nonlocal since
        machine_ready(device)
        between = time.perf_counter()
        bare()
        machine_ready(device)
        now = time.perf_counter()
        seconds["trainer"].append(between - since)
        seconds["bare"].append(now - between)
        since = now

    trainer.run(on_step)
    pairs = list(zip(seconds["trainer"], seconds["bare"], strict=True))[WARMUP:]
    times = ", ".join(f"{name} {1000 * statistics.median(s[WARMUP:]):.0f} ms" for name, s in seconds.items())
    return Figure(
        "the trainer's step / a bare loop's, no alignment",
        statistics.median(one / other for one, other in pairs),
        at_most=1.05,
        floor=1.0,
        note=f"{times}; DiT of 12 blocks × 384, 256 tokens, batch {BATCH}, reading its data in the step",
    )


class _BareStep:
    """Forward, loss, backward, clip and AdamW on a batch at hand: the least that any loop does."""

    def __init__(self, root: Path, device: torch.device) -> None:
        from diffusers import DiTTransformer2DModel

        kind: Any = DiTTransformer2DModel
        self._device = device
        self._model: nn.Module = kind.from_config(kind.load_config(root / "model", subfolder="transformer")).to(device)
        self._model.train()
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-4)
        self._images = torch.rand(BATCH, 3, SIDE, SIDE, device=device)
        self._labels = torch.zeros(BATCH, dtype=torch.long, device=device)

    def __call__(self) -> None:
        noise, time_ = torch.randn_like(self._images), torch.rand(BATCH, device=self._device)
        mixed = torch.lerp(self._images, noise, time_[:, None, None, None])
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            output: Tensor = self._model(mixed, timestep=1000 * time_, class_labels=self._labels).sample
        loss = nn.functional.mse_loss(output.float(), noise - self._images)
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()


def _reading(root: Path, listing: Path, device: torch.device) -> list[Figure]:
    """Training with a teacher of width 768 on 256 tokens: how long a step waits for its batch."""
    encoder = write_teacher(root / "teacher", "vit_base_patch14_dinov2")
    steps = STEPS[device.type]
    config = pixel_dit_config(
        root,
        listing,
        SIDE,
        train_batch_size=BATCH,
        max_train_steps=steps,
        max_workers=1,
        crepa_enabled=True,
        crepa_encoder=str(encoder),
        crepa_encoder_image_size="auto",
    ).model_copy(update={"output_dir": str(root / "aligned")})
    trainer = Trainer(config, live=False)
    trainer.setup()
    waits, wholes = [], []
    batches, since = trainer.batches(), time.perf_counter()
    for _ in range(steps):
        started = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - started)
        trainer.foundation.unwrap_model().zero_grad()
        trainer._forward_backward(batch, 0)
        machine_ready(device)
        now = time.perf_counter()
        wholes.append(now - since)
        since = now
    batches.close()
    speed, ceiling = _records_a_second(trainer)
    step = statistics.median(wholes[WARMUP:])
    return [
        Figure(
            "wait for a batch with cached features / step (1 worker)",
            sum(waits[WARMUP:]) / sum(wholes[WARMUP:]),
            at_most=0.01,
            floor=0.0,
            note=f"step {1000 * step:.0f} ms; all waits together, epochs' starts too",
        ),
        Figure(
            "reading samples with features of 256 × 768 in bf16, page cache warm",
            speed,
            "records/s",
            floor=ceiling,
            note="the floor copies a batch's bytes once",
        ),
        Figure(
            "the reader's time / step",
            BATCH / speed / step,
            at_most=1.0,
            floor=BATCH / ceiling / step,
            note="below 1 it is hidden behind the step",
        ),
    ]


def _records_a_second(trainer: Trainer) -> tuple[float, float]:
    """Through the DataLoader, latents and text with them, in this process; and at the speed of copying their bytes."""
    dataset = TrainingDataset(trainer.samples, trainer.config, features=trainer.foundation.features)
    batches = training_batches(dataset, trainer.sampler, trainer.foundation.collate_text, max_workers=0)
    batch = next(batches)
    count = 40
    started = time.perf_counter()
    for _ in range(count):
        next(batches)
    read = time.perf_counter() - started
    batches.close()
    held = [batch["latents"], *batch["text"].values(), *batch["features"].values()]
    contents = torch.zeros(sum(tensor.nbytes for tensor in held), dtype=torch.uint8)
    started = time.perf_counter()
    for _ in range(count):
        contents.clone()
    copied = time.perf_counter() - started
    return count * BATCH / read, count * BATCH / copied


if __name__ == "__main__":
    run_alone(measure, __doc__)
