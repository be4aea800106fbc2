"""Writes tiny model folders, and a tiny teacher: the real classes with random weights, no downloads."""

from __future__ import annotations

import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from tests.families import CASES


def tiny_folder(family: str, root: Path) -> Path:
    """Writes `root/family` in diffusers' folder format and returns it; the weights depend on the family alone."""
    case = CASES[family]
    folder = root / family
    index: dict[str, object] = {"_class_name": case.pipeline, **dict(case.facts)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        components = case.components()
        for name, component in components.items():
            if isinstance(component, torch.nn.Module):
                _leave_zero_initialisation(component)
            if component is not None:
                component.save_pretrained(folder / name)  # type: ignore[attr-defined]
            index[name] = [None, None] if component is None else [_library(type(component)), type(component).__name__]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def _library(kind: type) -> str:
    """The package of a class; for what one pipeline alone has, its folder in diffusers."""
    path = kind.__module__.split(".")
    return path[2] if path[:2] == ["diffusers", "pipelines"] else path[0]


def tiny_teacher(root: Path, width: int = 16) -> Path:
    """Writes `root/teacher`, a DINOv2 of timm with one block, and returns it."""
    folder = root / "teacher"
    folder.mkdir()
    facts = {
        "architecture": "vit_small_patch14_dinov2",
        "model_args": {"depth": 1, "embed_dim": width, "num_heads": 2, "img_size": 56},
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, **facts["model_args"])
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(facts))
    return folder


def _leave_zero_initialisation(module: torch.nn.Module) -> None:
    """Diffusion models start with zeros in places, and then nothing depends on anything: draw those too."""
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
