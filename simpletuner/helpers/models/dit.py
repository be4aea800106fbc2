"""DiT: a class-conditional transformer, for training from scratch on small data as well as for the published XL/2.

A folder without an autoencoder is trained in pixel space. Images must be square: diffusers' DiT lays its output out so.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor, nn

from simpletuner.helpers.models import loading, noising
from simpletuner.helpers.models.common import Batch, ImageModelFoundation, TextEmbeds
from simpletuner.helpers.models.sampling import SampleSettings


class DitFoundation(ImageModelFoundation):
    NAME = "dit"
    MODEL_CLASS = DiTTransformer2DModel
    PIPELINE_CLASS = DiTPipeline
    AUTOENCODER_CLASS = AutoencoderKL
    GUIDES_IN_INTERVALS = True
    TINY_AUTOENCODER = "madebyollin/taesd"

    _captions: tuple[str, ...] = ()

    def load_model(self, max_train_steps: int | None = None) -> nn.Module:
        model = super().load_model(max_train_steps)
        # In training, every block would drop the class on its own, from the global random state. Classes are dropped
        # by `caption_dropout_probability` instead, for the whole model at once and reproducibly.
        for module in model.modules():
            if isinstance(module, LabelEmbedding):
                module.dropout_prob = 0.0
        return model

    def initialise(self, model: Any) -> None:
        # adaLN-Zero: every block starts as the identity, and the output at zero (arXiv 2212.09748).
        modulations = [block.norm1.linear for block in model.transformer_blocks]
        for layer in (*modulations, model.proj_out_1, model.proj_out_2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    # Pixels

    @cached_property
    def in_pixel_space(self) -> bool:
        """Whether the model works on pixels because its folder has no autoencoder."""
        folder = Path(self.source)
        return folder.is_dir() and not (folder / "vae").is_dir()

    def load_vae(self) -> Any:
        return None if self.in_pixel_space else super().load_vae()

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        if height != width:
            raise ValueError(
                f"dit takes square images only, got {width}×{height} pixels; set crop_aspect to square in the data set."
            )
        if not self.in_pixel_space:
            return super().encode_pixels(pixels)
        images = pixels[:, 0].float()
        if self.model_facts["in_channels"] == 1:
            images = images.mean(1, keepdim=True)
        return images * 2 - 1

    def decode_latents(self, latents: Tensor, *, vae: Any = None) -> Tensor:
        if not self.in_pixel_space:
            return super().decode_latents(latents, vae=vae)
        pixels = (latents.float() / 2 + 0.5).clamp(0, 1)
        return pixels.expand(-1, 3, -1, -1)[:, None]

    # Classes

    @cached_property
    def labels(self) -> dict[str, int]:
        """Class index by name: `id2label` of model_index.json, with its synonyms, or the sorted captions observed."""
        named = self._named_classes()
        if named is None:
            return {caption: index for index, caption in enumerate(self._captions)}
        synonyms = {part.strip(): int(key) for key, text in named.items() for part in text.split(",")}
        return synonyms | {text.strip(): int(key) for key, text in named.items()}

    def _named_classes(self) -> dict[str, str] | None:
        folder = Path(self.source)
        if folder.is_dir() and not (folder / "model_index.json").is_file():
            return None
        return loading.load_facts(self.PIPELINE_CLASS, self.source).get("id2label")

    @property
    def null_class(self) -> int:
        """The class of the empty caption."""
        facts = self.model_facts
        if "num_embeds_ada_norm" not in facts:
            raise ValueError(
                f"pretrained_model_name_or_path: {self.source!r} holds a {facts.get('_class_name')}, which has no "
                "classes as a dit has. Set model_family to the model's own family, or name another model."
            )
        return facts["num_embeds_ada_norm"]

    def observe_captions(self, captions: Iterable[str]) -> None:
        self._captions = tuple(sorted({caption.strip() for caption in captions} - {""}))
        self.__dict__.pop("labels", None)
        if self._named_classes() is None and len(self._captions) > self.null_class:
            raise ValueError(
                f"The data has {len(self._captions)} different captions, but this dit has {self.null_class} classes. "
                "Its captions must be class names: use caption_strategy folder, or raise num_embeds_ada_norm."
            )

    def load_text_encoders(self) -> Any:
        return None

    def encode_text(self, pipeline: Any, prompts: list[str]) -> TextEmbeds:
        return {"class_labels": torch.tensor([self._class_of(prompt.strip()) for prompt in prompts])}

    def _class_of(self, name: str) -> int:
        if name == "":
            return self.null_class
        if name not in self.labels:
            known = ", ".join(sorted(self.labels)[:10]) + (" …" if len(self.labels) > 10 else "")
            raise ValueError(
                f"{name!r} isn't a class of this dit; it knows {known or 'none'}. Use these as captions and as "
                "validation_prompt and validation_negative_prompt, or an empty text for no class."
            )
        return self.labels[name]

    # Model

    def forward(self, prepared_batch: Batch) -> Tensor:
        return self._predict(self.model, prepared_batch)

    def _predict(self, model: Any, prepared_batch: Batch) -> Tensor:
        prediction = model(
            self.noisy_input(prepared_batch),
            timestep=prepared_batch["timesteps"],
            class_labels=prepared_batch["text"]["class_labels"],
            return_dict=False,
        )[0]
        # The published models predict a variance too, in the second half of the channels; it isn't trained here.
        return prediction[:, : prepared_batch["noisy_latents"].shape[1]]

    def sample_latents(self, text: TextEmbeds, negative: TextEmbeds, settings: SampleSettings) -> Tensor:
        # DiTPipeline has the null class of ImageNet built in, needs an autoencoder and knows no flow matching.
        scheduler = noising.sampling_scheduler(self.prediction_type, self.scheduler_facts)
        scheduler.set_timesteps(settings.steps, device=self.accelerator.device)
        ratio = 1 if self.in_pixel_space else 2 ** (len(self.load_vae().config.block_out_channels) - 1)
        shape = (self.model_facts["in_channels"], settings.height // ratio, settings.width // ratio)
        generators = settings.generators(len(text["class_labels"]))
        latents = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        latents = latents.to(self.accelerator.device)
        for time in scheduler.timesteps:
            scale = settings.guidance_at(float(time) / scheduler.config.num_train_timesteps)
            prediction = self._guided(latents, time, text, negative, scale)
            latents = scheduler.step(prediction, time, latents, return_dict=False)[0]
        return latents

    def _guided(self, latents: Tensor, time: Tensor, text: TextEmbeds, negative: TextEmbeds, guidance: float) -> Tensor:
        model = self.unwrap_model()  # one rank samples alone, and a distributed wrapper would wait for the others

        def predict(condition: TextEmbeds) -> Tensor:
            times = time.expand(len(latents))
            return self._predict(model, {"noisy_latents": latents, "timesteps": times, "text": condition}).float()

        if guidance == 1:
            return predict(text)
        unconditional = predict(negative)
        return unconditional + guidance * (predict(text) - unconditional)
