"""LoRA adapters on diffusers models: adding them, writing them for `load_lora_weights`, and reading them back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LoraBaseMixin
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor, nn

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
ADAPTER = "default"
# The attention of blocks in which text and image are streams of their own.
JOINT_ATTENTION = (
    *(f"attn.to_{part}" for part in ("q", "k", "v", "out.0")),
    *(f"attn.add_{part}_proj" for part in ("q", "k", "v")),
    "attn.to_add_out",
)


def add_lora(model: nn.Module, targets: Sequence[str], *, rank: int, alpha: float | None) -> None:
    """Freezes `model` and adds an adapter with fp32 weights to it, whatever dtype the model has.

    Args:
        targets: the names of the layers to adapt, or ends of them.
        alpha: the update is scaled by `alpha / rank`; None means the rank.

    Raises:
        ValueError: no module of the model matches the targets.
    """
    model.requires_grad_(False)
    scale: Any = rank if alpha is None else alpha  # peft declares an int but takes any number
    adapter = LoraConfig(r=rank, lora_alpha=scale, target_modules=list(targets))
    # Some classes (DiT, PixArt) have no `add_adapter`; for all of them peft does the work.
    inject_adapter_in_model(adapter, model, adapter_name=ADAPTER)
    cast_training_params(model, dtype=torch.float32)


def save_lora(model: nn.Module, folder: Path, prefix: str, state_dict: dict[str, Tensor] | None = None) -> Path:
    """Writes the adapter as `load_lora_weights` of a diffusers pipeline wants it, and returns the file.

    Args:
        prefix: the pipeline's name of the model, "transformer" or "unet".
        state_dict: the full state of the model if it is sharded or other weights are wanted; None reads the model.
    """
    adapter: LoraConfig = model.peft_config[ADAPTER]  # type: ignore[index, assignment]
    weights = get_peft_model_state_dict(model, state_dict=state_dict, adapter_name=ADAPTER)
    LoraBaseMixin.write_lora_layers(
        {f"{prefix}.{name}": weight.detach().cpu().contiguous() for name, weight in weights.items()},
        save_directory=str(folder),
        is_main_process=True,
        weight_name=WEIGHTS_NAME,
        save_function=None,  # type: ignore[arg-type]  # None is allowed: safetensors, with the settings in the header
        safe_serialization=True,
        # Without the settings, loaders take the rank for alpha.
        lora_adapter_metadata={f"{prefix}.{name}": _ordered(value) for name, value in adapter.to_dict().items()},
    )
    return folder / WEIGHTS_NAME


def _ordered(value: Any) -> Any:
    """Sets in order, so that the same weights make the same file."""
    return sorted(value) if isinstance(value, set) else value


def load_lora(model: nn.Module, file: Path, prefix: str) -> None:
    """Adds the adapter that `save_lora` wrote to a plain `model`; for classes whose pipeline has no loader, like DiT.

    Raises:
        ValueError: the file has no adapter for `prefix`, or one with other modules.
    """
    start = f"{prefix}."
    with safe_open(file, framework="pt") as content:
        metadata: dict[str, Any] = json.loads((content.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}"))
        names = [name for name in content.keys() if name.startswith(start)]  # noqa: SIM118 (it is no mapping)
        weights = {name.removeprefix(start): content.get_tensor(name) for name in names}
    settings = {name.removeprefix(start): value for name, value in metadata.items() if name.startswith(start)}
    if not settings:
        raise ValueError(f"{file} has no adapter settings for {prefix!r}; was it written by another program?")
    inject_adapter_in_model(LoraConfig(**settings), model, adapter_name=ADAPTER)
    outcome: Any = set_peft_model_state_dict(model, weights, adapter_name=ADAPTER)
    if outcome.unexpected_keys:
        raise ValueError(f"{file} doesn't fit {type(model).__name__}: unknown {outcome.unexpected_keys[:3]} …")
