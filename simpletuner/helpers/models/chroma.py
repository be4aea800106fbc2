"""Chroma: a pruned FLUX.1 without CLIP and guidance, which masks all padding of T5 but the first token."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from diffusers import AutoencoderKL, ChromaPipeline, ChromaTransformer2DModel
from diffusers.models.transformers.transformer_chroma import ChromaSingleTransformerBlock
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from simpletuner.helpers.models.common import TextEmbeds
from simpletuner.helpers.models.flux import LORA_TARGETS
from simpletuner.helpers.models.packing import PackedImageFoundation, position_ids
from simpletuner.helpers.training.alignment.geometry import TokenGrid


class ChromaFoundation(PackedImageFoundation):
    NAME = "chroma"
    MODEL_CLASS = ChromaTransformer2DModel
    PIPELINE_CLASS = ChromaPipeline
    AUTOENCODER_CLASS = AutoencoderKL
    TINY_AUTOENCODER = "madebyollin/taef1"
    BLOCK_CONTAINERS = ("transformer_blocks", "single_transformer_blocks")
    TEXT_FIRST = True
    LORA_TARGETS = LORA_TARGETS
    TEXT_MASKS = MappingProxyType({"prompt_embeds": "prompt_attention_mask"})

    _mask: Tensor

    def load_model(self, max_train_steps: int | None = None) -> nn.Module:
        model: Any = super().load_model(max_train_steps)
        if self.config.gradient_checkpointing:
            model.enable_gradient_checkpointing(self._checkpoint)
        return model

    def _checkpoint(self, block: nn.Module, *arguments: Any) -> Any:
        """Runs a block under checkpointing, with the mask, which diffusers forgets to give the single blocks."""
        if isinstance(block, ChromaSingleTransformerBlock):
            arguments = (*arguments[:3], self._mask, *arguments[4:])
        return checkpoint(block, *arguments, use_reentrant=False)

    def encode_text(self, pipeline: Any, prompts: list[str]) -> TextEmbeds:
        embeds, _, mask, *_ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    def conditions(self, text: TextEmbeds, grid: TokenGrid) -> dict[str, Any]:
        # Boolean, so that attention masks by it; the pipeline's own mask of floats would be added to the scores.
        self._mask = pad(text["prompt_attention_mask"], (0, grid.tokens), value=True)
        return {"attention_mask": self._mask, **position_ids(text["prompt_embeds"], grid)}
