"""Which SANA-Video can be trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MakeFoundation


def test_a_sanavideo_with_another_autoencoder_is_refused(
    make_foundation: MakeFoundation, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder("sanavideo"), tmp_path / "model"))
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "AutoencoderKLLTX2Video"}))
    foundation = make_foundation("sanavideo")
    foundation.source = str(folder)
    with pytest.raises(ValueError, match="whose autoencoder is AutoencoderKLLTX2Video"):
        foundation.verify()
