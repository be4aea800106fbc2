from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.documentation.preludes.parts import tiny_batches, tiny_dit, tiny_loss, tiny_teachers, tiny_unet


def prelude(monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    tiny_teachers(monkeypatch, folder)
    return {
        "model": tiny_dit(layers=9),
        "unet": tiny_unet(),
        "batches": tiny_batches(),
        "unet_batches": tiny_batches(),
        "my_loss": tiny_loss,
    }
