"""What the alignment losses have in common: teacher, projector, schedule and cutoffs."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from simpletuner.configuration.fields import option
from simpletuner.configuration.paths import PathText
from simpletuner.configuration.prefixed import PrefixedOptions

alignment_option = partial(option, tab="Training", section="Loss functions")

Projector = Literal["linear", "mlp", "conv", "conv_gn"]
Resample = Literal["smaller", "student", "teacher"]
CacheType = Literal["bf16", "fp16", "fp32", "int8"]

RESAMPLE_HELP = (
    "Where the two token grids meet if they differ: smaller brings the larger grid down, student brings the teacher to "
    "the student's grid, teacher brings the projected student to the teacher's grid."
)


class AlignmentOptions(PrefixedOptions):
    """The options that CREPA/REPA and U-REPA share; either of them gives them its prefix."""

    enabled: bool
    lambda_: float = alignment_option(
        0.5,
        ge=0,
        depends_on="{x}_enabled",
        label="Weight",
        help="Weight of the alignment loss. 0.5 is the papers' value; 0 turns the loss off, and lower values are "
        "safer when a LoRA trains for long.",
    )
    encoder: PathText = alignment_option(
        "dinov2_vitg14",
        depends_on="{encoder}",
        min_length=1,
        label="Teacher",
        part="Teacher",
        help="The teacher: dinov2_vits14, vitb14, vitl14 or vitg14 (with _reg for registers), timm/<name>, "
        "efficientnet_lite0 (needs no download), or a local folder or safetensors file. DINOv2-B suffices for images.",
    )
    encoder_image_size: Annotated[int, Field(ge=14)] | Literal["auto"] = alignment_option(
        518,
        depends_on="{encoder}",
        label="Teacher's image size",
        part="Teacher",
        help="Side in pixels of the square with the same area as the teacher's input, which keeps the aspect ratio; a "
        "multiple of the teacher's patch. \"auto\" makes the teacher's grid fit the student's, so that no token is "
        "interpolated.",
    )
    use_tae: bool = alignment_option(
        False,
        depends_on="{encoder}",
        label="Decode with a tiny autoencoder",
        part="Teacher",
        help="The teacher sees latents decoded by a tiny autoencoder instead of the real pixels. Only for trying out "
        "what that costs: real pixels are better and cheaper.",
    )
    projector: Projector = alignment_option(
        "linear",
        depends_on="{x}_enabled",
        part="Projector",
        help="The trained head from student width to teacher width: linear (LayerNorm and Linear), mlp (REPA's three "
        "layers), conv (iREPA's convolution on the token grid) or conv_gn (1x1 convolution, GroupNorm, GELU: the "
        "SD 1.5 recipe).",
    )
    projector_width: int = alignment_option(
        2048,
        ge=1,
        depends_on="{x}_projector=mlp",
        part="Projector",
        help="Width of the mlp projector's two hidden layers. 2048 is REPA's; two to four times the model's width is "
        "enough for a small model.",
    )
    token_resample: Resample = alignment_option(
        "smaller",
        depends_on="{x}_enabled",
        label="Common token grid",
        part="Projector",
        help=RESAMPLE_HELP,
    )
    feature_cache: bool = alignment_option(
        True,
        depends_on="{encoder}",
        label="Cache features",
        part="Feature cache",
        help="Encodes the data once, before the training, and reads the teacher's features from disk: then a step "
        "costs next to nothing more. Off: the teacher encodes the pixels in every step.",
    )
    feature_cache_dtype: CacheType = alignment_option(
        "bf16",
        depends_on="{x}_feature_cache",
        label="Number format",
        part="Feature cache",
        help="Number format of cached features. int8 halves the disk space of bf16 and fp16; fp32 is for checking.",
    )
    feature_cache_dim: int | None = alignment_option(
        None,
        ge=1,
        depends_on="{x}_feature_cache",
        label="Whitened width",
        part="Feature cache",
        help="Whitens cached features to this many dimensions; 128 is enough and saves much disk space. None keeps "
        "the teacher's width.",
    )
    feature_cache_normalized: bool = alignment_option(
        False,
        depends_on="{x}_feature_cache",
        label="Unit length",
        part="Feature cache",
        help="Keeps cached tokens at unit length. The losses compare directions, so it changes little but the range "
        "of the numbers.",
    )
    scheduler: Literal["constant", "linear", "cosine", "polynomial"] = alignment_option(
        "constant",
        depends_on="{x}_enabled",
        label="Schedule",
        part="Schedule",
        help="How the weight moves from {x}_lambda to {x}_lambda_end after the warm-up. Alignment helps early and "
        "hurts late, so a decay or a cutoff is recommended for long runs.",
    )
    warmup_steps: int = alignment_option(
        0,
        ge=0,
        depends_on="{x}_enabled",
        label="Warm-up steps",
        part="Schedule",
        help="Steps over which the weight rises linearly from 0.",
    )
    decay_steps: int = alignment_option(
        0,
        ge=0,
        depends_on="{x}_scheduler=linear|cosine|polynomial",
        label="Decay steps",
        part="Schedule",
        help="Steps of decay, counted from the end of the warm-up. 0 means the rest of the run.",
    )
    lambda_end: float = alignment_option(
        0.0,
        ge=0,
        depends_on="{x}_scheduler=linear|cosine|polynomial",
        label="Weight at the end",
        part="Schedule",
        help="The weight at the end of the decay.",
    )
    power: float = alignment_option(
        1.0,
        gt=0,
        depends_on="{x}_scheduler=polynomial",
        label="Decay exponent",
        part="Schedule",
        help="Exponent of the polynomial decay; 1 is linear.",
    )
    cutoff_step: int = alignment_option(
        0,
        ge=0,
        depends_on="{x}_enabled",
        label="Cutoff at step",
        part="Cutoff",
        help="Step from which the loss is off for good. 0 means never.",
    )
    similarity_threshold: float | None = alignment_option(
        None,
        ge=-1,
        le=1,
        depends_on="{x}_enabled",
        label="Cutoff at similarity",
        part="Cutoff",
        help="Turns the loss off when the moving average of the similarity (-1 to 1) reaches this value. Cosines "
        "saturate near 0.6, so values above 0.8 rarely ever fire.",
    )
    similarity_ema_decay: float = alignment_option(
        0.99,
        ge=0,
        lt=1,
        depends_on="{x}_similarity_threshold",
        label="Similarity average",
        part="Cutoff",
        help="Decay of the similarity's moving average: 0.99 looks back over about 100 steps.",
    )
    threshold_mode: Literal["permanent", "recoverable"] = alignment_option(
        "permanent",
        depends_on="{x}_similarity_threshold",
        label="Cutoff mode",
        part="Cutoff",
        help="permanent: once off, off for good. recoverable: on again when the similarity falls below the threshold.",
    )
    plateau_stop: bool = alignment_option(
        False,
        depends_on="{x}_enabled",
        label="Stop at the plateau",
        part="Cutoff",
        help="Ends the loss with a cosine ramp once the similarity has stopped improving. Recommended for long runs.",
    )
    plateau_tolerance: float = alignment_option(
        0.02,
        gt=0,
        lt=1,
        depends_on="{x}_plateau_stop",
        part="Cutoff",
        help="The plateau is reached when the relative gap between the slow and the fast average of the residual is "
        "below this.",
    )
    plateau_warmup: float = alignment_option(
        0.125,
        ge=0,
        lt=1,
        depends_on="{x}_plateau_stop",
        label="Plateau warm-up",
        part="Cutoff",
        help="Share of the run before which no plateau is looked for.",
    )

    @property
    def teacher_is_backbone(self) -> bool:
        """Whether a block of the same model is the teacher, and no encoder is needed."""
        return False

    @property
    def caches_features(self) -> bool:
        """Whether the teacher's features are kept on disk, while the loss is on."""
        return self.feature_cache and not self.use_tae and not self.teacher_is_backbone

    @property
    def is_zero(self) -> bool:
        """Whether the weight is 0 in every step."""
        return self.lambda_ == 0 and (self.scheduler == "constant" or self.lambda_end == 0)
