"""HiDream-I1: an MM-DiT with a mixture of experts and four text encoders, trained by flow matching."""

from __future__ import annotations

from functools import cached_property
from math import prod, sqrt
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diffusers import AutoencoderKL, HiDreamImagePipeline, HiDreamImageTransformer2DModel
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from simpletuner.helpers.models import loading
from simpletuner.helpers.models.common import Batch, ImageModelFoundation, TextEmbeds
from simpletuner.helpers.models.sampling import SampleSettings
from simpletuner.helpers.utils.hidden_state_buffer import ForwardCall

LLAMA = "meta-llama/Meta-Llama-3.1-8B-Instruct"


class SizedHiDreamPipeline(HiDreamImagePipeline):
    """Makes images of the size asked for; diffusers' own scales every size to the area of 1024 × 1024."""

    def __call__(self, *, height: int, width: int, **arguments: Any) -> Any:
        # One pixel more, since the pipeline rounds down.
        self.default_sample_size = sqrt(height * width + 1) / self.vae_scale_factor  # type: ignore[attr-defined]
        return super().__call__(height=height, width=width, **arguments)  # type: ignore[misc]  # untyped


class HidreamFoundation(ImageModelFoundation):
    NAME = "hidream"
    MODEL_CLASS = HiDreamImageTransformer2DModel
    PIPELINE_CLASS = SizedHiDreamPipeline
    AUTOENCODER_CLASS = AutoencoderKL
    TINY_AUTOENCODER = "madebyollin/taef1"
    BLOCK_CONTAINERS = ("double_stream_blocks", "single_stream_blocks")
    GUIDES_IN_INTERVALS = True
    LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out")
    PIPELINE_ARGUMENTS = MappingProxyType({"text_encoder_4": None, "tokenizer_4": None})

    def verify(self) -> None:
        loading.require_pipeline(HiDreamImagePipeline, self.source)
        super().verify()

    def load_model(self, max_train_steps: int | None = None) -> nn.Module:
        model = super().load_model(max_train_steps)
        # With this option the experts run without gradients, and what is trained before them gets wrong ones.
        model.register_to_config(force_inference_output=False)  # type: ignore[operator]
        experts: Any = [module for module in model.modules() if hasattr(module, "_force_inference_output")]
        for module in experts:
            module._force_inference_output = False
        return model

    # Text

    def load_text_encoders(self) -> Any:
        if self._text_pipeline is None:
            encoder, tokenizer = self._load_llama()
            pipeline = super().load_text_encoders()
            tokenizer.pad_token = tokenizer.eos_token  # as the pipeline has it
            pipeline.register_modules(text_encoder_4=encoder.to(self.accelerator.device), tokenizer_4=tokenizer)
        return self._text_pipeline

    def _load_llama(self) -> tuple[Any, Any]:
        """The fourth text encoder and its tokenizer: from the model's own folder, or else the published Llama."""
        is_own = (Path(self.source) / "text_encoder_4").is_dir()
        source, folders = (self.source, ("text_encoder_4", "tokenizer_4")) if is_own else (LLAMA, ("", ""))
        dtype = loading.MIXED_PRECISION_DTYPES[self.config.mixed_precision]
        try:
            encoder = LlamaForCausalLM.from_pretrained(source, subfolder=folders[0], dtype=dtype, use_safetensors=True)
            return encoder, PreTrainedTokenizerFast.from_pretrained(source, subfolder=folders[1])
        except loading.LOADING_ERRORS as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"pretrained_model_name_or_path: HiDream's fourth text encoder could not be read from {source!r}: "
                f"{reason} The published models come without it. Accept the licence of {LLAMA} on the hub and log in, "
                "or put text_encoder_4/ and tokenizer_4/ into a local model."
            ) from error

    def encode_text(self, pipeline: Any, prompts: list[str]) -> TextEmbeds:
        t5, _, llama, _, pooled, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
        # Of Llama all layers, `(B, layers, L, D)`: the blocks take different ones.
        return {
            "prompt_embeds_t5": t5,
            "prompt_embeds_llama3": llama.transpose(0, 1),
            "pooled_prompt_embeds": pooled,
        }

    # Step

    @cached_property
    def _most_tokens(self) -> int:
        """How many tokens an image that isn't square can have: the model pads it to so many."""
        facts = self.model_facts
        return prod(facts["max_resolution"]) // facts["patch_size"] ** 2

    def _refuse_large(self, height: int, width: int, mend: str) -> None:
        tokens = height * width // self.family.pixels_per_token**2
        if height != width and tokens > self._most_tokens:
            raise ValueError(
                f"{width}×{height} pixels are {tokens} tokens, but this hidream takes at most {self._most_tokens} "
                f"of an image that isn't square. {mend}"
            )

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        self._refuse_large(height, width, "Lower resolution, or set crop_aspect to square in the data set.")
        return super().encode_pixels(pixels)

    def forward(self, prepared_batch: Batch) -> Tensor:
        text, noisy = prepared_batch["text"], self.noisy_input(prepared_batch)
        prediction = self.model(
            noisy,
            timesteps=prepared_batch["timesteps"],
            encoder_hidden_states_t5=text["prompt_embeds_t5"],
            encoder_hidden_states_llama3=text["prompt_embeds_llama3"].transpose(0, 1),
            pooled_embeds=text["pooled_prompt_embeds"],
            return_dict=False,
        )[0]
        if self.unwrap_model().training:
            # `(B, C, S, patch²)` with padding; only in evaluation diffusers lays it out as the latents are.
            grid, side = self.student_grid(noisy), self.unwrap_model().config.patch_size
            patches = prediction[:, :, : grid.tokens].unflatten(3, (side, side))
            prediction = patches.unflatten(2, (grid.height, grid.width)).transpose(3, 4).reshape(noisy.shape)
        return -prediction

    @classmethod
    def select_tokens(cls, raw_output: Any, block_index: int, call: ForwardCall) -> Tensor:
        # The image comes first, in streams of its own as in joint ones; padding or text follows.
        if call.arguments.get("hidden_states_masks") is not None:
            raise ValueError("HiDream's tokens can be picked out of forwards on latents `(B, C, H, W)` only.")
        hidden = raw_output[0] if isinstance(raw_output, tuple) else raw_output
        return hidden[:, : cls.image_tokens(call)]

    # Out

    def pipeline_arguments(self, text: TextEmbeds, negative: TextEmbeds, settings: SampleSettings) -> dict[str, Any]:
        self._refuse_large(settings.height, settings.width, "Lower validation_resolution.")
        arguments = super().pipeline_arguments(text, negative, settings)
        llama = ("prompt_embeds_llama3", "negative_prompt_embeds_llama3")
        return arguments | {name: arguments[name].transpose(0, 1) for name in llama}
