"""The regularizers that align a diffusion model's hidden states with a frozen encoder: REPA, CREPA and U-REPA.

They work in any training loop: create one, `attach_to_model`, capture the hidden states, `compute_loss`, add.
"""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from simpletuner.configuration.alignment import CrepaOptions, UrepaOptions
from simpletuner.helpers.training.alignment.geometry import TokenGrid, to_tokens
from simpletuner.helpers.training.alignment.losses import (
    manifold_loss,
    neighbour_alignment,
    neighbour_weights,
    sample_manifold_loss,
    token_cosine,
)
from simpletuner.helpers.training.regularizer import AlignmentRegularizer, CrepaMode, Logs

__all__ = ["CrepaMode", "CrepaRegularizer", "UrepaRegularizer", "mid_block_offset"]


class CrepaRegularizer(AlignmentRegularizer[CrepaOptions]):
    """REPA for image transformers (arXiv 2410.06940), CREPA for video transformers (2506.09229)."""

    OPTIONS = CrepaOptions

    @property
    def _frames_batch_size(self) -> int:  # type: ignore[override]
        return self.options.encoder_frames_batch_size

    @property
    def teacher_width(self) -> int:
        return self.hidden_size if self.options.teacher_is_backbone else super().teacher_width

    def _compare(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Logs]:
        options = self.options
        if not options.spatial_align:
            student, teacher = student.mean(2, keepdim=True), teacher.mean(2, keepdim=True)
        weights = neighbour_weights(
            student.shape[1],
            distance=options.adjacent_distance,
            tau=options.adjacent_tau,
            cumulative=options.cumulative_neighbors,
            normalise_sum=options.normalize_neighbour_sum,
            device=student.device,
        )
        score, similarity = neighbour_alignment(
            student, teacher, weights, normalise_by_frames=options.normalize_by_frames
        )
        score = score.mean()
        return -score, similarity.mean(), {"alignment_score": score.detach()}


class UrepaRegularizer(AlignmentRegularizer[UrepaOptions]):
    """U-REPA for UNets (arXiv 2503.18414): token cosine and the manifold term, at the mid-block."""

    OPTIONS = UrepaOptions
    TEACHER_SCALE = 2

    cell_offset = 0.0

    @property
    def _chunks(self) -> int:
        compares_samples = self.options.manifold_weight != 0 and self.options.manifold_scope == "sample"
        return 1 if compares_samples else super()._chunks

    def attach_to_model(self, model: nn.Module) -> Self:
        """As of any regularizer; and looks up where the UNet's cells are centred."""
        self.cell_offset = mid_block_offset(model)
        return super().attach_to_model(model)

    def student_grid(self, maps: Tensor) -> TokenGrid:
        """The grid of a UNet's maps `(B, C, H, W)` at its middle."""
        return TokenGrid(1, maps.shape[-2], maps.shape[-1], self.cell_offset)

    def _make_projector(self) -> nn.Module:
        layers = self.options.align_layers
        if len(layers) == 1:
            return super()._make_projector()
        projectors = nn.ModuleDict()
        for layer in layers:
            projectors[layer] = super()._make_projector()
        return projectors

    def _as_tokens(
        self, layers: dict[str, Tensor], grid: TokenGrid | None
    ) -> tuple[dict[str, Tensor], TokenGrid | None]:
        if isinstance(self.projector, nn.ModuleDict) and set(layers) != set(self.projector):
            raise ValueError(
                f"urepa_align_layers is {', '.join(self.projector)}, but hidden states of {', '.join(layers)} were "
                "passed: capture the same layers."
            )
        first = next(iter(layers.values()))
        if first.ndim != 4:
            return layers, grid
        if grid is None:
            grid = self.student_grid(first)
        for layer, maps in layers.items():
            if tuple(maps.shape[2:]) != (grid.height, grid.width):
                raise ValueError(
                    f"urepa_align_layers: {layer or 'mid'} has maps of {maps.shape[2]}×{maps.shape[3]}, not {grid}."
                )
        return {layer: to_tokens(maps, 1) for layer, maps in layers.items()}, grid

    def _compare(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Logs]:
        options = self.options
        similarity = token_cosine(student, teacher).mean()
        objective = -similarity
        manifold = similarity.new_zeros(())
        if options.manifold_weight != 0:
            manifold = (manifold_loss if options.manifold_scope == "token" else sample_manifold_loss)(student, teacher)
            objective = objective + options.manifold_weight * manifold
        logs = {"alignment_loss": -similarity.detach(), "manifold_loss": manifold.detach()}
        return objective, similarity.detach(), logs


def mid_block_offset(unet: Any) -> float:
    """How far the middle's features are centred from the middle of their cells, in cells, down and to the right.

    A 3×3 convolution of stride 2 that is padded by 1 on every side, as diffusers' are, looks at cells 2i-1 to 2i+1 for
    its cell i, whose middle is at 2i+½: half a cell too far up and to the left, at every level.
    """
    halvings = sum(block.downsamplers is not None for block in getattr(unet, "down_blocks", ()))
    return -(1 - 0.5**halvings) / 2
