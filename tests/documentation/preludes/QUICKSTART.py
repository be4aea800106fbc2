from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
from diffusers import StableDiffusion3Pipeline


def prelude(monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, Any]:
    """The pipeline of the model; that it loads a trained LoRA is tested elsewhere, for every family."""
    return {"pipeline": create_autospec(StableDiffusion3Pipeline, instance=True)}
