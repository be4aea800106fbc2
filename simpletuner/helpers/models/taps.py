"""The part of a model foundation that taps hidden states and adds the alignment losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from simpletuner.configuration.alignment import AlignmentOptions
from simpletuner.configuration.family import Family, with_local_facts
from simpletuner.configuration.paths import local_path
from simpletuner.helpers.data.buckets import Bucket
from simpletuner.helpers.models.registry import FAMILIES, default_tap
from simpletuner.helpers.training.alignment.feature_cache import unpack
from simpletuner.helpers.training.alignment.geometry import TokenGrid, split_frames
from simpletuner.helpers.training.crepa import CrepaMode, CrepaRegularizer, UrepaRegularizer
from simpletuner.helpers.training.layersync import LayerSyncRegularizer
from simpletuner.helpers.utils.hidden_state_buffer import (
    ForwardCall,
    HiddenStateBuffer,
    TransformerBlockCapture,
    UNetMidBlockCapture,
    layer_key,
)

if TYPE_CHECKING:
    from simpletuner.configuration import Config
    from simpletuner.helpers.data.features import FeatureCache

Batch = dict[str, Any]
FeatureSource = Callable[[Batch], tuple[Tensor, TokenGrid]]


class ModelTypes(Enum):
    """The kind of backbone; it decides between CREPA/REPA and U-REPA."""

    TRANSFORMER = "transformer"
    UNET = "unet"


class TappedModel(ABC):
    """A model with its regularizers and the one capture that serves them all."""

    NAME: ClassVar[str]
    MODEL_TYPE: ClassVar[ModelTypes] = ModelTypes.TRANSFORMER
    BLOCK_CONTAINERS: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    IMAGE_STREAM: ClassVar[int] = 1  # where the image is in a block's output (text, image)
    TEXT_FIRST: ClassVar[bool] = False  # whether text goes before the image in blocks that return one sequence

    model: nn.Module

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        self.config = config
        self.accelerator = accelerator
        self.family: Family = FAMILIES[self.NAME]
        self.crepa_regularizer: CrepaRegularizer | None = None
        self.urepa_regularizer: UrepaRegularizer | None = None
        self.layersync_regularizer: LayerSyncRegularizer | None = None
        # The cache of the teacher's features, if there is one: set before the model is loaded.
        self.features: FeatureCache | None = None
        # Teacher features `(B, T, N, D)` of a prepared batch and their grid, for whoever has others at hand.
        self.feature_source: FeatureSource | None = None
        self.buffer = HiddenStateBuffer()
        self._alignment_layers: Sequence[int | str] = ()
        self._tiny_autoencoder: Any = None
        self._capture: TransformerBlockCapture | UNetMidBlockCapture | None = None

    @property
    def crepa_mode(self) -> CrepaMode:
        return CrepaMode(self.family.media)

    @property
    def alignment(self) -> CrepaRegularizer | UrepaRegularizer | None:
        """The regularizer with an encoder, if there is one: CREPA/REPA or U-REPA, never both."""
        return self.crepa_regularizer or self.urepa_regularizer

    @property
    def alignment_options(self) -> AlignmentOptions | None:
        """The options of that regularizer, also before the model is loaded; None where it is off."""
        options = self.config.urepa if self.MODEL_TYPE is ModelTypes.UNET else self.config.crepa
        return options if options.enabled else None

    @property
    def teacher_scale(self) -> int:
        """Rows and columns of the teacher's grid to the student's where it follows that."""
        return (UrepaRegularizer if self.MODEL_TYPE is ModelTypes.UNET else CrepaRegularizer).TEACHER_SCALE

    @property
    def feature_width(self) -> int | None:
        """D of the cached features; None where none are cached."""
        return None if self.features is None else self.features.width

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer's blocks in the order in which they run; a tap is an index into them."""
        model = self.unwrap_model()
        return [block for container in self.BLOCK_CONTAINERS for block in getattr(model, container)]

    @property
    def hidden_size(self) -> int:
        """D, the width of the captured hidden states."""
        facts = self.unwrap_model().config
        if self.MODEL_TYPE is ModelTypes.UNET:
            return facts.block_out_channels[-1]
        return facts.num_attention_heads * facts.attention_head_dim

    @cached_property
    def tap(self) -> int:
        """The block that CREPA/REPA aligns: `crepa_block_index`, or the family's default for this depth."""
        index = self.config.crepa.block_index
        return default_tap(self.family, len(self.blocks)) if index is None else index

    def unwrap_model(self) -> Any:
        """The diffusers model without what accelerate or torch.compile put around it."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @abstractmethod
    def forward(self, prepared_batch: Batch) -> Tensor:
        """The model's prediction, shaped like the latents."""

    @property
    @abstractmethod
    def architecture(self) -> Mapping[str, Any]:
        """The model's configuration, known before it is loaded."""

    @abstractmethod
    def decode_latents(self, latents: Tensor, *, vae: Any = None) -> Tensor:
        """Normalised latents to pixels `(B, T, 3, H, W)`."""

    @abstractmethod
    def frame_indices(self, latent_frames: int) -> list[int]:
        """The pixel frames that the teacher sees."""

    @abstractmethod
    def load_tiny_autoencoder(self) -> Any:
        """The tiny autoencoder that fits the family's latents; ValueError if there is none."""

    @classmethod
    def select_tokens(cls, raw_output: Any, block_index: int, call: ForwardCall) -> Tensor:
        """Image or video tokens `(B, S, D)`, row-major in (frames, rows, columns), from what a block returned.

        Blocks return a tuple of text and image, or one sequence, in which registers, text and padding lie before or
        behind the image.
        """
        if isinstance(raw_output, tuple):
            return raw_output[cls.IMAGE_STREAM]
        count = cls.image_tokens(call)
        return raw_output[:, -count:] if cls.TEXT_FIRST else raw_output[:, :count]

    @classmethod
    def image_tokens(cls, call: ForwardCall) -> int:
        """How many image or video tokens a sample has in a forward."""
        latents = call.arguments["hidden_states"]
        return latents.shape[1] if latents.ndim == 3 else cls.token_grid(latents, call.config).tokens

    @classmethod
    def token_grid(cls, latents: Tensor, config: Mapping[str, Any]) -> TokenGrid:
        """The grid of a transformer's tokens for latents `(B, C, H, W)` or `(B, C, T, H, W)`.

        Args:
            config: of the model; it states the patch size, unless the patches are packed before the model sees them.
        """
        family = FAMILIES[cls.NAME]
        patch = family.patch_size if family.patch_key is None else config[family.patch_key]
        sides = tuple(patch) if isinstance(patch, list | tuple) else (patch,)
        frame_patch, row_patch, column_patch = sides if len(sides) == 3 else (1, sides[-1], sides[-1])
        frames = latents.shape[2] // frame_patch if latents.ndim == 5 else 1
        return TokenGrid(frames, latents.shape[-2] // row_patch, latents.shape[-1] // column_patch)

    def student_grid(self, latents: Tensor) -> TokenGrid:
        """`token_grid` of the model."""
        return self.token_grid(latents, self.unwrap_model().config)

    @cached_property
    def local_family(self) -> Family:
        """The family as the model's own folder states it."""
        folder = local_path(self.config.pretrained_model_name_or_path)
        return with_local_facts(self.family, folder) if folder.is_dir() else self.family

    @property
    def pixels_per_token(self) -> int:
        """The side of a student's token in pixels."""
        return self.local_family.pixels_per_token

    def sample_grid(self, bucket: Bucket, latent_frames: int) -> TokenGrid:
        """The student's grid for samples of a bucket, known before the model is loaded."""
        ratio = self.local_family.latent_ratio
        frames = (latent_frames,) if self.family.media == "video" else ()
        latents = torch.empty(1, 1, *frames, bucket.height // ratio, bucket.width // ratio, device="meta")
        if self.MODEL_TYPE is ModelTypes.UNET:
            # Every halving is a convolution of stride 2 that rounds up.
            rows, columns = (-(-side // self.local_family.patch_size) for side in latents.shape[-2:])
            return TokenGrid(1, rows, columns)
        return self.token_grid(latents, self.architecture)

    def _init_regularizers(self, max_train_steps: int) -> None:
        """Decides which regularizers exist, and hooks the blocks they read. Call once, after LoRA was added."""
        is_unet = self.MODEL_TYPE is ModelTypes.UNET
        self._refuse_wrong_prefix()
        if is_unet and self.config.urepa.enabled:
            self._alignment_layers = self._init_urepa_regularizer(max_train_steps)
        if not is_unet and self.config.crepa.enabled:
            self._alignment_layers = self._init_crepa_regularizer(max_train_steps)
        layersync = self._init_layersync_regularizer() if self.config.layersync.enabled else []
        layers = [*self._alignment_layers, *layersync]
        self.buffer = HiddenStateBuffer(layers)
        model = self.unwrap_model()
        if is_unet:
            self._capture = UNetMidBlockCapture(model, [str(layer) for layer in layers], self.buffer)
        else:
            self._capture = TransformerBlockCapture(model, self.blocks, self.select_tokens, self.buffer)

    def _refuse_wrong_prefix(self) -> None:
        right, wrong = ("urepa", "crepa") if self.MODEL_TYPE is ModelTypes.UNET else ("crepa", "urepa")
        if getattr(self.config, wrong).enabled:
            raise ValueError(
                f"{wrong}_enabled is true, but {self.NAME} is a {self.MODEL_TYPE.value}: use {right}_enabled and the "
                f"other {right}_* options."
            )

    def _init_crepa_regularizer(self, max_train_steps: int) -> list[int]:
        """Makes the CREPA/REPA regularizer and returns the blocks that it reads."""
        options = self.config.crepa
        layers = [self._checked_block("crepa_block_index", self.tap)]
        if options.teacher_is_backbone:
            layers.append(self._checked_block("crepa_teacher_block_index", options.teacher_block_index))
            if layers[0] == layers[1]:
                raise ValueError(
                    f"crepa_teacher_block_index is {layers[1]}, the block that is aligned itself: choose a deeper one."
                )
        self.crepa_regularizer = CrepaRegularizer(
            self.config, self.accelerator, self.hidden_size, model_foundation=self, max_train_steps=max_train_steps
        )
        self._set_up(self.crepa_regularizer)
        return layers

    def _init_urepa_regularizer(self, max_train_steps: int) -> list[str]:
        """Makes the U-REPA regularizer and returns the UNet layers that it reads."""
        self.urepa_regularizer = UrepaRegularizer(
            self.config, self.accelerator, self.hidden_size, model_foundation=self, max_train_steps=max_train_steps
        )
        self._set_up(self.urepa_regularizer)
        return list(self.config.urepa.align_layers)

    def _init_layersync_regularizer(self) -> list[int]:
        """Makes the LayerSync regularizer and returns the blocks that it reads."""
        if self.MODEL_TYPE is ModelTypes.UNET:
            raise ValueError(f"layersync_enabled is true, but {self.NAME} is a unet, which has no blocks of one size.")
        options = self.config.layersync
        self._checked_block("layersync_student_block", options.student_block)
        self._checked_block("layersync_teacher_block", options.teacher_block)
        self.layersync_regularizer = LayerSyncRegularizer(self.config)
        return list(self.layersync_regularizer.layers)

    def _set_up(self, regularizer: CrepaRegularizer | UrepaRegularizer) -> None:
        if regularizer.options.use_tae:
            self._tiny_autoencoder = self.load_tiny_autoencoder()
        # The projector lives on in the regularizer alone: the trainer gives it its own parameter group and averages
        # its gradients, so that DDP, FSDP, state dicts and exports never see it.
        regularizer.attach_to_model(self.unwrap_model())
        regularizer.detach_from_model()

    def _checked_block(self, option: str, index: int | None) -> int:
        depth = len(self.blocks)
        if index is None:
            raise ValueError(f"{option} is not set; give the index of a block, 0 to {depth - 1}.")
        if index >= depth:
            raise ValueError(f"{option} is {index}, but this {self.NAME} has {depth} blocks, 0 to {depth - 1}.")
        return index

    def hooked_modules(self) -> dict[str, str]:
        """The names of the modules whose output is captured, by layer; one that has lost its hook isn't among them."""
        if self._capture is None:
            return {}
        names = {module: name for name, module in self.unwrap_model().named_modules()}
        return {layer: names[module] for layer, module in self._capture.hooked().items()}

    def wants_hidden_states(self) -> bool:
        """Whether any regularizer needs hidden states in the next step."""
        parts = (self.alignment, self.layersync_regularizer)
        return any(part is not None and part.wants_hidden_states() for part in parts)

    def _layers_wanted(self) -> tuple[int | str, ...]:
        """The layers that this step's regularizers read."""
        aligns = self.alignment is not None and self.alignment.wants_hidden_states()
        layersync = self.layersync_regularizer
        own = layersync.layers if layersync is not None and layersync.wants_hidden_states() else ()
        return (*(self._alignment_layers if aligns else ()), *own)

    @property
    def is_aligning(self) -> bool:
        """Whether there is an alignment with an encoder or another block, and it isn't off for good."""
        return self.alignment is not None and not self.alignment.finished

    @property
    def needs_features(self) -> bool:
        """Whether the coming steps read the teacher's cached features."""
        return self.is_aligning and self.features is not None and self.feature_source is None

    @property
    def needs_pixels(self) -> bool:
        """Whether a teacher is to see the samples' real pixels, those of `frame_indices`, in the coming steps."""
        if self.alignment is None or self.alignment.finished:
            return False
        at_hand = self.features is not None or self.feature_source is not None or self.teacher_is_backbone
        return not at_hand and not self.alignment.options.use_tae

    @property
    def teacher_is_backbone(self) -> bool:
        """Whether a deeper block of the same forward is the teacher, and no encoder is needed."""
        return self._teacher_block is not None

    @property
    def _teacher_block(self) -> int | None:
        """The block that is the teacher where `crepa_feature_source` is "backbone"."""
        options = None if self.crepa_regularizer is None else self.crepa_regularizer.options
        return options.teacher_block_index if options is not None and options.teacher_is_backbone else None

    def model_predict(self, prepared_batch: Batch) -> Batch:
        """Runs the model on what `prepare_batch` made.

        Returns:
            `model_prediction` shaped like the latents, `hidden_states_buffer`, and, while the alignment loss is on,
            `crepa_hidden_states` `(B, S, D)` or `urepa_hidden_states` `(B, C, H, W)` (a dict of them by layer if
            there are several) with the student's `token_grid`. Nothing is captured when no regularizer wants it.
        """
        if self.alignment is not None:
            self.alignment.begin_step(prepared_batch["step"])
            if self.alignment.finished:
                self._tiny_autoencoder = None  # its memory is free again
        output: Batch = {"hidden_states_buffer": self.buffer}
        if self._capture is None or not self.wants_hidden_states():
            self.buffer.clear()
            return output | {"model_prediction": self.forward(prepared_batch)}
        self.buffer.layers = self._layers_wanted()
        with self._capture:
            output["model_prediction"] = self.forward(prepared_batch)
        if self.crepa_regularizer is not None and self.crepa_regularizer.wants_hidden_states():
            output["crepa_hidden_states"] = self.buffer[layer_key(self.tap)]
            output["token_grid"] = self.student_grid(prepared_batch["latents"])
        if self.urepa_regularizer is not None:
            maps = {layer: self.buffer[layer_key(layer)] for layer in self.urepa_regularizer.options.align_layers}
            first = next(iter(maps.values()))
            output["urepa_hidden_states"] = first if len(maps) == 1 else maps
            output["token_grid"] = self.urepa_regularizer.student_grid(first)
        return output

    def auxiliary_loss(
        self, model_output: Batch, prepared_batch: Batch, loss: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Adds CREPA or U-REPA first and LayerSync second to `loss`; always clears the buffer.

        Returns:
            The sum and the detached logs of the parts that were on.
        """
        logs: dict[str, Tensor] = {}
        try:
            if self.alignment is not None:
                loss, logs = self._add_alignment(self.alignment, model_output, prepared_batch, loss)
            if self.layersync_regularizer is not None:
                part, part_logs = self.layersync_regularizer.compute_loss(model_output["hidden_states_buffer"])
                loss = loss if part is None else loss + part
                logs |= part_logs or {}
        finally:
            self.buffer.clear()
        return loss, logs

    def _add_alignment(
        self,
        regularizer: CrepaRegularizer | UrepaRegularizer,
        model_output: Batch,
        prepared_batch: Batch,
        loss: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        hidden_states = model_output.get(f"{regularizer.prefix}_hidden_states")
        features = pixels = None
        if hidden_states is not None:
            features = self.teacher_features(model_output, prepared_batch)
            pixels = self._teacher_pixels(prepared_batch) if features is None else None
        tokens, feature_grid = (None, None) if features is None else features
        prepared_batch.pop("features", None)  # not to be held through the backward pass
        return regularizer.add_loss(
            loss,
            hidden_states,
            frame_features=tokens,
            grid=model_output.get("token_grid"),
            feature_grid=feature_grid,
            pixels=pixels,
            step=prepared_batch["step"],
        )

    def teacher_features(self, model_output: Batch, prepared_batch: Batch) -> tuple[Tensor, TokenGrid] | None:
        """Teacher tokens `(B, T, N, D)` that are already at hand, and their grid; None has the pixels encoded.

        They come from `feature_source` or from the cache. With `crepa_feature_source` "backbone" they are the detached
        tokens of `crepa_teacher_block_index`.
        """
        if self.feature_source is not None:
            return self.feature_source(prepared_batch)
        if prepared_batch.get("features") is not None:
            return unpack(prepared_batch["features"]), prepared_batch["feature_grid"]
        if self._teacher_block is None:
            return None
        tokens = model_output["hidden_states_buffer"][layer_key(self._teacher_block)]
        grid = model_output["token_grid"]
        return split_frames(tokens.detach(), grid), grid

    def _teacher_pixels(self, prepared_batch: Batch) -> Tensor:
        """The real pixels `(B, T, 3, H, W)` of the frames that the teacher sees, or else the decoded ones."""
        if prepared_batch.get("pixels") is not None:
            return prepared_batch["pixels"]
        latents = prepared_batch["latents"]
        frames = self.frame_indices(latents.shape[2] if latents.ndim == 5 else 1)
        return self.decode_latents(latents, vae=self._tiny_autoencoder)[:, frames]
