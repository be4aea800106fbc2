"""The part of the checklist about the alignment: its weight, taps, projector and teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from simpletuner.configuration.alignment import AlignmentOptions
from simpletuner.helpers.data.samples import Sample
from simpletuner.helpers.training.alignment.feature_cache import TOKENS
from simpletuner.helpers.training.alignment.geometry import TokenGrid, teacher_input_size
from simpletuner.helpers.training.checklist_words import Check, told_count, told_grid, told_shape

if TYPE_CHECKING:
    from simpletuner.helpers.training.trainer import Trainer


def alignment_checks(trainer: Trainer, batch: dict[str, Any]) -> Iterator[Check]:
    """The lines about REPA, CREPA or U-REPA, where a run has it; `batch` is the first one."""
    regularizer = trainer.foundation.alignment
    if regularizer is None:
        return
    options, method = regularizer.options, trainer.foundation.family.alignment
    if regularizer.finished:
        reason = f"{options.key('lambda_')} is 0" if options.is_zero else "it has ended"
        yield Check(method, f"off: {reason}")
        return
    yield Check(method, _coefficient(options))
    yield _taps(trainer)
    yield _projector(trainer)
    yield _teacher(trainer, batch, options)


def _coefficient(options: AlignmentOptions) -> str:
    parts = [f"weight {options.lambda_:g}"]
    if options.warmup_steps:
        parts.append(f"warm-up until step {options.warmup_steps}")
    if options.scheduler != "constant":
        length = f"{options.decay_steps} steps" if options.decay_steps else "the rest of the run"
        parts.append(f"{options.scheduler} to {options.lambda_end:g} over {length}")
    if options.cutoff_step:
        parts.append(f"off from step {options.cutoff_step}")
    if options.similarity_threshold is not None:
        parts.append(f"off at a similarity of {options.similarity_threshold:g}")
    if options.plateau_stop:
        parts.append("off at a plateau")
    manifold = getattr(options, "manifold_weight", 0)
    if manifold:
        parts.append(f"manifold of {getattr(options, 'manifold_scope', '')}s × {manifold:g}")
    return ", ".join(parts)


def _taps(trainer: Trainer) -> Check:
    """The hooked modules, by the names of their layers."""
    foundation = trainer.foundation
    hooked = foundation.hooked_modules()
    wanted = [str(layer) for layer in foundation.buffer.layers]
    missing = [layer for layer in wanted if layer not in hooked]
    value = ", ".join(f"{layer} ({hooked[layer]})" for layer in wanted if layer in hooked)
    if hooked:
        sample = _first_sample(trainer)
        value += f", {told_grid(foundation.sample_grid(sample.bucket, sample.latent_frames))} tokens"
    if missing:
        value = f"{value + '; ' if value else ''}no hook on {', '.join(missing)}"
    return Check("taps", value, not missing, "A hook was removed after the model was loaded: keep it.")


def _projector(trainer: Trainer) -> Check:
    """Its widths as its weights have them, and whether the optimizer trains it."""
    foundation = trainer.foundation
    assert foundation.alignment is not None and foundation.alignment.projector is not None
    projector, options = foundation.alignment.projector, foundation.alignment.options
    teacher_width = foundation.alignment.teacher_width
    heads = list(projector.values()) if isinstance(projector, nn.ModuleDict) else [projector]
    parameters = [parameter for head in heads for parameter in head.parameters()]
    kind = "conv" if foundation.alignment.irepa.enabled else options.projector
    widths = {width for width in map(_widths, heads) if width is not None}
    shown = "".join(f" {width[0]} → {width[1]}" for width in widths)
    several = f"{len(heads)} × " if len(heads) > 1 else ""
    mends = []
    if not widths <= {(foundation.hidden_size, teacher_width)}:
        mends.append(f"It must be {foundation.hidden_size} → {teacher_width}.")
    optimised = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    if not all(parameter.requires_grad and id(parameter) in optimised for parameter in parameters):
        mends.append("Some of its parameters are frozen or not in the optimizer: it would stay as it was drawn.")
    count = told_count(sum(parameter.numel() for parameter in parameters))
    value = f"{several}{kind}{shown}, {count} parameters, {'not all trained' if mends else 'trained'}"
    return Check("projector", value, not mends, " ".join(mends))


def _widths(head: nn.Module) -> tuple[int, int] | None:
    """From what width to what width a projector maps, by its weights; None for one without any."""
    weights = [parameter for parameter in head.parameters() if parameter.ndim >= 2]
    return (weights[0].shape[1], weights[-1].shape[0]) if weights else None


def _teacher(trainer: Trainer, batch: dict[str, Any], options: AlignmentOptions) -> Check:
    """Which encoder it is, and whether what is cached of it has the grid and the width that it must have."""
    foundation = trainer.foundation
    assert foundation.alignment is not None
    width = foundation.alignment.teacher_width
    if foundation.teacher_is_backbone:
        return Check("teacher", f"block {trainer.config.crepa.teacher_block_index} of the model itself, width {width}")
    if foundation.feature_source is not None:
        return Check("teacher", f"features from elsewhere, width {width}")
    if "features" not in batch:
        grid = _encoded_grid(trainer)
        return Check("teacher", f"{options.encoder}, width {width}, {told_grid(grid)} tokens, encoded in every step")
    tokens: Tensor = batch["features"][TOKENS]
    grid = batch["feature_grid"]
    fits = tuple(tokens.shape[1:]) == (grid.frames, grid.tokens_per_frame, width)
    kept: list[str] = [options.feature_cache_dtype]
    kept += ["unit length"] * options.feature_cache_normalized
    kept += ["whitened"] * (options.feature_cache_dim is not None)
    value = f"{options.encoder}, width {width}, {told_grid(grid)} tokens, cached ({', '.join(kept)})"
    if not fits:
        value += f", but the first batch has features of shape {told_shape(tokens)}"
    return Check("teacher", value, fits, "Run `simpletuner cache --rebuild` with this configuration.")


def _encoded_grid(trainer: Trainer) -> TokenGrid:
    """The grid at which the teacher will see the first batch."""
    foundation, sample = trainer.foundation, _first_sample(trainer)
    assert foundation.alignment is not None
    teacher = foundation.alignment.teacher
    height, width = teacher_input_size(
        sample.bucket.height,
        sample.bucket.width,
        patch=teacher.encoder.patch,
        image_size=teacher.image_size,
        student_grid=foundation.sample_grid(sample.bucket, sample.latent_frames),
        scale=foundation.teacher_scale,
        native_size=teacher.encoder.native_size,
    )
    patch = teacher.encoder.patch
    return TokenGrid(len(foundation.frame_indices(sample.latent_frames)), height // patch, width // patch)


def _first_sample(trainer: Trainer) -> Sample:
    return trainer.samples[next(iter(trainer.sampler))[0].sample]


def layersync_checks(trainer: Trainer) -> Iterator[Check]:
    """The line about LayerSync, where a run has it."""
    if trainer.foundation.layersync_regularizer is not None:
        options = trainer.config.layersync
        value = f"weight {options.lambda_:g}, block {options.student_block} toward block {options.teacher_block}"
        yield Check("LayerSync", value)
