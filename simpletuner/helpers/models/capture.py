"""Capturing hidden states of a diffusers model in a training loop of one's own."""

from __future__ import annotations

from torch import nn

from simpletuner.helpers.models.registry import family_of_class, foundation_class
from simpletuner.helpers.utils.hidden_state_buffer import (
    HiddenStateBuffer,
    TransformerBlockCapture,
    UNetMidBlockCapture,
)


def capture_hidden_states(model: nn.Module, *layers: int | str) -> TransformerBlockCapture | UNetMidBlockCapture:
    """Hooks some layers of a diffusers model; use the result as a context manager around each forward.

    Call it once, before torch.compile's first call and before a distributed wrapper: `with capture as hidden: ...`,
    then `hidden["layer_8"]`.

    Args:
        model: an unmodified diffusers model of a known family.
        layers: 0-based block indices of a transformer, or "mid", "enc_last", "dec_first" of a UNet.

    Raises:
        ValueError: no family has this model class, or it has no such layer.
    """
    family = family_of_class(type(model).__name__)
    if family.model_type == "unet":
        return UNetMidBlockCapture(model, [str(layer) for layer in layers])
    foundation = foundation_class(family.name)
    blocks = [block for container in foundation.BLOCK_CONTAINERS for block in getattr(model, container)]
    return TransformerBlockCapture(model, blocks, foundation.select_tokens, HiddenStateBuffer(layers))
