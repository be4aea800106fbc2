"""Reading models in diffusers' folder format, from a local folder or a hub id; safetensors only."""

from __future__ import annotations

from typing import Any

import torch

from simpletuner.configuration.paths import local_path

SOURCE_OPTION = "pretrained_model_name_or_path"
MIXED_PRECISION_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


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
    try:
        return kind.from_pretrained(source, subfolder=subfolder, dtype=dtype, use_safetensors=True)
    except OSError as error:
        place = "" if subfolder is None else f" in {subfolder}/"
        raise ValueError(_unreadable(source, f"{kind.__name__}{place} as safetensors", error, option)) from error


def load_random(kind: Any, source: str, subfolder: str) -> Any:
    """A model with random fp32 weights from the `config.json` in `subfolder`; raises as `load_weights`."""
    return kind.from_config(load_facts(kind, source, subfolder))


def load_facts(kind: Any, source: str, subfolder: str | None = None) -> dict[str, Any]:
    """The JSON configuration of a component, or of the pipeline if `subfolder` is None; raises as `load_weights`."""
    try:
        return dict(kind.load_config(source, subfolder=subfolder))
    except OSError as error:
        place = "the pipeline" if subfolder is None else f"{subfolder}/"
        raise ValueError(_unreadable(source, f"a configuration of {place}", error)) from error


def load_pipeline(kind: Any, source: str, wanted: tuple[str, ...], dtype: torch.dtype, **given: Any) -> Any:
    """A pipeline of which only the components whose names start with `wanted` are read; `given` ones are used as is.

    The rest is None. Raises as `load_weights`.
    """
    parts = [name for name, entry in load_facts(kind, source).items() if isinstance(entry, list)]
    absent = {name: None for name in parts if not name.startswith(wanted)}
    try:
        return kind.from_pretrained(source, dtype=dtype, use_safetensors=True, **(absent | given))
    except OSError as error:
        raise ValueError(_unreadable(source, f"the components of {kind.__name__}", error)) from error


def _unreadable(source: str, what: str, error: OSError, option: str = SOURCE_OPTION) -> str:
    return (
        f"{option}: {what} could not be read from {source!r}: {error} It must be a local folder in diffusers' format "
        "or the id of such a repository that can be reached."
    )
