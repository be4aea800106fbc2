"""Reading models in diffusers' folder format, from a local folder or a hub id; safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import SafetensorError

from simpletuner.configuration.paths import local_path

SOURCE_OPTION = "pretrained_model_name_or_path"
MIXED_PRECISION_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# What diffusers and transformers raise for files that are missing, damaged, or another model's.
LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


def resolve(name: str) -> str:
    """A local folder with "~" expanded, or the hub id that `name` is."""
    folder = local_path(name)
    return str(folder) if folder.is_dir() else name


def load_weights(
    kind: Any, source: str, subfolder: str | None, dtype: torch.dtype, *, option: str = SOURCE_OPTION
) -> Any:
    """The model or autoencoder of class `kind` in `subfolder`, in `dtype` save for modules that must stay fp32.

    Args:
        option: the option to name in an error.

    Raises:
        ValueError: `source`, a local folder or a hub id, holds no such component.
    """
    folder = Path(source) / (subfolder or "")
    if (folder / "config.json").is_file() and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{option}: {str(folder)!r} holds no .safetensors file. Get the model as safetensors: pickled weights "
            "(.bin, .ckpt) are not read."
        )
    try:
        return kind.from_pretrained(source, subfolder=subfolder, dtype=dtype, use_safetensors=True)
    except LOADING_ERRORS as error:
        place = "" if subfolder is None else f" in {subfolder}/"
        raise ValueError(_unreadable(source, f"{kind.__name__}{place} as safetensors", error, option)) from error


def load_random(kind: Any, source: str, subfolder: str) -> Any:
    """A model with random fp32 weights from the `config.json` in `subfolder`; raises as `load_weights`."""
    return kind.from_config(load_facts(kind, source, subfolder))


def load_facts(kind: Any, source: str, subfolder: str | None = None) -> dict[str, Any]:
    """The JSON configuration of a component, or of the pipeline if `subfolder` is None; raises as `load_weights`."""
    try:
        return dict(kind.load_config(source, subfolder=subfolder))
    except LOADING_ERRORS as error:
        place = "the pipeline" if subfolder is None else f"{subfolder}/"
        raise ValueError(_unreadable(source, f"a configuration of {place}", error)) from error


def require_pipeline(kind: Any, source: str) -> None:
    """ValueError if a model was made for another pipeline than `kind`: it may have the same class, but other inputs."""
    named = load_facts(kind, source).get("_class_name")
    if named != kind.__name__:
        raise ValueError(
            f"{SOURCE_OPTION} is {source!r}, a model for {named}, which takes other inputs; of this model_family only "
            f"models for {kind.__name__} can be trained."
        )


def load_pipeline(kind: Any, source: str, wanted: tuple[str, ...], dtype: torch.dtype, **given: Any) -> Any:
    """A pipeline of which only the components whose names start with `wanted` are read; `given` ones are used as is.

    The rest is None. Raises as `load_weights`.
    """
    facts = load_facts(kind, source)
    parts = [name for name, entry in facts.items() if isinstance(entry, list)]
    absent = {name: None for name in parts if not name.startswith(wanted)}
    if Path(source).is_dir():
        _require_folders(source, [name for name in parts if name not in absent | given and facts[name][0] is not None])
    try:
        return kind.from_pretrained(source, dtype=dtype, use_safetensors=True, **(absent | given))
    except LOADING_ERRORS as error:
        raise ValueError(_unreadable(source, f"the components of {kind.__name__}", error)) from error


def _require_folders(source: str, parts: list[str]) -> None:
    """transformers makes up an empty tokenizer where there is none."""
    for name in parts:
        if not (Path(source) / name).is_dir():
            raise ValueError(
                f"{SOURCE_OPTION}: {source!r} has no folder {name}/, which its model_index.json names. Get the model "
                "again."
            )


def _unreadable(source: str, what: str, error: Exception, option: str = SOURCE_OPTION) -> str:
    # The rest is advice to programmers, or a list of every tensor.
    reason = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
    if Path(source).is_dir():
        mend = (
            "It must be a complete model of this model_family in diffusers' format: correct the path, or get it again."
        )
    elif constants.HF_HUB_OFFLINE:
        mend = "HF_HUB_OFFLINE is set, so only what was downloaded before is found: unset it, or name a local folder."
    else:
        mend = "It must be a local folder in diffusers' format or the id of such a repository that can be reached."
    return f"{option}: {what} could not be read from {source!r}: {reason}. {mend}"
