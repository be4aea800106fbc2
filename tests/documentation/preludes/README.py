from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.documentation.preludes.parts import PassedOn, tiny_batches, tiny_dit, tiny_loss, tiny_teachers


def prelude(monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    """The model is as wide as the README says; of its nine blocks only the first and the last do something."""
    tiny_teachers(monkeypatch, folder)
    model = tiny_dit(layers=2, heads=24, width=64)
    first, last = model.transformer_blocks
    model.transformer_blocks = nn.ModuleList([first, *(PassedOn() for _ in range(7)), last])
    return {"model": model, "batches": tiny_batches(), "my_loss": tiny_loss}
