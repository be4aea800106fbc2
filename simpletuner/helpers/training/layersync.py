"""LayerSync (arXiv 2510.12581): an early block follows a deeper block of the same forward, without an encoder."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from simpletuner.configuration.alignment import LayersyncOptions, read_options
from simpletuner.helpers.training.alignment.eager import CHUNKS, differentiated
from simpletuner.helpers.training.alignment.losses import layer_cosine
from simpletuner.helpers.utils.hidden_state_buffer import layer_key


class LayerSyncRegularizer:
    """Pulls the tokens of a student block toward those of a teacher block, which gets no gradient.

    Block indices are 0-based, like CREPA's.

    Args:
        config: any object with the `layersync_*` options as attributes; missing or None means the default.

    Raises:
        ValueError: it is enabled and a block isn't given, or both are the same (a constant loss without gradient).
    """

    def __init__(self, config: object) -> None:
        self.options = read_options(LayersyncOptions, config)
        if not self.enabled:
            return
        student, teacher = self.options.student_block, self.options.teacher_block
        if student is None or teacher is None:
            missing = "layersync_student_block" if student is None else "layersync_teacher_block"
            raise ValueError(f"{missing} is not set; LayerSync needs both blocks, for instance 8 and 16 of 28.")
        if student == teacher:
            raise ValueError(
                f"layersync_student_block and layersync_teacher_block are both {student}: a block that follows itself "
                "has a constant loss without gradient. Choose a deeper teacher."
            )

    @property
    def enabled(self) -> bool:
        return self.options.enabled

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks that it reads; none when it is off."""
        student, teacher = self.options.student_block, self.options.teacher_block
        return (student, teacher) if self.wants_hidden_states() and student is not None and teacher is not None else ()

    def wants_hidden_states(self) -> bool:
        """Whether a step needs the hidden states of both blocks."""
        return self.enabled and self.options.lambda_ != 0

    def compute_loss(self, hidden_states: Mapping[str, Tensor]) -> tuple[Tensor | None, dict[str, Tensor] | None]:
        """The weighted loss from the captured tokens `(B, S, D)` by `layer_{i}`; `(None, None)` when it is off."""
        if not self.wants_hidden_states():
            return None, None
        student, teacher = (hidden_states[layer_key(layer)] for layer in self.layers)

        def weighted(rows: slice, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            similarity = layer_cosine(tokens, teacher[rows])
            return -self.options.lambda_ * similarity, {"layersync_similarity": similarity.detach()}

        with torch.autocast(student.device.type, enabled=False):
            loss, logs = differentiated(weighted, [student], chunks=CHUNKS)
        return loss, {"layersync_loss": loss.detach()} | logs
