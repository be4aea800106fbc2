"""Model foundations: the objects that load, feed and train a model family.

A family file states facts (classes, block containers, LoRA targets) and implements `encode_text` and `forward`; what
families share is here and, for taps and regularizers, in `taps`.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from accelerate.utils.memory import clear_device_cache
from diffusers import AutoencoderTiny, DDIMScheduler
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from simpletuner.helpers.models import autoencoder, loading, lora, noising, targets
from simpletuner.helpers.models.sampling import IntervalGuidance, SampleSettings, to_images
from simpletuner.helpers.models.taps import Batch, ModelTypes, TappedModel
from simpletuner.helpers.training.alignment.geometry import pixel_frames_of_latents
from simpletuner.helpers.training.alignment.pixels import decode_latents
from simpletuner.helpers.training.objectives import Objective, PredictionType

__all__ = ["Batch", "ImageModelFoundation", "ModelFoundation", "ModelTypes", "TextEmbeds", "VideoModelFoundation"]

TextEmbeds = dict[str, Tensor]


class ModelFoundation(TappedModel):
    """Loads one family's model, autoencoder and text encoders, and turns batches into predictions and losses.

    Args:
        config: the run's configuration.
        accelerator: gives the device, and unwraps the model.
    """

    MODEL_CLASS: ClassVar[Any]
    PIPELINE_CLASS: ClassVar[Any]
    AUTOENCODER_CLASS: ClassVar[Any]
    TINY_AUTOENCODER: ClassVar[str | None] = None
    LORA_TARGETS: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    PIPELINE_ARGUMENTS: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    # Whether models for other tasks, or distilled ones, have the same class and take other inputs: they are refused.
    ONLY_ITS_PIPELINE: ClassVar[bool] = False
    # Whether its sampler can guide at some noise levels only: a pipeline of one batch, the unconditional half first.
    GUIDES_IN_INTERVALS: ClassVar[bool] = False
    # Embeddings with as many tokens as a prompt has, and their masks: cached without padding, padded in a batch.
    TEXT_MASKS: ClassVar[Mapping[str, str]] = MappingProxyType({})

    vae: Any = None
    _text_pipeline: Any = None

    # Loading

    @cached_property
    def source(self) -> str:
        """The local folder, or the hub id, of the model."""
        return loading.resolve(self.config.pretrained_model_name_or_path)

    @property
    def pipeline_class(self) -> Any:
        """The pipeline that the model is made for, where a family has several."""
        return self.PIPELINE_CLASS

    @property
    def weight_dtype(self) -> torch.dtype:
        """fp32 if the model itself is trained; a frozen one that carries a LoRA has the dtype of `mixed_precision`."""
        is_lora = self.config.model_type == "lora"
        return loading.MIXED_PRECISION_DTYPES[self.config.mixed_precision] if is_lora else torch.float32

    def load_vae(self) -> Any:
        """Loads the autoencoder, in fp32, unless it is there; sets and returns `self.vae`."""
        if self.vae is None:
            vae = loading.load_weights(self.AUTOENCODER_CLASS, self.source, "vae", torch.float32)
            self.vae = vae.requires_grad_(False).eval().to(self.accelerator.device)
        return self.vae

    def unload_vae(self) -> None:
        """Frees the memory of the autoencoder; it is loaded again when it is needed."""
        self.vae = None
        clear_device_cache(garbage_collection=True)

    def load_tiny_autoencoder(self) -> Any:
        option = "urepa_use_tae" if self.MODEL_TYPE is ModelTypes.UNET else "crepa_use_tae"
        if self.TINY_AUTOENCODER is None:
            raise ValueError(f"{option} is true, but there is no tiny autoencoder for {self.NAME}; set it to false.")
        vae = loading.load_weights(AutoencoderTiny, self.TINY_AUTOENCODER, None, torch.float32, option=option)
        return vae.requires_grad_(False).eval().to(self.accelerator.device)

    def load_text_encoders(self) -> Any:
        """Loads tokenizers and text encoders, unless they are there, as a pipeline without its other parts."""
        if self._text_pipeline is None:
            pipeline = loading.load_pipeline(
                self.pipeline_class,
                self.source,
                ("tokenizer", "text_encoder"),
                loading.MIXED_PRECISION_DTYPES[self.config.mixed_precision],
                **self.PIPELINE_ARGUMENTS,
            )
            self._text_pipeline = pipeline.to(self.accelerator.device)
        return self._text_pipeline

    def unload_text_encoders(self) -> None:
        """Frees the memory of the text encoders; they are loaded again when they are needed."""
        self._text_pipeline = None
        clear_device_cache(garbage_collection=True)

    def verify(self) -> None:
        """Says what can't be trained as configured, before anything is cached or loaded; no weights are read.

        Raises:
            ValueError: names the option and the mend.
        """
        if self.ONLY_ITS_PIPELINE:
            loading.require_pipeline(self.pipeline_class, self.source)
        _ = self.objective
        if self.config.peft_lora_target_modules is not None or self.config.trainable_prefixes is not None:
            with torch.device("meta"):
                self._trained_layers(loading.load_random(self.MODEL_CLASS, self.source, self.family.model_subfolder))

    def load_model(self, max_train_steps: int | None = None) -> nn.Module:
        """Loads the model, adds the LoRA, and makes the regularizers; sets and returns `self.model`.

        Args:
            max_train_steps: length of the run for schedules that need it; None takes the option of that name.

        Raises:
            ValueError: the model can't be read, or an option of a regularizer doesn't fit it.
        """
        self.verify()
        subfolder = self.family.model_subfolder
        if self.config.train_from_scratch:
            model = loading.load_random(self.MODEL_CLASS, self.source, subfolder)
            self.initialise(model)
        else:
            model = loading.load_weights(self.MODEL_CLASS, self.source, subfolder, self.weight_dtype)
        self.model = model.to(self.accelerator.device)
        layers = self._trained_layers(model)
        if self.config.model_type == "lora":
            lora.add_lora(model, layers, rank=self.config.lora_rank, alpha=self.config.lora_alpha)
        if self.config.gradient_checkpointing:
            model.enable_gradient_checkpointing()  # non-reentrant in diffusers, as the capture needs it
        model.train()
        self._init_regularizers(self.config.max_train_steps if max_train_steps is None else max_train_steps)
        return model

    def _trained_layers(self, model: nn.Module) -> Sequence[str]:
        """Freezes what isn't trained, and names the layers of a LoRA. ValueError where an option fits nothing."""
        wanted, prefixes = self.config.peft_lora_target_modules, self.config.trainable_prefixes
        if self.config.model_type != "lora":
            targets.train_within(model, prefixes)
            return ()
        model.requires_grad_(False)
        if wanted is None and prefixes is None:
            return self.LORA_TARGETS
        named = self.LORA_TARGETS if wanted is None else wanted
        return targets.adapter_layers(model, named, prefixes, all_needed=wanted is not None)

    def initialise(self, model: Any) -> None:
        """Sets the weights of a model that is trained from scratch where diffusers' own are not what a paper says."""

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters of the model that are trained; the regularizer's projector isn't among them."""
        return [parameter for parameter in self.unwrap_model().parameters() if parameter.requires_grad]

    # Data

    def observe_captions(self, captions: Iterable[str]) -> None:
        """Is told all captions of the data before any is encoded; only class-conditional families care."""

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> list[TextEmbeds]:
        """One dict of embeddings a prompt, without batch dimension, on the CPU; its keys are the pipeline's names."""
        embeds = self.encode_text(self.load_text_encoders(), prompts)
        kept = {name: embeds.pop(mask).bool() for name, mask in self.TEXT_MASKS.items()}
        return [
            {name: (rows[i][kept[name][i]] if name in kept else rows[i]).cpu() for name, rows in embeds.items()}
            for i in range(len(prompts))
        ]

    @abstractmethod
    def encode_text(self, pipeline: Any, prompts: list[str]) -> TextEmbeds:
        """Batched embeddings through the pipeline's own `encode_prompt`, named as its `__call__` takes them."""

    def collate_text(self, items: list[TextEmbeds]) -> TextEmbeds:
        """Stacks the embeddings of several prompts into one batch; ragged ones are padded with zeros and masked."""
        batch: TextEmbeds = {}
        for name in items[0]:
            rows = [item[name] for item in items]
            if name in self.TEXT_MASKS:
                batch[self.TEXT_MASKS[name]] = pad_sequence([torch.ones(len(row)) for row in rows], True).bool()
                batch[name] = pad_sequence(rows, batch_first=True)
            else:
                batch[name] = torch.stack(rows)
        return batch

    @abstractmethod
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels `(B, T, 3, H, W)` in [0, 1] to normalised latents, fp32; deterministic (the posterior's mode)."""

    def decode_latents(self, latents: Tensor, *, vae: Any = None) -> Tensor:
        if vae is None:
            vae = self.load_vae()
            if self.config.crepa.enabled and self.config.crepa.drop_vae_encoder:
                # Latents are cached by now; `unload_vae` brings it back. Some classes still count its modules.
                vae.encoder = vae.quant_conv = nn.ModuleList()
        return decode_latents(latents, vae)

    # Step

    @cached_property
    def model_facts(self) -> dict[str, Any]:
        """The JSON configuration of the model, for what must be known before it is loaded."""
        return loading.load_facts(self.MODEL_CLASS, self.source, self.family.model_subfolder)

    @cached_property
    def architecture(self) -> dict[str, Any]:
        """`model_facts` with the class's defaults for what they leave out."""
        parameters = inspect.signature(self.MODEL_CLASS.__init__).parameters.values()
        return {parameter.name: parameter.default for parameter in parameters} | self.model_facts

    @cached_property
    def scheduler_facts(self) -> dict[str, Any]:
        """The JSON configuration of the scheduler that comes with the model."""
        return loading.load_facts(DDIMScheduler, self.source, "scheduler")

    @cached_property
    def prediction_type(self) -> PredictionType:
        """What the model predicts: the option of that name, or what its scheduler says where a family has a choice.

        Raises:
            ValueError: the family can't be trained so.
        """
        known = self.family.prediction_types
        wanted = self.config.prediction_type
        if wanted is None:
            wanted = known[0] if len(known) == 1 else noising.scheduler_prediction_type(self.scheduler_facts)
        if wanted not in known:
            raise ValueError(
                f"prediction_type is {wanted!r}, but {self.NAME} knows {', '.join(known)} only. Use one of these."
            )
        return wanted

    @cached_property
    def objective(self) -> Objective:
        """Draws noise and timesteps and measures the base loss."""
        return noising.make_objective(
            self.prediction_type, self.scheduler_facts, self.config.flow_schedule_shift, self.config.snr_gamma
        )

    def prepare_batch(self, batch: Batch, *, step: int, rows: Sequence[int], seed: int | None = None) -> Batch:
        """Draws noise and timesteps for a collated batch and moves it to the device.

        Args:
            batch: `latents` `(B, C, ...)`, `text`, and whatever else it holds (`pixels`, `features` ...), kept as is.
            step: 0-based optimizer step.
            rows: the row of each sample in the global batch; with `step` and the seed it decides the noise.
            seed: None takes the run's.

        Returns:
            The batch with `noise`, `noisy_latents` and `target` shaped like the latents, `timesteps` `(B,)` on the
            scale 0..1000, `sigmas` for flow matching, and `step`.
        """
        device = self.accelerator.device
        latents = batch["latents"].to(device, torch.float32, non_blocking=True)
        moved: Batch = {"latents": latents, "text": self._on_device(batch["text"]), "step": step}
        if batch.get("pixels") is not None:
            moved["pixels"] = batch["pixels"].to(device, non_blocking=True)
        if batch.get("features") is not None:
            moved["features"] = {n: part.to(device, non_blocking=True) for n, part in batch["features"].items()}
        seed = self.config.seed if seed is None else seed
        return batch | moved | self.objective.sample(latents, seed=seed, step=step, rows=rows)

    def _on_device(self, text: TextEmbeds) -> TextEmbeds:
        device, dtype = self.accelerator.device, self.weight_dtype
        pinned = {name: t.pin_memory() if device.type == "cuda" and not t.is_cuda else t for name, t in text.items()}
        return {
            name: t.to(device, dtype if t.is_floating_point() else t.dtype, non_blocking=True)
            for name, t in pinned.items()
        }

    def noisy_input(self, prepared_batch: Batch) -> Tensor:
        """The noisy latents in the model's dtype."""
        return prepared_batch["noisy_latents"].to(self.weight_dtype)

    def loss(self, model_output: Batch, prepared_batch: Batch) -> Tensor:
        """The base loss, a scalar."""
        return self.objective.loss(model_output["model_prediction"], prepared_batch)

    # Out

    def save_lora(self, folder: Path, state_dict: dict[str, Tensor] | None = None) -> Path:
        """Writes the LoRA for the pipeline's `load_lora_weights` and returns the file; see `save_scheduler`.

        Args:
            state_dict: the model's full state where it is sharded, or averaged weights; None reads the model.
        """
        self.save_scheduler(folder)
        return lora.save_lora(self.unwrap_model(), folder, self.family.model_subfolder, state_dict)

    def save_model(self, folder: Path, state_dict: dict[str, Tensor] | None = None) -> Path:
        """Writes the model to its subfolder of `folder` for `from_pretrained`; `state_dict` as in `save_lora`.

        See `save_scheduler` too.
        """
        self.save_scheduler(folder)
        model = self.unwrap_model()
        if state_dict is not None:
            with torch.device("meta"):
                model = self.MODEL_CLASS.from_config(model.config)
            model.load_state_dict(state_dict, assign=True)
        target = folder / self.family.model_subfolder
        model.save_pretrained(target)
        return target

    @property
    def predicts_otherwise(self) -> bool:
        """Whether the model is trained to predict something else than it was made for, as by its scheduler."""
        return noising.scheduler_prediction_type(self.scheduler_facts) != self.prediction_type

    def save_scheduler(self, folder: Path) -> None:
        """Writes `folder/scheduler` where the model's own scheduler would misread what the model predicts now."""
        if self.predicts_otherwise:
            scheduler = noising.sampling_scheduler(self.prediction_type, self.scheduler_facts)
            scheduler.save_pretrained(folder / "scheduler")

    def validation_samples(
        self, text: list[TextEmbeds], negative: TextEmbeds, settings: SampleSettings
    ) -> list[Image.Image] | list[list[Image.Image]]:
        """Samples one image, or one list of frames, for each item of `text`; see `generate`."""
        clips = to_images(self.generate(text, negative, settings))
        return clips if self.family.media == "video" else [clip[0] for clip in clips]

    @torch.no_grad()
    def generate(self, text: list[TextEmbeds], negative: TextEmbeds, settings: SampleSettings) -> Tensor:
        """Samples from the model as it is now, in evaluation mode.

        Args:
            text: embeddings of the prompts, as `encode_prompts` gives them; negative: of the one negative prompt.

        Returns:
            `(B, T, 3, H, W)` in [0, 1].
        """
        model = self.unwrap_model()
        was_training = model.training
        model.eval()
        try:
            with self.accelerator.autocast():
                latents = self.sample_latents(
                    self._on_device(self.collate_text(text)),
                    self._on_device(self.collate_text([negative] * len(text))),
                    settings,
                )
            return self.decode_latents(latents)
        finally:
            model.train(was_training)

    def sample_latents(self, text: TextEmbeds, negative: TextEmbeds, settings: SampleSettings) -> Tensor:
        """Normalised latents from the family's pipeline, fed with batched embeddings."""
        arguments, pipeline = self.pipeline_arguments(text, negative, settings), self.sampling_pipeline()
        if settings.guidance_interval is not None and settings.guidance > 1:
            name = self.family.model_subfolder
            setattr(pipeline, name, IntervalGuidance(getattr(pipeline, name), pipeline.scheduler, settings))
        latents = pipeline(**arguments, output_type="latent", return_dict=False)[0]
        return self.unpack_latents(latents, settings)

    def sampling_pipeline(self) -> Any:
        """The family's pipeline around the model as it is now, without text encoders."""
        pipeline = loading.load_pipeline(
            self.pipeline_class,
            self.source,
            (),
            self.weight_dtype,
            **{self.family.model_subfolder: self.unwrap_model(), "vae": self.load_vae()},
            scheduler=noising.sampling_scheduler(self.prediction_type, self.scheduler_facts),
            **self.PIPELINE_ARGUMENTS,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def pipeline_arguments(self, text: TextEmbeds, negative: TextEmbeds, settings: SampleSettings) -> dict[str, Any]:
        """The arguments of the pipeline's `__call__`."""
        text, negative = self.padded_alike(text, negative)
        negatives = {f"negative_{name}": tensor for name, tensor in negative.items()}
        frames = {"num_frames": settings.frames} if self.family.media == "video" else {}
        return {
            **text,
            **negatives,
            **frames,
            "height": settings.height,
            "width": settings.width,
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance,
            "generator": settings.generators(len(next(iter(text.values())))),
        }

    def padded_alike(self, text: TextEmbeds, negative: TextEmbeds) -> tuple[TextEmbeds, TextEmbeds]:
        """Both padded to one length: most pipelines put the two prompts into one batch for guidance."""
        for name in (name for pair in self.TEXT_MASKS.items() for name in pair):
            length = max(text[name].shape[1], negative[name].shape[1])
            text, negative = ({**batch, name: _lengthened(batch[name], length)} for batch in (text, negative))
        return text, negative

    def unpack_latents(self, latents: Tensor, settings: SampleSettings) -> Tensor:
        """The pipeline's latents, or its prediction for them, laid out as `encode_pixels` lays them out."""
        return latents


class ImageModelFoundation(ModelFoundation):
    """Latents are `(B, C, h, w)`; a sample has one frame."""

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        return autoencoder.encode(self.load_vae(), pixels[:, 0])

    def frame_indices(self, latent_frames: int) -> list[int]:
        return [0]


class VideoModelFoundation(ModelFoundation):
    """Latents are `(B, C, t, h, w)`; a causal autoencoder makes 1 + k latent frames of 1 + `frame_ratio` k frames."""

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        return autoencoder.encode(self.load_vae(), pixels.transpose(1, 2))

    def frame_indices(self, latent_frames: int) -> list[int]:
        return pixel_frames_of_latents(latent_frames, self.family.frame_ratio)


def _lengthened(rows: Tensor, length: int) -> Tensor:
    """`(B, L, ...)` with zeros, or False, behind it up to `length`."""
    missing = rows.new_zeros(rows.shape[0], length - rows.shape[1], *rows.shape[2:])
    return torch.cat([rows, missing], dim=1)
