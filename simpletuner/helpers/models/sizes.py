"""How large what a family's encoders give is, known from their configurations: no weights are read, nothing encoded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig

from simpletuner.helpers.data.buckets import Bucket
from simpletuner.helpers.models import loading
from simpletuner.helpers.models.common import ModelFoundation


def latent_shapes(foundation: ModelFoundation, buckets: Iterable[Bucket]) -> dict[Bucket, tuple[int, ...]]:
    """The shape of a sample's latents, `(C, h, w)` or `(C, t, h, w)`, for each bucket.

    The autoencoder is built on the meta device, where shapes come out and nothing is computed.

    Raises:
        ValueError: the model has no configuration of an autoencoder that can be read.
    """
    source = Path(foundation.source)
    has_none = foundation.family.pixel_space_without_vae and source.is_dir() and not (source / "vae").is_dir()
    if not has_none:
        facts = loading.load_facts(foundation.AUTOENCODER_CLASS, foundation.source, "vae")
        with torch.device("meta"):
            foundation.vae = foundation.AUTOENCODER_CLASS.from_config(facts).eval()
    try:
        with torch.no_grad():
            return {bucket: tuple(foundation.encode_pixels(_pixels(bucket)).shape[1:]) for bucket in buckets}
    finally:
        foundation.unload_vae()


def prompt_bytes(foundation: ModelFoundation) -> int | None:
    """Bytes of a prompt's embeddings; None where only encoding tells, as with as many tokens as the prompt has.

    Known where a single CLIP encodes prompts, which it pads to one length.
    """
    if foundation.TEXT_MASKS:
        return None
    try:
        parts = loading.load_facts(foundation.pipeline_class, foundation.source)
        encoders = [
            name for name, entry in parts.items() if name.startswith("text_encoder") and isinstance(entry, list)
        ]
        if encoders != ["text_encoder"]:
            return None
        facts = AutoConfig.from_pretrained(foundation.source, subfolder="text_encoder")
    except (OSError, ValueError):
        return None
    if facts.model_type != "clip_text_model":
        return None
    dtype = loading.MIXED_PRECISION_DTYPES[foundation.config.mixed_precision]
    return facts.max_position_embeddings * facts.hidden_size * dtype.itemsize


def _pixels(bucket: Bucket) -> Tensor:
    return torch.zeros(1, bucket.frames, 3, bucket.height, bucket.width, device="meta")
