"""What REPA, CREPA and U-REPA share: aligning a diffusion model's hidden states with a frozen encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from simpletuner.configuration.alignment import AlignmentOptions, IrepaOptions, read_options
from simpletuner.configuration.coefficient import planned_schedule
from simpletuner.helpers.training.alignment.eager import CHUNKS, differentiated
from simpletuner.helpers.training.alignment.encoders import width_of_encoder
from simpletuner.helpers.training.alignment.geometry import (
    TokenGrid,
    meeting_grid,
    pixel_frames_of_latents,
    resample_tokens,
    split_frames,
    square_grid,
)
from simpletuner.helpers.training.alignment.losses import spatial_norm
from simpletuner.helpers.training.alignment.pixels import decode_latents
from simpletuner.helpers.training.alignment.projectors import GridProjector, make_projector, project
from simpletuner.helpers.training.alignment.schedule import AlignmentScheduler, Plateau, SimilarityMeter
from simpletuner.helpers.training.alignment.teachers import Teacher, make_teacher

Logs = dict[str, Tensor]
MEASURE_EVERY = 10  # steps between two measurements of the similarity while a recoverable cutoff holds
Options = TypeVar("Options", bound=AlignmentOptions)


class CrepaMode(Enum):
    """Whether a sample is one image or a clip."""

    IMAGE = "image"
    VIDEO = "video"


class AlignmentRegularizer(Generic[Options]):
    """What REPA, CREPA and U-REPA share: options, projector, teacher, coefficient.

    Args:
        config: any object with the option names as attributes; a missing one, or None, means the default.
        accelerator: gives the device; None takes the model's, when it is attached.
        hidden_size: D, the width of the student's hidden states.
        model_foundation: gives the mode, and decodes latents where neither features nor pixels are passed.
        max_train_steps: length of the run; decays "for the rest of the run" and the plateau rule need it.

    Raises:
        ValueError: an option has a value that it can't have; the message names it.
    """

    OPTIONS: type[Options]
    TEACHER_SCALE = 1  # rows and columns of the teacher's grid to the student's where encoder_image_size is "auto"
    _frames_batch_size = -1  # images that the teacher encodes at once; -1 all

    def __init__(
        self,
        config: object,
        accelerator: Any,
        hidden_size: int,
        *,
        model_foundation: Any = None,
        max_train_steps: int = 0,
    ) -> None:
        self.options = read_options(self.OPTIONS, config)
        self.irepa = read_options(IrepaOptions, config)
        self.prefix = self.OPTIONS.PREFIX
        self._follows_model = accelerator is None
        self.device = torch.device("cpu") if accelerator is None else accelerator.device
        self.hidden_size = hidden_size
        self.foundation = model_foundation
        self.mode: CrepaMode = getattr(model_foundation, "crepa_mode", CrepaMode.IMAGE)
        self.scheduler = _make_scheduler(self.options, max_train_steps)
        self.projector: nn.Module | None = None
        self._teacher: Teacher | None = None
        self._meter = SimilarityMeter()
        self._step = 0
        self._measured: int | None = None  # the last step whose similarity was measured
        self._pixels_seen = False  # whether pixels were found usable once
        self._attached_to: nn.Module | None = None

    @property
    def enabled(self) -> bool:
        return self.options.enabled

    @property
    def teacher(self) -> Teacher:
        """The frozen encoder, loaded when it is first asked for."""
        if self._teacher is None:
            with self._naming_the_encoder():
                self._teacher = make_teacher(
                    self.options.encoder,
                    image_size=self.options.encoder_image_size,
                    frames_batch_size=self._frames_batch_size,
                    device=self.device,
                )
        return self._teacher

    @teacher.setter
    def teacher(self, teacher: Teacher) -> None:
        self._teacher = teacher

    @contextmanager
    def _naming_the_encoder(self) -> Iterator[None]:
        """What is wrong with the encoder is told under the name of its option."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self.options.key('encoder')}: {error}") from error

    @property
    def _chunks(self) -> int:
        """How many parts a batch is compared in; see `differentiated`."""
        return CHUNKS

    @property
    def teacher_width(self) -> int:
        """D_teacher, which the projector maps to; the foundation knows it where features are cached."""
        cached = getattr(self.foundation, "feature_width", None)
        if cached is not None:
            return cached
        if self._teacher is not None:
            return self._teacher.width
        whitened = self.options.feature_cache_dim
        if whitened is not None and self.options.is_zero and self._would_read_a_cache:
            return whitened
        with self._naming_the_encoder():
            return width_of_encoder(self.options.encoder)  # loaded only where it has to encode

    @property
    def _would_read_a_cache(self) -> bool:
        """Whether the features of a trainer's cache come here, were it not for a weight of 0."""
        return self.foundation is not None and self.options.caches_features

    @property
    def projector_name(self) -> str:
        """The attribute of the model that holds the projector."""
        return f"{self.prefix}_projector"

    def attach_to_model(self, model: nn.Module) -> Self:
        """Makes the projector, unless the caller has set one, and registers it as `model.{prefix}_projector`.

        Its parameters are then among the model's: do this before making the optimizer, and after freezing the model
        for LoRA. Returns the regularizer itself.
        """
        if self.projector is None:
            self.projector = self._make_projector()
        if self._follows_model:
            self.device = next((parameter.device for parameter in model.parameters()), self.device)
        self.projector.to(self.device).requires_grad_(True)
        model.add_module(self.projector_name, self.projector)
        self._attached_to = model
        return self

    def _make_projector(self) -> nn.Module:
        kind = "conv" if self.irepa.enabled else self.options.projector
        return make_projector(
            kind,
            self.hidden_size,
            self.teacher_width,
            width=self.options.projector_width,
            kernel_size=self.irepa.projector_kernel_size,
        )

    def detach_from_model(self) -> None:
        """Unregisters the projector from the model, so that no wrapper, state dict or export sees it.

        The caller trains it on: its parameters in the optimizer, their gradients averaged over ranks.
        """
        if self._attached_to is not None:
            delattr(self._attached_to, self.projector_name)
            self._attached_to = None

    @property
    def finished(self) -> bool:
        """Whether the loss is off for good: nothing of it is needed any more but its place in checkpoints."""
        return not self.enabled or self.scheduler.finished(self._step)

    def wants_hidden_states(self, step: int | None = None) -> bool:
        """Whether a step needs the student's hidden states; without `step`, the one that has begun.

        False once the loss is off for good; while a recoverable cutoff holds, True in one step of `MEASURE_EVERY`.
        """
        if step is not None:
            self.begin_step(step)
        if self.finished or not self.scheduler.is_cut_off(self._step):
            return not self.finished
        since = None if self._measured is None else self._step - self._measured
        return since is None or since == 0 or since >= MEASURE_EVERY

    def compute_loss(
        self,
        hidden_states: Tensor | Mapping[str, Tensor] | None,
        latents: Tensor | None = None,
        vae: Any = None,
        *,
        frame_features: Tensor | None = None,
        grid: TokenGrid | None = None,
        feature_grid: TokenGrid | None = None,
        pixels: Tensor | None = None,
        step: int = 0,
    ) -> tuple[Tensor | None, Logs | None]:
        """The weighted alignment loss of one micro-step; call it in every step, with the step's number.

        Args:
            hidden_states: the student's tokens `(B, S, D)` or `(B, T, N, D)`, or a UNet's maps `(B, C, H, W)`; several
                UNet layers by name are averaged. None where `wants_hidden_states` is False.
            latents, vae: decoded to pixels where neither features nor pixels are given.
            frame_features: the teacher's tokens `(B, T, N, D_teacher)` or `(B, N, D_teacher)`.
            grid: the student's token grid; without it an image's token count must be a square.
            feature_grid: the grid of `frame_features`.
            pixels: `(B, T, 3, H, W)` in [0, 1], or `(B, 3, H, W)`; encoded by the teacher.
            step: 0-based optimizer step.

        Returns:
            The loss to add and its logs (detached, on the device); `(None, None)` when the loss is off. While a
            recoverable cutoff holds, `(None, logs)` in the steps in which the similarity is measured.
        """
        was_wanted = self.wants_hidden_states()  # what a loop was told that asked before this step began
        self.begin_step(step)
        if not self.wants_hidden_states():
            return self._idle(), None
        if hidden_states is None and not was_wanted:
            return self._idle(), None
        if hidden_states is None:
            raise ValueError(f"{self.prefix}: hidden_states is None although wants_hidden_states() is True.")
        if self.projector is None:
            raise RuntimeError(f"{self.prefix}: there is no projector yet; call attach_to_model(model) first.")
        measure_only = self.scheduler.is_cut_off(step)
        training = torch.is_grad_enabled()
        if training:
            self._require_trained_projector()
        # Nothing of the loss may fall to half precision, whatever autocast the caller is in.
        with torch.set_grad_enabled(training and not measure_only), torch.autocast(self.device.type, enabled=False):
            states, grid = self._student(hidden_states, grid, frame_features, feature_grid, pixels)
            teacher, feature_grid = self._teacher_tokens(grid, frame_features, feature_grid, pixels, latents, vae)
            weight = self.scheduler.coefficient(step)

            def weighted(rows: slice, *students: Tensor) -> tuple[Tensor, Logs]:
                layers = zip(students, states, strict=True)
                parts = [self._align(tokens, grid, teacher[rows], feature_grid, layer) for tokens, layer in layers]
                objective, similarity, logs = _average(parts)
                return weight * objective, logs | {"similarity": similarity}

            loss, logs = differentiated(
                weighted, list(states.values()), list(self.projector.parameters()), chunks=self._chunks
            )
        if training:  # cutoffs are about the training: an evaluation without gradient doesn't count
            self._meter.add(logs["similarity"])
            self._measured = step
        logs |= {
            "loss": loss.detach(),
            "weight": torch.tensor(weight),
            "cutoff": torch.tensor(float(measure_only)),
        }
        logs = {f"{self.prefix}_{name}": value for name, value in logs.items()}
        return (self._idle() if measure_only else loss), logs

    def _require_trained_projector(self) -> None:
        assert self.projector is not None
        parameters = list(self.projector.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            raise RuntimeError(
                f"{self.prefix}: the projector is frozen, so it would stay as it was drawn. Freeze the model first "
                "(LoRA), then attach_to_model(model), then make the optimizer."
            )

    def add_loss(
        self, loss: Tensor, hidden_states: Tensor | Mapping[str, Tensor] | None, **inputs: Any
    ) -> tuple[Tensor, Logs]:
        """`compute_loss` added to `loss`, which stays as it is when the alignment is off; and the logs.

        Args:
            inputs: the other arguments of `compute_loss`, by name.
        """
        part, logs = self.compute_loss(hidden_states, **inputs)
        return (loss if part is None else loss + part), ({} if logs is None else logs)

    def begin_step(self, step: int) -> None:
        """Tells which optimizer step begins, so that `wants_hidden_states` speaks of it; `compute_loss` does it too.

        The last step is closed; its similarity is acted on one step later.
        """
        if step == self._step:
            return
        ready = self._meter.close(self._step)
        if ready is not None:
            self.scheduler.observe(*ready)
        self._step = step
        if self.finished:
            self._teacher = None  # its memory is free again

    def _idle(self) -> Tensor | None:
        """None; under DDP a zero that touches the projector, without which the reducer would wait for it forever."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self._attached_to is None or self.projector is None or not distributed:
            return None
        return 0.0 * torch.stack([parameter.sum() for parameter in self.projector.parameters()]).sum()

    def _student(
        self,
        hidden_states: Tensor | Mapping[str, Tensor],
        grid: TokenGrid | None,
        features: Tensor | None,
        feature_grid: TokenGrid | None,
        pixels: Tensor | None,
    ) -> tuple[dict[str, Tensor], TokenGrid]:
        """Student tokens `(B, T, N, D)` by layer, and their grid."""
        layers, grid = self._as_tokens(self._layers(hidden_states), grid)
        if grid is None:
            grid = self._implied_grid(next(iter(layers.values())), features, feature_grid, pixels)
        return {layer: split_frames(tokens, grid) for layer, tokens in layers.items()}, grid

    def _layers(self, hidden_states: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Hidden states by the layer's name; as a `HiddenStateBuffer` has them, or one without a name."""
        if isinstance(hidden_states, Tensor):
            return {"": hidden_states}
        return {name.removeprefix("layer_"): states for name, states in hidden_states.items()}

    def _as_tokens(
        self, layers: dict[str, Tensor], grid: TokenGrid | None
    ) -> tuple[dict[str, Tensor], TokenGrid | None]:
        """Captured states as tokens, and their grid if their shape or the caller tells it."""
        return layers, grid

    def _implied_grid(
        self, tokens: Tensor, features: Tensor | None, feature_grid: TokenGrid | None, pixels: Tensor | None
    ) -> TokenGrid:
        """The grid of tokens that come without one: the teacher's if they are as many; else of an image a square.

        A clip has none, unless none is needed.
        """
        frames, count = tokens.shape[1:3] if tokens.ndim == 4 else (1, tokens.shape[1])
        if feature_grid is not None and tokens.ndim == 4 and count == feature_grid.tokens_per_frame:
            return TokenGrid(frames, feature_grid.height, feature_grid.width)
        if feature_grid is not None and tokens.ndim == 3 and count == feature_grid.tokens:
            return feature_grid
        if self.mode is CrepaMode.VIDEO:
            same = features is not None and features.ndim == tokens.ndim == 4 and features.shape[2] == count
            if same and feature_grid is None and not isinstance(self.projector, GridProjector):
                return TokenGrid(tokens.shape[1], 1, tokens.shape[2])  # compared token by token, wherever they lie
            raise ValueError(
                f"{self.prefix}: tokens of shape {tuple(tokens.shape)} don't say how they divide into frames; pass "
                "grid=TokenGrid(frames, height, width)."
            )
        sides = None if pixels is None else (pixels.shape[-2], pixels.shape[-1])
        if features is not None:
            sides = None if feature_grid is None else (feature_grid.height, feature_grid.width)
        if sides is not None and sides[0] != sides[1]:  # their number may be a square all the same: 2×8
            raise ValueError(
                f"{self.prefix}: the teacher sees {sides[0]}×{sides[1]}, which is no square, and {count} tokens of the "
                "student don't say how they lie; pass grid=TokenGrid(frames, height, width)."
            )
        return square_grid(count, frames=frames)

    def _teacher_tokens(
        self,
        grid: TokenGrid,
        features: Tensor | None,
        feature_grid: TokenGrid | None,
        pixels: Tensor | None,
        latents: Tensor | None,
        vae: Any,
    ) -> tuple[Tensor, TokenGrid]:
        """Teacher tokens `(B, T, N, D_teacher)`, without gradient, and their grid."""
        with torch.no_grad():
            if features is None:
                if pixels is None:
                    pixels = self._decode(latents, vae)
                self._require_usable(pixels, grid)
                features, feature_grid = self.teacher.encode(pixels, student_grid=grid, scale=self.TEACHER_SCALE)
            features = features.detach().to(self.device, non_blocking=True)
            if features.ndim == 3 and (feature_grid is None or feature_grid.frames == 1):
                features = features[:, None]
            if feature_grid is None:
                feature_grid = self._implied_feature_grid(features, grid)
        return split_frames(features, feature_grid), feature_grid

    def _require_usable(self, pixels: Tensor, grid: TokenGrid) -> None:
        """One picture for each of the student's frames, in [0, 1]; values are looked at once, as that takes a wait."""
        frames = pixels.shape[1] if pixels.ndim == 5 else 1
        if frames != grid.frames:
            raise ValueError(
                f"{self.prefix}: {frames} pixel frames for {grid.frames} frames of the student; pass one for each: the "
                "last pixel frame that a latent frame covers."
            )
        if not self._pixels_seen and float(pixels.amin()) < 0:
            raise ValueError(f"{self.prefix}: pixels are below 0; the teacher wants them in [0, 1], not in [-1, 1].")
        self._pixels_seen = True

    def _implied_feature_grid(self, features: Tensor, grid: TokenGrid) -> TokenGrid:
        """The grid of features that come without one: the student's if they are as many, else of squares a square."""
        if features.ndim == 4 and features.shape[2] == grid.tokens_per_frame:
            return TokenGrid(features.shape[1], grid.height, grid.width)
        if features.ndim == 4 and self.mode is CrepaMode.IMAGE and grid.height == grid.width:
            return square_grid(features.shape[2], frames=features.shape[1])
        raise ValueError(
            f"{self.prefix}: features of shape {tuple(features.shape)} don't say how they lie, and the student's grid "
            f"{grid} is another; pass feature_grid=TokenGrid(frames, height, width)."
        )

    def _decode(self, latents: Tensor | None, vae: Any) -> Tensor:
        if latents is None:
            raise ValueError(f"{self.prefix}: the teacher needs frame_features, or pixels, or latents to decode.")
        if self.foundation is not None:
            pixels = self.foundation.decode_latents(latents, vae=vae)
        elif vae is None:
            raise ValueError(f"{self.prefix}: to decode latents, pass the vae that made them.")
        else:
            pixels = decode_latents(latents, vae)
        if latents.ndim == 4 or latents.shape[2] == 1:
            return pixels[:, :1]
        ratio = (pixels.shape[1] - 1) // (latents.shape[2] - 1)
        return pixels[:, pixel_frames_of_latents(latents.shape[2], ratio)]

    def _align(
        self, tokens: Tensor, grid: TokenGrid, teacher: Tensor, feature_grid: TokenGrid, layer: str
    ) -> tuple[Tensor, Tensor, Logs]:
        """Projects the student, brings both sides onto one grid, and compares them.

        Projecting comes before resampling, as U-REPA found best.
        """
        assert self.projector is not None
        projector = self.projector[layer] if isinstance(self.projector, nn.ModuleDict) else self.projector
        student, teacher = project(projector, tokens, grid), teacher.float()
        if self.irepa.enabled:
            teacher = spatial_norm(teacher, self.irepa.spatial_norm_alpha)
        if student.shape[-1] != teacher.shape[-1]:
            raise ValueError(
                f"{self.prefix}: the projector gives width {student.shape[-1]} but the teacher's features have "
                f"{teacher.shape[-1]}. Features and projector must come from the same encoder ({self.options.encoder})."
            )
        if grid.frames != feature_grid.frames and min(grid.frames, feature_grid.frames) == 1:
            raise ValueError(
                f"{self.prefix}: the student has {grid.frames} frames and the teacher {feature_grid.frames}; one frame "
                "can't stand for a clip."
            )
        target = meeting_grid(grid, feature_grid, self.options.token_resample)
        return self._compare(resample_tokens(student, grid, target), resample_tokens(teacher, feature_grid, target))

    def _compare(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Logs]:
        """The loss before its coefficient, the mean similarity in [-1, 1] (detached), and logs of its own."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs: projector, coefficient, similarity, teacher statistics."""
        return {
            "projector": {} if self.projector is None else self.projector.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "meter": self._meter.state_dict(),
            "step": self._step,
            "measured": self._measured,
            "teacher": {} if self._teacher is None else self._teacher.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict()`; the projector must have been made (`attach_to_model`) with the same options.

        Raises:
            ValueError: the saved projector doesn't fit this one.
        """
        if self.projector is not None:
            try:
                self.projector.load_state_dict(state["projector"])
            except RuntimeError as error:
                raise ValueError(
                    f"{self.prefix}: the saved projector doesn't fit {self.prefix}_projector, the encoder or the model "
                    f"of this run: {error}"
                ) from error
        self.scheduler.load_state_dict(state["scheduler"])
        self._meter.load_state_dict(state["meter"])
        self._step, self._measured = state["step"], state.get("measured")
        if state["teacher"] and getattr(self.foundation, "feature_width", None) is None:
            self.teacher.load_state_dict(state["teacher"])


def _average(parts: list[tuple[Tensor, Tensor, Logs]]) -> tuple[Tensor, Tensor, Logs]:
    objectives, similarities, logs = zip(*parts, strict=True)
    mean_logs = {name: torch.stack([entry[name] for entry in logs]).mean() for name in logs[0]}
    return torch.stack(objectives).mean(), torch.stack(similarities).mean(), mean_logs


def _make_scheduler(options: AlignmentOptions, total_steps: int) -> AlignmentScheduler:
    return AlignmentScheduler(
        planned_schedule(options, total_steps),
        cutoff_step=options.cutoff_step,
        threshold=options.similarity_threshold,
        ema_decay=options.similarity_ema_decay,
        mode=options.threshold_mode,
        plateau=Plateau(total_steps, options.plateau_tolerance, options.plateau_warmup)
        if options.plateau_stop
        else None,
    )
