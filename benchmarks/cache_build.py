"""How fast the feature cache is built, against the bare encoder on the same images.

python benchmarks/cache_build.py
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from figures import Figure, interleaved, machine_ready, median, median_ratio, run_alone
from runs import make_images, pixel_dit_config, write_pixel_dit, write_teacher
from torch import Tensor

from simpletuner.helpers.models.registry import foundation_class
from simpletuner.helpers.training.alignment.encoders import load_encoder
from simpletuner.helpers.training.trainer import prepare_data

FILE_SIDE, SIDE, REPEATS = 640, 224, 3
COUNTS = {"cpu": 192, "cuda": 2048}
BATCH = 8


def measure(device: torch.device) -> list[Figure]:
    count = COUNTS[device.type]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        listing = make_images(root / "images", count, FILE_SIDE)
        write_pixel_dit(root / "model", side=SIDE, patch=14)
        encoder = write_teacher(root / "teacher", "vit_small_patch14_dinov2")
        config = pixel_dit_config(
            root,
            listing,
            SIDE,
            crepa_enabled=True,
            crepa_encoder=str(encoder),
            crepa_encoder_image_size=SIDE,
            vae_batch_size=BATCH,
            max_workers=2,
        )
        foundation = foundation_class("dit")(config, Accelerator(cpu=device.type == "cpu"))
        samples, _ = prepare_data(config, foundation, live=False)
        model = load_encoder(str(encoder)).eval().to(device, torch.float32 if device.type == "cpu" else torch.bfloat16)
        images = torch.stack([sample.pixels()[0] for sample in samples]).to(device, next(model.parameters()).dtype)

        def build() -> None:
            shutil.rmtree(root / "cache" / "features")
            prepare_data(config, foundation, live=False)
            machine_ready(device)

        def encode() -> list[Tensor]:
            with torch.inference_mode():
                tokens = [model(part)[0] for part in images.split(BATCH)]
            machine_ready(device)
            return tokens

        seconds = interleaved({"build": build, "bare": encode}, repeats=REPEATS, device=torch.device("cpu"), warmups=1)
    note = ", ".join(f"{name} {count / median(values):.1f} images/s" for name, values in seconds.items())
    return [
        Figure(
            "images/s of building the features (read, cut, ViT-S/14 at 224, write) / of the bare encoder",
            median_ratio(seconds, "bare", "build"),
            at_least=0.85,
            floor=1.0,
            note=f"{note}; {count} JPEG files of {FILE_SIDE}², the encoder's loading included",
        )
    ]


if __name__ == "__main__":
    run_alone(measure, __doc__)
