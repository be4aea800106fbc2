"""What alignment costs in a training step: with cached features, after its end, and with the encoder in the step.

python benchmarks/step_overhead.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from figures import Figure, interleaved, interval, median, median_ratio, run_alone
from memory import mebibytes, peak_memory
from runs import TEACHER, Run, Shape, transformer, unet, write_teacher
from torch.utils.flop_counter import FlopCounterMode

from simpletuner.helpers.training.alignment.eager import CHUNKS

REPEATS = {"cpu": 21, "cuda": 50}
FEWER = 5  # of the step with the encoder, whose ratio is far from 1
REPA: dict[str, Any] = {"crepa_enabled": True, "crepa_block_index": 4}
UREPA: dict[str, Any] = {"urepa_enabled": True, "urepa_manifold_weight": 3.0}


# How a run computes, by the name of its rows; the CPU has the first alone.
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"mixed_precision": "no"},
    "bf16": {"mixed_precision": "bf16"},
    "bf16, compiled": {"mixed_precision": "bf16", "compile_model": True},
}


def measure(device: torch.device) -> list[Figure]:
    batch = 8 if device.type == "cpu" else 64
    repa, urepa = transformer(batch), unet(max(1, batch // 8))
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        encoder = write_teacher(root / "teacher", "vit_small_patch14_dinov2")
        in_step = REPA | {"crepa_encoder": str(encoder), "crepa_encoder_image_size": 224, "crepa_feature_cache": False}
        for variant, options in list(VARIANTS.items())[: 1 if device.type == "cpu" else None]:
            name = f"REPA, 12 blocks × 384, {variant}"
            figures += _compared(
                name, repa, root / "sd3", device, REPA | options, at_most=1.03, in_step=in_step | options
            )
            name = f"U-REPA, UNet with a 16×16 middle, {variant}"
            figures += _compared(name, urepa, root / "sd1x", device, UREPA | options, at_most=1.05)
    return figures


def _compared(
    name: str,
    shape: Shape,
    folder: Path,
    device: torch.device,
    options: dict[str, Any],
    *,
    at_most: float,
    in_step: dict[str, Any] | None = None,
) -> list[Figure]:
    AcceleratorState._reset_state()  # a process has one precision otherwise
    plain = {key: value for key, value in options.items() if not key.startswith(shape.prefix)}
    ended: dict[str, Any] = {f"{shape.prefix}_cutoff_step": 1}
    runs = {
        "without": Run(shape, folder, device, **plain),
        "cached": Run(shape, folder, device, **options),
        "ended": Run(shape, folder, device, **options, **ended),
    }
    repeats = REPEATS[device.type]
    seconds = interleaved({key: run.step for key, run in runs.items()}, repeats=repeats, device=device)
    with_encoder: dict[str, list[float]] = {}
    if in_step is not None:
        runs["in step"] = Run(shape, folder, device, cached=False, **in_step)
        both = {key: runs[key].step for key in ("cached", "in step")}
        with_encoder = interleaved(both, repeats=FEWER, device=device)
    times = ", ".join(f"{key} {1000 * median(values):.0f} ms" for key, values in seconds.items())
    spread = {key: interval(seconds, key, "without") for key in ("cached", "ended")}
    shape_tapped, tapped = runs["cached"].tapped()
    operations = {key: _flops(runs[key].step) for key in runs if key != "cached"}
    cached = operations["without"] + _alignment_flops(shape, runs["cached"], shape_tapped)
    figures = [
        Figure(
            f"{name}: step from the cache / without",
            median_ratio(seconds, "cached", "without"),
            at_most=at_most,
            floor=cached / operations["without"],
            note=f"{spread['cached']}; {times}",
        ),
        Figure(
            f"{name}: step after the cutoff / without",
            median_ratio(seconds, "ended", "without"),
            at_most=1.01,
            floor=1.0,
            note=f"{spread['ended']}; operations {operations['ended'] / operations['without']:.6g} ×",
        ),
    ]
    if in_step is not None:
        figures.append(
            Figure(
                f"{name}: step with a ViT-S/14 at 224 in it / from the cache",
                median_ratio(with_encoder, "in step", "cached"),
                floor=operations["in step"] / cached,
                note=f"in step {1000 * median(with_encoder['in step']):.0f} ms",
            )
        )
    return figures + _memory(name, runs, shape, device, tapped, 1.5 if shape.prefix == "crepa" else None)


def _memory(
    name: str, runs: dict[str, Run], shape: Shape, device: torch.device, tapped: int, at_most: float | None
) -> list[Figure]:
    """The peak of a step against `tapped` bytes of hidden states, and what is held between steps as well."""
    without, cached = (peak_memory(runs[key].step, device) for key in ("without", "cached"))
    weights = sum(parameter.nbytes for parameter in runs["cached"].projector)
    held = 3 * weights + runs["cached"].feature_bytes  # the weights and AdamW's two averages of them
    note = f"{mebibytes(cached - without)} more than {mebibytes(without)}; tapped {mebibytes(tapped)}"
    return [
        Figure(
            f"{name}: more memory at the peak of a step / tapped tensors",
            (cached - without) / tapped,
            at_most=at_most,
            floor=1 + (weights + _one_chunk(shape)) / tapped,
            note=f"{note}; above what is held when the step begins",
        ),
        Figure(
            f"{name}: the same with what is held when the step begins",
            (cached - without + held) / tapped,
            floor=1 + (weights + _one_chunk(shape) + held) / tapped,
            note=f"projector and its optimizer state {mebibytes(3 * weights)}, the batch's features "
            f"{mebibytes(runs['cached'].feature_bytes)}",
        ),
    ]


def _one_chunk(shape: Shape) -> int:
    """Bytes of tokens on the teacher's grid while the loss is worked out, for the samples that it takes at once.

    Both sides as they are and normalised, and a gradient. REPA's few are freed before its peak, which is when the
    backward pass begins.
    """
    if shape.prefix == "crepa":
        return 0
    return 5 * max(1, shape.latents[0] // CHUNKS) * shape.teacher.tokens * TEACHER.width * 4


def _flops(step: Callable[[], None]) -> int:
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def _alignment_flops(shape: Shape, run: Run, tapped: torch.Size) -> float:
    """The projector's six operations a weight and token, and for U-REPA half of two Gram matrices and a gradient."""
    count, teacher = shape.latents[0], shape.teacher.tokens
    width = tapped[1] if len(tapped) == 4 else tapped[-1]
    projector = 6.0 * tapped.numel() / width * sum(parameter.numel() for parameter in run.projector)
    manifold = 4.0 * count * teacher**2 * TEACHER.width if shape.prefix == "urepa" else 0.0
    return projector + manifold


if __name__ == "__main__":
    run_alone(measure, __doc__)
