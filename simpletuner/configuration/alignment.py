"""The options of the representation-alignment losses.

Inside a group an option has a short name (``options.warmup_steps``); in ``config.json``, on the command line and on
:class:`~simpletuner.configuration.config.Config` it carries the prefix of its group (``crepa_warmup_steps``,
``urepa_warmup_steps``). So what CREPA and U-REPA share is declared once and named twice.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from simpletuner.configuration.alignment_shared import RESAMPLE_HELP, AlignmentOptions, Resample, alignment_option
from simpletuner.configuration.prefixed import PrefixedOptions, read_options

__all__ = [
    "PREFIXED_GROUPS",
    "AlignmentOptions",
    "CrepaOptions",
    "IrepaOptions",
    "LayersyncOptions",
    "UrepaOptions",
    "read_options",
]


class CrepaOptions(AlignmentOptions):
    """REPA for image transformers (arXiv 2410.06940) and CREPA for video transformers (2506.09229)."""

    PREFIX = "crepa"
    TITLE = "CREPA"
    ONLY_FOR = "transformer"
    ALIASES: ClassVar = {"encoder": ("crepa_model",), "feature_source": ("crepa_use_backbone_features=backbone",)}
    ENCODER_IN_USE = "{x}_feature_source=encoder"

    enabled: bool = alignment_option(
        False,
        help="Aligns a block of a transformer with the patch tokens of a frozen encoder: REPA for images, CREPA for "
        "video. For a UNet use urepa_enabled.",
    )
    block_index: int | None = alignment_option(
        None,
        ge=0,
        depends_on="{x}_enabled",
        help="The student's block, counted from 0. None takes the family's default. With LoRA only adapters at or "
        "before this block learn from the loss.",
    )
    encoder_frames_batch_size: int = alignment_option(
        -1,
        ge=-1,
        depends_on="{encoder}",
        label="Frames encoded at once",
        part="Teacher",
        help="Frames that the teacher encodes at once; lower it when memory is short. -1 or 0 means all.",
    )
    adjacent_distance: int = alignment_option(
        1,
        ge=0,
        depends_on="{x}_enabled",
        label="Neighbour distance",
        part="Neighbouring frames",
        only_for="video",
        help="Distance in latent frames to the neighbours that a frame is also aligned with (video). 0 uses the own "
        "frame only.",
    )
    adjacent_tau: float = alignment_option(
        1.0,
        gt=0,
        depends_on="{x}_adjacent_distance",
        label="Neighbour temperature",
        part="Neighbouring frames",
        only_for="video",
        help="Temperature of the neighbours' weight exp(-distance / tau) (video).",
    )
    cumulative_neighbors: bool = alignment_option(
        False,
        depends_on="{x}_adjacent_distance",
        label="All nearer neighbours",
        part="Neighbouring frames",
        only_for="video",
        help="Uses all neighbours up to {x}_adjacent_distance, not only those at exactly that distance (video).",
    )
    normalize_by_frames: bool = alignment_option(
        True,
        depends_on="{x}_enabled",
        label="Mean over frames",
        part="Neighbouring frames",
        only_for="video",
        help="Divides the sum over frames by their number (video).",
    )
    normalize_neighbour_sum: bool = alignment_option(
        False,
        depends_on="{x}_adjacent_distance",
        label="Mean over neighbours",
        part="Neighbouring frames",
        only_for="video",
        help="Divides a frame's score by the sum of its neighbours' weights, so that it stays within -1 to 1 (video).",
    )
    spatial_align: bool = alignment_option(
        True,
        depends_on="{x}_enabled",
        label="Align token by token",
        part="Projector",
        help="Aligns token by token. Off: both sides are averaged over the frame first.",
    )
    feature_source: Literal["encoder", "backbone"] = alignment_option(
        "encoder",
        depends_on="{x}_enabled",
        label="Source of the features",
        part="Teacher",
        help="encoder: a frozen vision encoder. backbone: a deeper block of the same forward pass, named by "
        "{x}_teacher_block_index.",
    )
    teacher_block_index: int | None = alignment_option(
        None,
        ge=0,
        depends_on="{x}_feature_source=backbone",
        label="Teacher's block",
        part="Teacher",
        help="The block, counted from 0, that is the teacher when {x}_feature_source is backbone.",
    )
    drop_vae_encoder: bool = alignment_option(
        False,
        depends_on="{x}_enabled",
        label="Free the VAE encoder",
        part="Teacher",
        help="Frees the VAE's encoder once latents are cached and only decoding is left to do.",
    )

    @property
    def teacher_is_backbone(self) -> bool:
        return self.feature_source == "backbone"


class UrepaOptions(AlignmentOptions):
    """U-REPA for convolutional UNets (arXiv 2503.18414)."""

    PREFIX = "urepa"
    TITLE = "U-REPA"
    ONLY_FOR = "unet"
    RENAMED: ClassVar = {"encoder": "model"}
    ALIASES: ClassVar = {"encoder": ("urepa_encoder",)}

    enabled: bool = alignment_option(
        False,
        help="Aligns the mid-block of a UNet with the patch tokens of a frozen encoder (U-REPA). For a transformer "
        "use crepa_enabled.",
    )
    token_resample: Resample = alignment_option(
        "teacher",
        depends_on="{x}_enabled",
        label="Common token grid",
        part="Projector",
        help=RESAMPLE_HELP,
    )
    manifold_weight: float = alignment_option(
        3.0,
        ge=0,
        depends_on="{x}_enabled",
        help="Weight of the manifold loss, which matches the similarities between tokens, relative to the cosine. 3 "
        "was best in the paper; 0 leaves the cosine alone.",
    )
    manifold_scope: Literal["token", "sample"] = alignment_option(
        "token",
        depends_on="{x}_manifold_weight",
        help="Pairs that the manifold loss compares: the tokens within a sample, or the samples of the batch.",
    )
    align_layers: list[Literal["mid", "enc_last", "dec_first"]] = alignment_option(
        ["mid"],
        min_length=1,
        depends_on="{x}_enabled",
        label="Aligned layers",
        help="Layers to align: the mid-block, the last one of the encoder, the first one of the decoder.",
    )


class IrepaOptions(PrefixedOptions):
    """iREPA (arXiv 2512.10794): a convolutional projector and a spatially normalised teacher."""

    PREFIX = "irepa"
    TITLE = "iREPA"

    enabled: bool = alignment_option(
        False,
        help="Adds iREPA to CREPA or U-REPA: a convolutional projector, and teacher tokens normalised over space.",
    )
    spatial_norm_alpha: float = alignment_option(
        0.6,
        ge=0,
        le=1,
        depends_on="{x}_enabled",
        label="Spatial normalisation",
        help="Share of the mean over tokens that is taken from the teacher: 0.6 for latent models, up to 1 in pixel "
        "space, 0 for none.",
    )
    projector_kernel_size: int = alignment_option(
        3,
        ge=1,
        depends_on="{x}_enabled or crepa_projector=conv or urepa_projector=conv",
        label="Kernel size",
        help="Side of the convolution's kernel in tokens; an odd number.",
    )


class LayersyncOptions(PrefixedOptions):
    """LayerSync (arXiv 2510.12581): a deeper block of the same model is the teacher."""

    PREFIX = "layersync"
    TITLE = "LayerSync"
    ONLY_FOR = "transformer"

    enabled: bool = alignment_option(
        False, help="Aligns a block of a transformer with a deeper block of itself; needs no encoder and no projector."
    )
    student_block: int | None = alignment_option(
        None,
        ge=0,
        depends_on="{x}_enabled",
        label="Learning block",
        help="The block that learns, counted from 0: about a third of the depth.",
    )
    teacher_block: int | None = alignment_option(
        None,
        ge=0,
        depends_on="{x}_enabled",
        label="Teaching block",
        help="The block that teaches, counted from 0: about two thirds of the depth. It must differ from the student.",
    )
    lambda_: float = alignment_option(
        0.2,
        ge=0,
        depends_on="{x}_enabled",
        label="Weight",
        help="Weight of the loss. 0.2 when training from scratch; far less (0.002) for a LoRA.",
    )


PREFIXED_GROUPS: tuple[type[PrefixedOptions], ...] = (CrepaOptions, UrepaOptions, IrepaOptions, LayersyncOptions)
