"""What alignment adds to a training step at real sizes, in floating-point operations that are counted, not timed.

    python benchmarks/flops.py

The step is full fine-tuning, forward and backward, of one sample. Model, autoencoder and encoder are built without
weights, at their published sizes, on the meta device. The alignment runs in earnest, on the CPU, with the options'
defaults and DINOv2-g's width: the projector, what brings the student's tokens onto the teacher's grid, the loss, and
the gradient down to the captured states. From there it joins the gradient of the step and costs nothing more.

Counted are matrix products and convolutions, a multiplication with its addition as two; norms, softmax and other
elementwise operations are not. Attention counts as plain products: a fused kernel computes its scores again in the
backward pass, which makes the step larger. A LoRA's step lacks the gradients of most weights, up to a third of
it: there every share is up to half as large again.

The floors were worked out by hand from the published sizes: what the formulas ask for, no product twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import flops_by_hand as by_hand
import timm
import torch
from accelerate import Accelerator
from figures import Figure, run_alone
from torch.utils.flop_counter import FlopCounterMode

from simpletuner.configuration import Config
from simpletuner.helpers.models.common import ModelFoundation, ModelTypes
from simpletuner.helpers.models.registry import foundation_class
from simpletuner.helpers.training.alignment.geometry import TokenGrid, teacher_input_size
from simpletuner.helpers.training.alignment.pixels import decode_latents
from simpletuner.helpers.training.alignment.projectors import make_projector
from simpletuner.helpers.training.crepa import CrepaRegularizer, UrepaRegularizer

AT_MOST = 1.5  # % of the step


@dataclass(frozen=True)
class Case:
    """A published model and a sample of its size.

    Attributes:
        facts, vae: what the configurations of model and autoencoder state; the rest are their classes' defaults.
        latents: `(C, H, W)` or `(C, T, H, W)`.
        text: tokens and their width. pooled: width of the pooled text.
        forward, decode: operations by hand of the model's forward pass, and of the autoencoder's decoder.
        added: what else the batch holds, with its shape.
    """

    name: str
    family: str
    facts: Mapping[str, Any]
    vae: Mapping[str, Any]
    latents: tuple[int, ...]
    text: tuple[int, int]
    forward: int
    decode: int
    pooled: int = 0
    added: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        return self.latents[1] if len(self.latents) == 4 else 1


VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
VAE_16 = VAE | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
SD_DECODER = (512, 512, 256, 128), (1, 1, 1, 1)
CASES = (
    Case(
        "SD 1.5 512²",
        "sd1x",
        {"cross_attention_dim": 768, "attention_head_dim": 8},
        VAE,
        (4, 64, 64),
        (77, 768),
        by_hand.unet(64, (320, 640, 1280, 1280), (1, 1, 1, 0), 1, (77, 768)),
        by_hand.decoder(64**2, 4, *SD_DECODER),
    ),
    Case(
        "SDXL 1024²",
        "sdxl",
        {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
            "use_linear_projection": True,
        },
        VAE,
        (4, 128, 128),
        (77, 2048),
        by_hand.unet(128, (320, 640, 1280), (0, 2, 10), 10, (77, 2048)),
        by_hand.decoder(128**2, 4, *SD_DECODER),
        pooled=1280,
        added=dict.fromkeys(("original_sizes", "crops", "target_sizes"), (2,)),
    ),
    Case(
        "SD3-M 1024²",
        "sd3",
        {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192},
        VAE_16,
        (16, 128, 128),
        (333, 4096),
        by_hand.joint_transformer(24, 1536, 64**2, 333),
        by_hand.decoder(128**2, 16, *SD_DECODER),
        pooled=2048,
    ),
    Case(
        "Flux.1-dev 1024²",
        "flux",
        {"guidance_embeds": True},
        VAE_16,
        (16, 128, 128),
        (512, 4096),
        by_hand.joint_transformer(57, 3072, 64**2, 512),
        by_hand.decoder(128**2, 16, *SD_DECODER),
        pooled=768,
    ),
    Case(
        "Wan 1.3B 81×480×832",
        "wan",
        {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
        {},
        (16, 21, 60, 104),
        (512, 4096),
        by_hand.cross_transformer(30, 1536, 8960, 21 * 30 * 52, 512),
        by_hand.decoder(60 * 104, 16, (384, 384, 192, 96), (21, 41, 81, 81), kernel=27, narrowing=2),
    ),
)


def measure(device: torch.device) -> list[Figure]:
    """Two figures a model, in per cent of its step; they are the same on any device."""
    with torch.device("meta"):
        teacher = timm.create_model("vit_giant_patch14_dinov2", num_classes=0, dynamic_img_size=True)
    return [figure for case in CASES for figure in measure_case(case, teacher)]


def measure_case(case: Case, teacher: Any) -> tuple[Figure, Figure]:
    foundation = published_foundation(case)
    family, sides = foundation.family, case.latents[-2:]
    height, width = (side * family.latent_ratio for side in sides)
    size = teacher_input_size(height, width, patch=by_hand.TEACHER_PATCH, image_size=by_hand.TEACHER_SIDE)
    student = TokenGrid(case.frames, *(side // family.patch_size for side in sides))
    grid = TokenGrid(case.frames, *(side // by_hand.TEACHER_PATCH for side in size))
    step, expected = count_step(case, foundation), 3 * case.forward

    added = count_alignment(foundation, student, grid)
    least = by_hand.alignment(student, grid, foundation.hidden_size, manifold=is_unet(foundation))
    from_cache = Figure(
        f"{case.name}: alignment from the cache / step",
        100 * added / step,
        "%",
        at_most=AT_MOST,
        floor=100 * least / expected,
        note=f"{tera(added)} / {tera(step)} TFLOP, by hand {tera(least)} / {tera(expected)}; tokens a frame: student "
        f"{student.height}×{student.width}, teacher {grid.height}×{grid.width}",
    )

    decoding, frame = count_in_step(case, foundation, teacher, size)
    encoding, encoding_by_hand = case.frames * frame, case.frames * by_hand.encoder(grid)
    note = f"{tera(decoding)} + {tera(encoding)} TFLOP, by hand {tera(case.decode)} + {tera(encoding_by_hand)}"
    pixel_frames = 1 + family.frame_ratio * (case.frames - 1)
    if pixel_frames > case.frames:
        share = 100 * (decoding + pixel_frames * frame) / step
        note += f"; {share:.3g} % with all {pixel_frames} frames encoded, not only the {case.frames} that are used"
    in_step = Figure(
        f"{case.name}: VAE decode + DINOv2-g in the step / step",
        100 * (decoding + encoding) / step,
        "%",
        floor=100 * (case.decode + encoding_by_hand) / expected,
        note=note,
    )
    return from_cache, in_step


def published_foundation(case: Case) -> ModelFoundation:
    """Around the published model on the meta device, with its kind of alignment on."""
    kind = foundation_class(case.family)
    prefix = "urepa" if kind.MODEL_TYPE is ModelTypes.UNET else "crepa"
    options: dict[str, Any] = {f"{prefix}_enabled": True, "model_type": "full", "mixed_precision": "no"}
    config = Config(model_family=case.family, pretrained_model_name_or_path="nowhere", **options)
    foundation = kind(config, Accelerator(cpu=True))
    with torch.device("meta"):
        foundation.model = foundation.MODEL_CLASS(**case.facts).train()
    return foundation


def is_unet(foundation: ModelFoundation) -> bool:
    return foundation.MODEL_TYPE is ModelTypes.UNET


def count_step(case: Case, foundation: ModelFoundation) -> int:
    """Forward and backward, every parameter with a gradient."""
    with torch.device("meta"):
        text = {"prompt_embeds": torch.empty(1, *case.text), "pooled_prompt_embeds": torch.empty(1, case.pooled)}
        batch = {"noisy_latents": torch.empty(1, *case.latents), "timesteps": torch.empty(1), "text": text}
        batch |= {name: torch.empty(1, *shape) for name, shape in case.added.items()}
        return flops(lambda: foundation.forward(batch).sum().backward())


def count_alignment(foundation: ModelFoundation, student: TokenGrid, teacher: TokenGrid) -> int:
    """Forward and backward together: a loss may make its gradient in the forward pass."""
    width = foundation.hidden_size
    kind = UrepaRegularizer if is_unet(foundation) else CrepaRegularizer
    regularizer = kind(foundation.config, foundation.accelerator, width, model_foundation=foundation)
    # Set by hand: the regularizer would ask the encoder for its width, and so load its weights.
    regularizer.projector = make_projector(regularizer.options.projector, width, by_hand.TEACHER_WIDTH)
    regularizer.attach_to_model(foundation.model)
    shape = (width, student.height, student.width) if is_unet(foundation) else (student.tokens, width)
    states = torch.zeros(1, *shape, requires_grad=True)
    features = torch.zeros(1, teacher.frames, teacher.tokens_per_frame, by_hand.TEACHER_WIDTH)
    grid = None if is_unet(foundation) else student  # a UNet's maps say it themselves

    def align() -> None:
        loss, _ = regularizer.compute_loss(states, frame_features=features, feature_grid=teacher, grid=grid)
        assert loss is not None
        loss.backward()

    return flops(align)


@torch.no_grad()
def count_in_step(case: Case, foundation: ModelFoundation, teacher: Any, size: tuple[int, int]) -> tuple[int, int]:
    """What a step without a cache does: decodes the sample; and the encoder on one frame of it."""
    with torch.device("meta"):
        vae, latents = foundation.AUTOENCODER_CLASS(**case.vae), torch.empty(1, *case.latents)
        image = torch.empty(1, 3, *size)
    return flops(lambda: decode_latents(latents, vae)), flops(lambda: teacher.forward_features(image))


def flops(function: Callable[[], object]) -> int:
    # The counter knows these products only where their result is a new tensor.
    in_place = dict.fromkeys((torch.ops.aten.addmm_, torch.ops.aten.baddbmm_), product_in_place)
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        function()
    return counter.get_total_flops()


def product_in_place(into: torch.Size, left: torch.Size, right: torch.Size, **others: Any) -> int:
    return 2 * left.numel() * right[-1]


def tera(operations: int) -> str:
    return f"{operations / 1e12:.4g}"


if __name__ == "__main__":
    run_alone(measure, __doc__)
