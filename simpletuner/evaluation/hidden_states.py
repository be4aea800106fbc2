"""Hidden states of a run's model after its blocks, at chosen noise levels, and the teacher's tokens of the same images.

Every run is asked alike: the same images, cached latents, noise and noise levels, and the empty prompt, so that what a
hidden state tells of an image was seen in it and not read in its caption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simpletuner.configuration.paths import local_path
from simpletuner.helpers.data.dataset import TrainingDataset, collate
from simpletuner.helpers.data.sampler import Draw
from simpletuner.helpers.data.samples import Sample
from simpletuner.helpers.models.common import Batch, ModelFoundation, ModelTypes
from simpletuner.helpers.training.alignment.feature_cache import unpack
from simpletuner.helpers.training.alignment.geometry import TokenGrid, split_frames, to_tokens
from simpletuner.helpers.training.crepa import mid_block_offset
from simpletuner.helpers.training.objectives import DiscreteDiffusion, FlowMatching, Objective
from simpletuner.helpers.training.trainer import Trainer
from simpletuner.helpers.utils.hidden_state_buffer import HiddenStateBuffer, TransformerBlockCapture, layer_key

Read = Callable[[Batch], dict[str, Tensor]]
BATCHES_AT_ONCE = 4  # of the training's size: nothing is kept for a backward pass


# Blocks


def block_names(foundation: ModelFoundation) -> list[str]:
    """The blocks in the order in which they run: `down_0` .. `mid` .. `up_3` of a UNet, `block_0` .. of others."""
    if foundation.MODEL_TYPE is ModelTypes.UNET:
        return list(_unet_modules(foundation.unwrap_model()))
    return [f"block_{index}" for index in range(len(foundation.blocks))]


def aligned_blocks(foundation: ModelFoundation) -> dict[str, str]:
    """The blocks that an alignment reads, or would read, by the name that its options have for them."""
    if foundation.MODEL_TYPE is not ModelTypes.UNET:
        return {str(foundation.tap): f"block_{foundation.tap}"}
    last = len(foundation.unwrap_model().down_blocks) - 1
    places = {"mid": "mid", "enc_last": f"down_{last}", "dec_first": "up_0"}
    return {layer: places[layer] for layer in foundation.config.urepa.align_layers}


def _unet_modules(unet: Any) -> dict[str, nn.Module]:
    """The last ResNet of every level, before it is made smaller or larger."""
    down = {f"down_{index}": block.resnets[-1] for index, block in enumerate(unet.down_blocks)}
    up = {f"up_{index}": block.resnets[-1] for index, block in enumerate(unet.up_blocks)}
    return down | {"mid": unet.mid_block.resnets[-1]} | up


@contextmanager
def reading_blocks(foundation: ModelFoundation, blocks: Sequence[str]) -> Iterator[Read]:
    """Gives a function from a prepared batch to the hidden states after `blocks`.

    They are maps `(B, C, H, W)` of a UNet and tokens `(B, S, D)` of a transformer. The hooks are gone afterwards.

    Raises:
        ValueError: the model has no such block.
    """
    known = block_names(foundation)
    for name in blocks:
        if name not in known:
            raise ValueError(f"This {foundation.NAME} has no block {name!r}; it has {', '.join(known)}.")
    model = foundation.unwrap_model()
    if foundation.MODEL_TYPE is ModelTypes.UNET:
        states: dict[str, Tensor] = {}
        modules = _unet_modules(model)
        handles = [modules[name].register_forward_hook(_keeping(states, name)) for name in blocks]

        def read(batch: Batch) -> dict[str, Tensor]:
            states.clear()
            foundation.forward(batch)
            return dict(states)

        try:
            yield read
        finally:
            for handle in handles:
                handle.remove()
        return
    indices = [known.index(name) for name in blocks]
    capture = TransformerBlockCapture(model, foundation.blocks, foundation.select_tokens, HiddenStateBuffer(indices))

    def read_tokens(batch: Batch) -> dict[str, Tensor]:
        with capture as buffer:
            foundation.forward(batch)
        return {name: buffer[layer_key(index)] for name, index in zip(blocks, indices, strict=True)}

    try:
        yield read_tokens
    finally:
        capture.remove()


def _keeping(states: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        states[name] = output

    return hook


# Noise


def noised(batch: Batch, objective: Objective, level: float) -> Batch:
    """A prepared batch with its own noise at one level for all samples.

    Args:
        level: share of the noise schedule, in (0, 1): sigma of flow matching, else the timestep over their number.
    """
    latents, noise, steps = batch["latents"], batch["noise"], objective.num_train_timesteps
    count, device = len(latents), latents.device
    if isinstance(objective, FlowMatching):
        sigmas = torch.full((count,), level, device=device)
        return batch | {
            "sigmas": sigmas,
            "timesteps": sigmas * steps,
            "noisy_latents": torch.lerp(latents, noise, level),
        }
    assert isinstance(objective, DiscreteDiffusion)
    timesteps = torch.full((count,), min(round(level * steps), steps - 1), device=device)
    return batch | {
        "timesteps": timesteps,
        "noisy_latents": objective.scheduler.add_noise(latents, noise, timesteps),
    }


@torch.no_grad()
def forwards(
    trainer: Trainer, samples: Sequence[Sample], blocks: Sequence[str], *, level: float, seed: int = 0
) -> Iterator[tuple[list[int], Batch, dict[str, Tensor]]]:
    """Runs the model on samples; gives their rows in `samples`, the batch, and the hidden states, batch by batch.

    A sample's noise depends on `(seed, row)` alone, whatever it is batched with.
    """
    foundation, config = trainer.foundation, trainer.config
    # Dropping every caption asks the data set for the empty prompt.
    dataset = TrainingDataset(samples, config.model_copy(update={"caption_dropout_probability": 1.0}))
    with reading_blocks(foundation, blocks) as read:
        for rows in _batched(samples, BATCHES_AT_ONCE * config.train_batch_size):
            batch = collate([dataset[Draw(row, 0)] for row in rows])
            batch["text"] = foundation.collate_text(batch["text"])
            prepared = foundation.prepare_batch(batch, step=0, rows=rows, seed=seed)
            prepared = noised(prepared, foundation.objective, level)
            yield rows, prepared, read(prepared)


def _batched(samples: Sequence[Sample], size: int) -> Iterator[list[int]]:
    """Rows in batches of one bucket."""
    ordered = sorted(range(len(samples)), key=lambda row: samples[row].bucket)
    for _, group in groupby(ordered, key=lambda row: samples[row].bucket):
        rows = list(group)
        yield from (rows[first : first + size] for first in range(0, len(rows), size))


# What is measured on


def block_features(
    trainer: Trainer, samples: Sequence[Sample], *, level: float, blocks: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Hidden states after each block, averaged over tokens: `(n, D)` by the block's name, fp32, on the CPU.

    Args:
        level: see `noised`. blocks: None takes all. seed: of the noise.

    Raises:
        ValueError: the model has no such block.
        DatasetError: a cache record is missing or damaged.
    """
    names = block_names(trainer.foundation) if blocks is None else list(blocks)
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    order: list[int] = []
    for rows, _, states in forwards(trainer, samples, names, level=level, seed=seed):
        order += rows
        for name, state in states.items():
            found[name].append(state.float().mean((2, 3) if state.ndim == 4 else 1).cpu())
    places = torch.tensor(order).argsort()
    return {name: torch.cat(parts)[places] for name, parts in found.items()}


def block_tokens(
    trainer: Trainer, samples: Sequence[Sample], block: str, *, level: float, seed: int = 0
) -> tuple[list[Tensor], list[TokenGrid]]:
    """The tokens `(T, N, D)` of each sample after one block, fp32, on the CPU, and their grids."""
    found: dict[int, tuple[Tensor, TokenGrid]] = {}
    for rows, batch, states in forwards(trainer, samples, [block], level=level, seed=seed):
        tokens, grid = _with_grid(trainer.foundation, states[block], batch)
        found |= {row: (one.float().cpu(), grid) for row, one in zip(rows, tokens, strict=True)}
    ordered = [found[row] for row in range(len(samples))]
    return [tokens for tokens, _ in ordered], [grid for _, grid in ordered]


def _with_grid(foundation: ModelFoundation, states: Tensor, batch: Batch) -> tuple[Tensor, TokenGrid]:
    """Tokens `(B, T, N, D)` and their grid, of maps or tokens."""
    if states.ndim == 4:
        grid = TokenGrid(1, states.shape[-2], states.shape[-1], mid_block_offset(foundation.unwrap_model()))
        return to_tokens(states, 1), grid
    grid = foundation.student_grid(batch["latents"])
    return split_frames(states, grid), grid


@dataclass(frozen=True)
class TeacherTokens:
    """The teacher's tokens `(T, N, D)` of some samples, and their grids, one each."""

    name: str
    tokens: list[Tensor]
    grids: list[TokenGrid]

    @property
    def pooled(self) -> Tensor:
        """Averaged over tokens, `(n, D)`."""
        return torch.stack([tokens.float().flatten(0, 1).mean(0) for tokens in self.tokens])


def teacher_tokens(trainer: Trainer, samples: Sequence[Sample]) -> TeacherTokens:
    """What the teacher of an aligned run says of samples: from the run's cache, or else of their real pixels.

    Raises:
        ValueError: the run has no encoder for a teacher.
    """
    foundation, regularizer = trainer.foundation, trainer.foundation.alignment
    if regularizer is None or foundation.teacher_is_backbone:
        raise ValueError(
            "An aligned run has no encoder to compare with: its alignment is off, or a block of the model is its "
            "teacher. Name a run with urepa_enabled or crepa_enabled first."
        )
    encoder, cache = regularizer.options.encoder, foundation.features
    name = Path(encoder).name if local_path(encoder).exists() else encoder
    if cache is not None:
        return TeacherTokens(
            name,
            [unpack(cache.record(sample).read()) for sample in samples],
            [cache.grid(sample) for sample in samples],
        )
    teacher = regularizer.teacher
    if teacher.needs_statistics:
        teacher.standardise(trainer.statistics_batches())
    tokens, grids = [], []
    for sample in samples:
        pixels = sample.pixels(foundation.frame_indices(sample.latent_frames))[None]
        student_grid = foundation.sample_grid(sample.bucket, sample.latent_frames)
        features, grid = teacher.encode(pixels, student_grid=student_grid, scale=foundation.teacher_scale)
        tokens.append(features[0].cpu())
        grids.append(grid)
    return TeacherTokens(name, tokens, grids)


@torch.no_grad()
def projected_similarity(
    trainer: Trainer, samples: Sequence[Sample], teacher: TeacherTokens, *, level: float, seed: int = 0
) -> float | None:
    """The run's own similarity, the mean cosine of projected tokens and the teacher's; None where its loss is off."""
    foundation, regularizer = trainer.foundation, trainer.foundation.alignment
    if regularizer is None or foundation.teacher_is_backbone:
        return None
    layers, total = aligned_blocks(foundation), 0.0
    for rows, batch, states in forwards(trainer, samples, list(layers.values()), level=level, seed=seed):
        hidden = {layer: states[block] for layer, block in layers.items()}
        first = next(iter(hidden.values()))
        is_unet = foundation.MODEL_TYPE is ModelTypes.UNET
        tokens = torch.stack([teacher.tokens[row] for row in rows]).to(first.device)
        _, logs = regularizer.compute_loss(
            hidden if is_unet and len(hidden) > 1 else first,
            frame_features=tokens,
            grid=None if is_unet else foundation.student_grid(batch["latents"]),
            feature_grid=teacher.grids[rows[0]],
            step=trainer.step,
        )
        if logs is None:
            return None
        total += float(logs[f"{regularizer.prefix}_similarity"]) * len(rows)
    return total / len(samples)
