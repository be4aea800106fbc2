"""Captures hidden states of unmodified diffusers models with forward hooks.

A hook only stashes what its block returned; the tokens are picked out of it after the forward. Work done inside a hook
would run again, or break, where gradient checkpointing recomputes the block.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ForwardCall:
    """One forward of a diffusers model: its configuration, and its arguments by name.

    They say where in a block's output the image is: how many tokens it has, and how long each sample's text is.
    """

    config: Mapping[str, Any]
    arguments: Mapping[str, Any]


Select = Callable[[Any, int, ForwardCall], Tensor]


class HiddenStateBuffer(dict[str, Tensor]):
    """Captured hidden states by `layer_{i}`; keeps only the layers asked for, and of each only the first.

    Args:
        layers: block indices, or names of UNet layers; may be changed between forwards, to fewer of those captured.
    """

    def __init__(self, layers: Iterable[int | str] = ()) -> None:
        super().__init__()
        self.layers = tuple(dict.fromkeys(layers))

    def __setitem__(self, key: str, value: Tensor) -> None:
        if key not in self and any(key == layer_key(layer) for layer in self.layers):
            super().__setitem__(key, value)


def layer_key(layer: int | str) -> str:
    """The buffer's key of a block index or a UNet layer."""
    return f"layer_{layer}"


class _Capture:
    """Hooks on some modules of a model, registered once; disabled, they cost a flag a forward."""

    def __init__(self, model: nn.Module, modules: dict[int | str, nn.Module], buffer: HiddenStateBuffer) -> None:
        self.model = model
        self.buffer = buffer
        self._modules = modules
        self._raw: dict[int | str, Any] = {}
        self._enabled = False
        self._arguments: dict[str, Any] = {}
        self._argument_names = tuple(inspect.signature(model.forward).parameters)
        self._handles = [model.register_forward_pre_hook(self._note_arguments, with_kwargs=True)]
        self._handles += [module.register_forward_hook(self._hook(layer)) for layer, module in modules.items()]

    def _note_arguments(self, model: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self._enabled:
            self._arguments.update(zip(self._argument_names, positional, strict=False))
            self._arguments.update(named)

    def _hook(self, layer: int | str) -> Callable[[nn.Module, Any, Any], None]:
        def stash(module: nn.Module, inputs: Any, output: Any) -> None:
            # The first call is the forward's; a later one is gradient checkpointing recomputing the block.
            if self._enabled and layer in self.buffer.layers and layer not in self._raw:
                self._raw[layer] = output

        return stash

    def select(self, raw: Any, layer: Any, call: ForwardCall) -> Tensor:
        """The hidden states in a block's raw output."""
        return raw

    def enable(self) -> None:
        """Empties the buffer and captures from the next forward on."""
        self.buffer.clear()
        self._raw.clear()
        self._arguments.clear()
        self._enabled = True

    def disable(self) -> None:
        """Stops capturing; what was captured can still be got."""
        self._enabled = False

    def get_captured(self) -> HiddenStateBuffer:
        """The hidden states of the last forward, in the buffer.

        Raises:
            RuntimeError: a tapped block never ran, or its output carries no gradient while the model trains.
        """
        call = ForwardCall(self.model.config, self._arguments)  # type: ignore[arg-type]
        for layer in self._modules:
            if layer not in self.buffer.layers or layer_key(layer) in self.buffer:
                continue
            if layer not in self._raw:
                raise RuntimeError(
                    f"The tap {layer!r} never fired: the last forward didn't run it ({self.depth}). Tap another block; "
                    "under torch.compile, make the capture before the first compiled call."
                )
            hidden = self.select(self._raw.pop(layer), layer, call)
            if self.model.training and torch.is_grad_enabled() and not hidden.requires_grad:
                raise RuntimeError(
                    f"The hidden states at the tap {layer!r} carry no gradient, so the alignment would train nothing. "
                    "Either nothing up to this block is trainable (tap a later block, or train an earlier one: see "
                    "trainable_prefixes and peft_lora_target_modules), or "
                    "gradient checkpointing is reentrant (use use_reentrant=False)."
                )
            self.buffer[layer_key(layer)] = hidden
        self._arguments.clear()
        return self.buffer

    def hooked(self) -> dict[str, nn.Module]:
        """The modules whose output is captured, by layer; those whose hook was removed aren't among them."""
        return {str(layer): module for layer, module in self._modules.items() if module._forward_hooks}

    def remove(self) -> None:
        """Takes the hooks off the model; the capture is of no use afterwards."""
        for handle in self._handles:
            handle.remove()

    @property
    def depth(self) -> str:
        """Which taps exist, for error messages."""
        raise NotImplementedError

    def __enter__(self) -> HiddenStateBuffer:
        self.enable()
        return self.buffer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disable()
        if error is None:
            self.get_captured()


class TransformerBlockCapture(_Capture):
    """Captures the image or video tokens `(B, S, D)` after some transformer blocks.

    Use it as a context manager around the forward; the tokens are in the buffer afterwards.

    Args:
        model: the diffusers transformer; its training mode decides whether a gradient is demanded.
        blocks: all blocks in the order in which they run; a layer is a 0-based index into them.
        select: turns a block's raw output, its index and the forward's arguments into tokens, row-major in (frames,
            rows, columns).
        buffer: names the layers to keep and receives them.

    Raises:
        ValueError: a layer of the buffer isn't the index of a block.
    """

    def __init__(
        self, model: nn.Module, blocks: Sequence[nn.Module], select: Select, buffer: HiddenStateBuffer
    ) -> None:
        self._depth = len(blocks)
        for layer in buffer.layers:
            if not isinstance(layer, int) or not 0 <= layer < len(blocks):
                raise ValueError(
                    f"Block index {layer} is out of range: {type(model).__name__} has {len(blocks)} blocks, "
                    f"0 to {len(blocks) - 1}."
                )
        self._select = select
        super().__init__(model, {layer: blocks[int(layer)] for layer in buffer.layers}, buffer)

    def select(self, raw: Any, layer: int, call: ForwardCall) -> Tensor:
        return self._select(raw, layer, call)

    @property
    def depth(self) -> str:
        return f"the model has {self._depth} blocks, 0 to {self._depth - 1}"


class UNetMidBlockCapture(_Capture):
    """Captures the maps `(B, C, H, W)` around the middle of a `UNet2DConditionModel`.

    Args:
        unet: the diffusers UNet.
        layers: "mid" (output of the mid-block), "enc_last" (last ResNet of the last down block) and "dec_first"
            (last ResNet of the first up block, before it is upsampled).
        buffer: names the layers in their place, and receives the maps as `layer_mid` and so on; made if None.
    """

    def __init__(
        self, unet: nn.Module, layers: Sequence[str] = ("mid",), buffer: HiddenStateBuffer | None = None
    ) -> None:
        places: dict[str, Callable[[Any], nn.Module]] = {
            "mid": lambda model: model.mid_block.resnets[-1],
            "enc_last": lambda model: model.down_blocks[-1].resnets[-1],
            "dec_first": lambda model: model.up_blocks[0].resnets[-1],
        }
        buffer = HiddenStateBuffer(layers) if buffer is None else buffer
        for layer in buffer.layers:
            if layer not in places:
                raise ValueError(f"urepa_align_layers names {layer!r}; a UNet has {', '.join(places)}.")
        self._names = tuple(places)
        super().__init__(unet, {layer: places[str(layer)](unet) for layer in buffer.layers}, buffer)

    @property
    def depth(self) -> str:
        return f"a UNet has {', '.join(self._names)}"
