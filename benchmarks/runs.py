"""Training steps to be timed: real foundations of published classes, from configurations alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from simpletuner.configuration import Config
from simpletuner.configuration.alignment import read_options
from simpletuner.helpers.data.features import FeatureCache
from simpletuner.helpers.data.store import TensorStore
from simpletuner.helpers.models.common import ModelFoundation
from simpletuner.helpers.models.registry import foundation_class
from simpletuner.helpers.training.alignment.encoders import EncoderFacts
from simpletuner.helpers.training.alignment.feature_cache import pack
from simpletuner.helpers.training.alignment.geometry import TokenGrid

# SD3's class with 12 blocks of width 384; 32×32 latents are 256 tokens, beside 77 of text.
SD3_SMALL: dict[str, Any] = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 32,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 12,
    "num_attention_heads": 6,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 384,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 96,
}
# SD 1.5's class at two fifths of its width and three levels: 64×64 latents have a middle of 16×16.
UNET_MIDDLING: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [128, 256, 512],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
TEACHER = EncoderFacts("none", "none", 768, 14, 518, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Shape:
    """What is trained on what.

    Attributes:
        latents: `(B, C, h, w)`. text: shapes of a batch's embeddings by name. teacher: the grid of the features.
    """

    family: str
    model: dict[str, Any]
    scheduler: Any
    latents: tuple[int, ...]
    text: Mapping[str, tuple[int, ...]]
    prefix: str
    teacher: TokenGrid


def transformer(batch: int) -> Shape:
    """REPA's case: 256 student tokens, as many of the teacher."""
    text = {"prompt_embeds": (batch, 77, 4096), "pooled_prompt_embeds": (batch, 2048)}
    return Shape(
        "sd3",
        SD3_SMALL,
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        (batch, 16, 32, 32),
        text,
        "crepa",
        TokenGrid(1, 16, 16),
    )


def unet(batch: int) -> Shape:
    """U-REPA's case: a middle of 16×16, a teacher of twice that."""
    text = {"prompt_embeds": (batch, 77, 768)}
    return Shape("sd1x", UNET_MIDDLING, DDPMScheduler(), (batch, 4, 64, 64), text, "urepa", TokenGrid(1, 32, 32))


class Run:
    """One model with its optimizer, and a step of it on one fixed batch.

    Args:
        cached: whether the batch holds features, as the DataLoader gives them.
        options: beyond those that all runs share, and `mixed_precision`, which is "no" without it; the alignment is on
            if it has the shape's prefix.
    """

    def __init__(
        self, shape: Shape, folder: Path, device: torch.device, *, cached: bool = True, **options: Any
    ) -> None:
        torch.manual_seed(0)
        _write_model(shape, folder)
        config = Config(
            model_family=shape.family,
            pretrained_model_name_or_path=str(folder),
            model_type="full",
            train_from_scratch=True,
            max_train_steps=1000,
            **{"mixed_precision": "no"} | options,
        )
        accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=device.type == "cpu")
        self.foundation: ModelFoundation = foundation_class(shape.family)(config, accelerator)
        is_aligned = getattr(config, f"{shape.prefix}_enabled")
        if is_aligned and cached:
            self.foundation.features = FeatureCache(
                TensorStore(folder), read_options(type(getattr(config, shape.prefix)), config), TEACHER, {}, {}, 1, 16.0
            )
        self.foundation.load_model()
        if config.compile_model:
            # Of two models of one class in a process, the second would run the first one's graph, without its capture.
            torch._dynamo.config.skip_nnmodule_hook_guards = False
            self.foundation.model.compile()
        alignment = self.foundation.alignment
        self.projector = [] if alignment is None or alignment.projector is None else [*alignment.projector.parameters()]
        self.optimizer = torch.optim.AdamW([*self.foundation.trainable_parameters(), *self.projector], lr=1e-4)
        self.batch = _make_batch(shape, with_features=is_aligned and cached, with_pixels=is_aligned and not cached)
        self.number = 0

    @property
    def feature_bytes(self) -> int:
        """Of the batch's cached features."""
        return sum(part.nbytes for part in self.batch["features"].values())

    def tapped(self) -> tuple[torch.Size, int]:
        """The shape of the captured hidden states, and their bytes."""
        prepared = self.foundation.prepare_batch(self.batch, step=0, rows=range(len(self.batch["latents"])))
        with torch.no_grad(), self.foundation.accelerator.autocast():
            output = self.foundation.model_predict(prepared)
        (states,) = (value for name, value in output.items() if name.endswith("epa_hidden_states"))
        self.foundation.buffer.clear()
        return states.shape, states.nbytes

    def step(self) -> None:
        """Forward, backward and the optimizer, as the trainer takes them."""
        foundation = self.foundation
        prepared = foundation.prepare_batch(self.batch, step=self.number, rows=range(len(self.batch["latents"])))
        with foundation.accelerator.autocast():
            output = foundation.model_predict(prepared)
            loss, _ = foundation.auxiliary_loss(output, prepared, foundation.loss(output, prepared))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.number += 1


def make_images(folder: Path, count: int, side: int) -> Path:
    """JPEG files of soft noise, and the list of data sets that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        coarse = torch.rand(1, 3, side // 8, side // 8, generator=generator)
        pixels = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)[0]
        array = (pixels * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / f"{number:04}.jpg", quality=92)
    entry = {"id": "images", "instance_data_dir": str(folder), "caption_strategy": "instanceprompt"}
    listing = folder / "multidatabackend.json"
    listing.write_text(json.dumps([entry | {"instance_prompt": "picture"}]), encoding="utf-8")
    return listing


def write_pixel_dit(folder: Path, *, side: int, patch: int, layers: int = 12, heads: int = 6) -> None:
    """A class-conditional DiT that works on pixels, so that neither autoencoder nor text encoder is needed."""
    with torch.device("meta"):
        model: Any = DiTTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=64,
            num_layers=layers,
            in_channels=3,
            out_channels=3,
            sample_size=side,
            patch_size=patch,
            num_embeds_ada_norm=1000,
        )
    model.save_config(folder / "transformer")
    scheduler: Any = FlowMatchEulerDiscreteScheduler()
    scheduler.save_pretrained(folder / "scheduler")


def write_teacher(folder: Path, architecture: str) -> Path:
    """A vision transformer of timm with random weights, as a local encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    model = timm.create_model(architecture, num_classes=0)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": architecture}), encoding="utf-8")
    return folder


def pixel_dit_config(root: Path, listing: Path, side: int, **options: Any) -> Config:
    """A training of `write_pixel_dit`'s model in `root/model` from scratch, caches in `root/cache`."""
    return Config(
        model_family="dit",
        pretrained_model_name_or_path=str(root / "model"),
        model_type="full",
        train_from_scratch=True,
        prediction_type="flow_matching",
        data_backend_config=str(listing),
        output_dir=str(root / "output"),
        cache_dir=str(root / "cache"),
        resolution=side,
        aspect_bucket_alignment=side,
        mixed_precision="bf16" if torch.cuda.is_available() else "no",
        report_to="none",
        checkpoint_step_interval=0,
        **options,
    )


def _make_batch(shape: Shape, *, with_features: bool, with_pixels: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def drawn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    batch: dict[str, Any] = {
        "latents": drawn(*shape.latents),
        "text": {name: drawn(*size) for name, size in shape.text.items()},
    }
    count = shape.latents[0]
    if with_features:
        batch["features"] = pack(drawn(count, 1, shape.teacher.tokens, TEACHER.width), "bf16")
        batch["feature_grid"] = shape.teacher
    if with_pixels:
        batch["pixels"] = drawn(count, 1, 3, 8 * shape.latents[-2], 8 * shape.latents[-1]).sigmoid()
    return batch


def _write_model(shape: Shape, folder: Path) -> None:
    model = folder / ("unet" if shape.prefix == "urepa" else "transformer")
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text(json.dumps(shape.model), encoding="utf-8")
    shape.scheduler.save_pretrained(folder / "scheduler")
