"""The trained weights of a model in a checkpoint: of a frozen base model nothing is written."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

WEIGHTS_FILE = "weights.safetensors"


def save_trained_weights(model: nn.Module, folder: Path) -> None:
    """Writes every parameter that is trained to `weights.safetensors`."""
    state = {name: parameter.detach().cpu().contiguous() for name, parameter in _trained(model).items()}
    save_file(state, folder / WEIGHTS_FILE)


def load_trained_weights(model: nn.Module, folder: Path) -> None:
    """Reads what `save_trained_weights` wrote into a model of which the same is trained.

    Raises:
        ValueError: other weights are trained, or they have other shapes; names the options to look at.
    """
    state, parameters = load_file(folder / WEIGHTS_FILE), _trained(model)
    if state.keys() != parameters.keys():
        different = sorted(state.keys() ^ parameters.keys())[:3]
        raise ValueError(
            f"The checkpoint {folder} was trained with other weights than this configuration trains (such as "
            f"{', '.join(different)}). Resume with the same model_type and lora options, or use another output_dir."
        )
    for name, parameter in parameters.items():
        if state[name].shape != parameter.shape:
            raise ValueError(
                f"The checkpoint {folder} has {name} of shape {tuple(state[name].shape)}, this configuration "
                f"{tuple(parameter.shape)}. Resume with the same lora_rank and model, or use another output_dir."
            )
        parameter.data.copy_(state[name])


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
