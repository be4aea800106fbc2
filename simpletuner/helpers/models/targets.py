"""Which part of a model is trained: the layers that get an adapter, and the parameters that aren't frozen.

All by walking the modules: a name that fits nothing is refused, never passed over.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

ADAPTABLE = (nn.Linear, nn.Conv2d)


def within(name: str, prefixes: Sequence[str] | None) -> bool:
    """Whether a module or a parameter lies in one of the named parts of a model; in any where None are named.

    A prefix stands for whole names: "up_blocks.1", with or without a dot behind it, leaves "up_blocks.10" out.
    """
    return prefixes is None or any(f"{name}.".startswith(f"{prefix.rstrip('.')}.") for prefix in prefixes)


def adapter_layers(
    model: nn.Module,
    targets: Sequence[str],
    prefixes: Sequence[str] | None = None,
    *,
    all_needed: bool = True,
) -> list[str]:
    """The names of the linear layers and 2-D convolutions that get an adapter, in the order of the model.

    Args:
        targets: ends of their names, such as "to_q", "to_out.0" or "conv1".
        prefixes: the parts of the model in which they lie, such as "mid_block."; None: everywhere.
        all_needed: whether every target must be found; the defaults of a family name some that only part of its
            models have.

    Raises:
        ValueError: a target or a prefix fits nothing; names it and what there is.
    """
    if prefixes is not None:
        _require_parts(model, prefixes)
    layers = [n for n, module in model.named_modules() if isinstance(module, ADAPTABLE) and within(n, prefixes)]
    where = "the model" if prefixes is None else ", ".join(prefix.rstrip(".") for prefix in prefixes)
    for target in targets if all_needed else ():
        if not any(_ends_with(name, target) for name in layers):
            raise ValueError(
                f"peft_lora_target_modules: {target!r} is the end of no linear layer's or convolution's name in "
                f"{where}, where there are {_kinds(layers)}. Correct it, or remove it."
            )
    found = [name for name in layers if any(_ends_with(name, target) for target in targets)]
    for prefix in prefixes or ():
        if not any(within(name, [prefix]) for name in found):
            own = [name for name in layers if within(name, [prefix])]
            raise ValueError(
                f"trainable_prefixes: {prefix!r} holds none of the LoRA's targets ({', '.join(targets)}), so nothing "
                f"of it would be trained; there are {_kinds(own)}. Remove it, or name some of these in "
                "peft_lora_target_modules."
            )
    if not found:
        raise ValueError(
            f"peft_lora_target_modules: {type(model).__name__} has no layer whose name ends with {', '.join(targets)}; "
            f"there are {_kinds(layers)}. Name some of these."
        )
    return found


def train_within(model: nn.Module, prefixes: Sequence[str] | None) -> None:
    """Lets the parameters in the named parts of the model train, and freezes the others; None trains them all.

    Raises:
        ValueError: a prefix fits no parameter; names it and what there is.
    """
    if prefixes is not None:
        _require_parts(model, prefixes)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(within(name, prefixes))


def _require_parts(model: nn.Module, prefixes: Sequence[str]) -> None:
    names = [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        if not any(within(name, [prefix]) for name in names):
            raise ValueError(
                f"trainable_prefixes: {prefix!r} is the start of no parameter's name in {type(model).__name__}, which "
                f"has {', '.join(_parts(model))}. Correct it, or remove it."
            )


def _parts(model: nn.Module) -> list[str]:
    """The names of a model's parts; of a list of blocks the first and the last."""
    parts = []
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList) and len(child) > 1:
            parts.append(f"{name}.0 to {name}.{len(child) - 1}")
        elif next(child.parameters(), None) is not None:
            parts.append(name)
    return parts


def _ends_with(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _kinds(layers: Sequence[str]) -> str:
    """The ends of layers' names, each once: with the name before it where the last one is but a number."""
    kinds = set()
    for name in layers:
        parts = name.split(".")
        kinds.add(".".join(parts[-2:] if parts[-1].isdecimal() else parts[-1:]))
    return ", ".join(sorted(kinds)) or "none"
