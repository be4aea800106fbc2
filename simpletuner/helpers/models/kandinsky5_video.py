"""Kandinsky 5 Video, text to video: a DiT with cross-attention over HunyuanVideo's autoencoder; channels come last."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo, Kandinsky5T2VPipeline, Kandinsky5Transformer3DModel
from torch import Tensor, nn
from torch.nn import functional

from simpletuner.helpers.models import loading
from simpletuner.helpers.models.common import Batch, TextEmbeds, VideoModelFoundation
from simpletuner.helpers.models.sampling import SampleSettings
from simpletuner.helpers.utils.hidden_state_buffer import ForwardCall

SPARSE_CELL = 8  # tokens to a side of the squares in which sparse attention orders them


class Kandinsky5VideoFoundation(VideoModelFoundation):
    NAME = "kandinsky5_video"
    MODEL_CLASS = Kandinsky5Transformer3DModel
    PIPELINE_CLASS = Kandinsky5T2VPipeline
    ONLY_ITS_PIPELINE = True  # not image to video or to image
    AUTOENCODER_CLASS = AutoencoderKLHunyuanVideo
    BLOCK_CONTAINERS = ("visual_transformer_blocks",)
    LORA_TARGETS = ("to_query", "to_key", "to_value", "self_attention.out_layer", "cross_attention.out_layer")
    TEXT_MASKS = MappingProxyType({"prompt_embeds_qwen": "prompt_mask"})

    @property
    def hidden_size(self) -> int:
        return self.unwrap_model().config.model_dim

    def verify(self) -> None:
        if self.model_facts.get("attention_type") == "nabla":
            raise ValueError(
                f"{loading.SOURCE_OPTION} is {self.source!r}, a Kandinsky 5 with sparse attention (attention_type is "
                "nabla), which needs a compiled FlexAttention that this trainer doesn't set up; take a model with full "
                "attention, such as the Lite models for 5 seconds."
            )
        super().verify()

    def encode_text(self, pipeline: Any, prompts: list[str]) -> TextEmbeds:
        # One by one: the pipeline neither masks nor trims the padding of a batch.
        encoded = [pipeline.encode_prompt([prompt]) for prompt in prompts]
        return self.collate_text(
            [{"prompt_embeds_qwen": tokens[0], "prompt_embeds_clip": pooled[0]} for tokens, pooled, _ in encoded]
        )

    def forward(self, prepared_batch: Batch) -> Tensor:
        mask_padding(self.unwrap_model())
        noisy, text = self.noisy_input(prepared_batch), prepared_batch["text"]
        embeds = text["prompt_embeds_qwen"].masked_fill(~text["prompt_mask"][..., None], 0)
        grid = self.student_grid(noisy)
        latents = noisy.movedim(1, -1)
        if self.unwrap_model().config.visual_cond:
            # Frames that are given, and a mask of them: none is.
            latents = functional.pad(latents, (0, latents.shape[-1] + 1))
        ratio = self.family.latent_ratio
        prediction = self.model(
            latents,
            encoder_hidden_states=embeds,
            timestep=prepared_batch["timesteps"],
            pooled_projections=text["prompt_embeds_clip"],
            visual_rope_pos=[torch.arange(n, device=noisy.device) for n in (grid.frames, grid.height, grid.width)],
            text_rope_pos=torch.arange(embeds.shape[1], device=noisy.device),
            # The pipeline's own rule, for sides in pixels; it asks nothing of the pipeline.
            scale_factor=Kandinsky5T2VPipeline._get_scale_factor(None, noisy.shape[3] * ratio, noisy.shape[4] * ratio),
            return_dict=False,
        )
        return prediction.movedim(-1, 1)

    @classmethod
    def select_tokens(cls, raw_output: Any, block_index: int, call: ForwardCall) -> Tensor:
        sparse = call.arguments.get("sparse_params")
        if sparse is None or not sparse["to_fractal"]:
            return raw_output
        grid = cls.token_grid(call.arguments["hidden_states"].movedim(-1, 1), call.config)
        cells = grid.frames, grid.height // SPARSE_CELL, grid.width // SPARSE_CELL
        return raw_output.unflatten(1, (*cells, SPARSE_CELL, SPARSE_CELL)).transpose(3, 4).flatten(1, 5)

    def sampling_pipeline(self) -> Any:
        mask_padding(self.unwrap_model())
        return super().sampling_pipeline()

    def pipeline_arguments(self, text: TextEmbeds, negative: TextEmbeds, settings: SampleSettings) -> dict[str, Any]:
        arguments = super().pipeline_arguments(text, negative, settings)
        count, length = text["prompt_embeds_clip"].shape[0], arguments["prompt_embeds_qwen"].shape[1]
        for prefix in ("", "negative_"):
            del arguments[f"{prefix}prompt_mask"]
            arguments[f"{prefix}prompt_cu_seqlens"] = torch.arange(count + 1) * length  # with padding, which is masked
        return arguments

    def unpack_latents(self, latents: Tensor, settings: SampleSettings) -> Tensor:
        return latents.movedim(-1, 1)


class _TextAttention:
    """An attention processor for tokens that attend to text: as diffusers' own, but not to padding.

    The model knows no mask, so that a batch of prompts of different lengths would depend on the longest of them. The
    mask stays for the backward, where gradient checkpointing runs the blocks again.
    """

    def __init__(self) -> None:
        self.mask: Tensor | None = None

    def note_padding(self, module: nn.Module, inputs: tuple[Tensor]) -> None:
        """Looks at text embeddings `(B, L, D)` on their way into the model: padding is zero."""
        self.mask = inputs[0].any(-1)[:, None, None]

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        rotary_emb: Tensor | None = None,
        sparse_params: None = None,
    ) -> Tensor:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(tokens).unflatten(-1, (attn.num_heads, -1))
            for layer, tokens in ((attn.to_query, hidden_states), (attn.to_key, text), (attn.to_value, text))
        )
        query = attn.query_norm(query.float()).type_as(query)
        key = attn.key_norm(key.float()).type_as(key)
        if rotary_emb is not None:
            query, key = _rotated(query, rotary_emb), _rotated(key, rotary_emb)
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=self.mask)
        return attn.out_layer(mixed.transpose(1, 2).flatten(2))


def _rotated(heads: Tensor, rotations: Tensor) -> Tensor:
    """`(B, L, heads, d)`, each pair turned by its 2x2 matrix; rounded to bf16 as the model always does."""
    pairs = heads.float().unflatten(-1, (-1, 1, 2))
    return (rotations * pairs).sum(-1).flatten(-2).to(torch.bfloat16).type_as(heads)


def mask_padding(model: Any) -> None:
    """Has a model attend to each sample's own text alone, if it doesn't yet."""
    if isinstance(model.visual_transformer_blocks[0].cross_attention.processor, _TextAttention):
        return
    attention = _TextAttention()
    model.text_embeddings.register_forward_pre_hook(attention.note_padding)
    for block in model.text_transformer_blocks:
        block.self_attention.set_processor(attention)
    for block in model.visual_transformer_blocks:
        block.cross_attention.set_processor(attention)
