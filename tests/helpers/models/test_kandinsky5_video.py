"""Kandinsky 5 with sparse attention, which keeps its tokens in squares of 8x8."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import Kandinsky5T2VPipeline

from simpletuner.configuration import Config
from simpletuner.helpers.models.capture import capture_hidden_states
from simpletuner.helpers.models.registry import foundation_class
from tests.families.kandinsky5_video import transformer


def test_tokens_of_sparse_attention_are_row_major_too() -> None:
    """Mistake 5: in anybody's loop, every patch moves its own token most, although the model permutes them."""
    torch.manual_seed(0)
    window = {"attention_wT": 3, "attention_wH": 3, "attention_wW": 3, "attention_P": 0.9}
    model = transformer(attention_type="nabla", num_visual_blocks=2, **window).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    for block in model.visual_transformer_blocks:
        block.self_attention.processor._attention_backend = "flex"
    frames, rows, columns = 2, 16, 8
    places = [(t, h, w) for t in range(frames) for h in range(0, rows, 3) for w in range(0, columns, 3)]
    latents = torch.randn(1, frames, 2 * rows, 2 * columns, 4).repeat(1 + len(places), 1, 1, 1, 1)
    for index, (t, h, w) in enumerate(places, start=1):
        latents[index, t, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2] += 1.0
    latents = torch.nn.functional.pad(latents, (0, 5))
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler"))
    pipeline = Kandinsky5T2VPipeline(transformer=model, **parts)
    capture = capture_hidden_states(model, 0, 1)
    with torch.no_grad(), capture as hidden:
        model(
            latents,
            encoder_hidden_states=torch.randn(1, 3, 16).expand(len(latents), -1, -1),
            timestep=torch.full((len(latents),), 500.0),
            pooled_projections=torch.randn(1, 16).expand(len(latents), -1),
            visual_rope_pos=[torch.arange(side) for side in (frames, rows, columns)],
            text_rope_pos=torch.arange(3),
            sparse_params=pipeline.get_sparse_params(latents, torch.device("cpu")),
        )
    expected = [(t * rows + h) * columns + w for t, h, w in places]
    for layer in (0, 1):
        tokens = hidden[f"layer_{layer}"]
        assert tokens.shape == (len(latents), frames * rows * columns, 16)
        assert (tokens[1:] - tokens[:1]).norm(dim=-1).argmax(1).tolist() == expected


def test_sparse_attention_is_not_trained(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "sparse"
    shutil.copytree(tiny_folder("kandinsky5_video"), folder)
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"attention_type": "nabla"}))
    config = Config(model_family="kandinsky5_video", pretrained_model_name_or_path=str(folder), mixed_precision="no")
    with pytest.raises(ValueError, match="attention_type is nabla"):
        foundation_class("kandinsky5_video")(config, Accelerator(cpu=True)).load_model()
