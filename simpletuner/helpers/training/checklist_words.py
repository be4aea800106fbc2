"""One line of the checklist, and how it tells numbers and shapes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from simpletuner.helpers.training.alignment.geometry import TokenGrid


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, what was found, whether it is as it must be, and else what to do."""

    name: str
    value: str
    ok: bool = True
    mend: str = ""


def told_count(number: float) -> str:
    """A number of parameters: 859 M."""
    for unit in ("", " k", " M"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} B"


def told_grid(grid: TokenGrid) -> str:
    """Rows and columns of tokens, and the frames before them where there are several."""
    return f"{f'{grid.frames}×' if grid.frames > 1 else ''}{grid.height}×{grid.width}"


def told_shape(tensor: Tensor) -> str:
    """A shape such as 2×4×64×64."""
    return "×".join(map(str, tensor.shape))


def told_dtype(tensor: Tensor) -> str:
    """A number format without the library's name."""
    return str(tensor.dtype).removeprefix("torch.")
