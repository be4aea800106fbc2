"""What a run says about itself: `metrics.jsonl`, the trackers, and the progress bar.

Loss values stay on the device during a step and are read a step later, so that logging never makes the device wait.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from simpletuner.configuration import Config
from simpletuner.helpers.utils.host_copy import HostCopy
from simpletuner.helpers.utils.run_folder import METRICS_FILE, RunFacts, read_metrics, write_facts

CLOCK = ("step", "step_seconds")  # what is no part of the loss
# What the progress bar shows, where it is there, and how it calls it.
SHOWN = {
    "base_loss": "loss",
    "crepa_loss": "crepa",
    "crepa_similarity": "similarity",
    "urepa_loss": "urepa",
    "urepa_similarity": "similarity",
    "layersync_loss": "layersync",
    "learning_rate": "lr",
}


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the message names the step and the parts."""


# How the trackers of accelerate call the name of a run.
RUN_NAME_ARGUMENTS = {"wandb": "name", "mlflow": "run_name", "swanlab": "experiment_name", "trackio": "name"}


def start_trackers(accelerator: Accelerator, config: Config) -> None:
    """Starts accelerate's tracker with the configured project and run names."""
    run_name, project, arguments = config.tracker_run_name, config.tracker_project_name, {}
    if run_name is not None and config.report_to in RUN_NAME_ARGUMENTS:
        arguments = {config.report_to: {RUN_NAME_ARGUMENTS[config.report_to]: run_name}}
    elif run_name is not None:
        project = f"{project}/{run_name}"
    accelerator.init_trackers(project, init_kwargs=arguments)


class StepMetrics:
    """Collects the device values of a step's micro-batches; gives their means over ranks, a step late.

    Attributes:
        stop_agreed: whether any rank had asked to stop in the step last read; all ranks see the same.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.stop_agreed = False
        self._accelerator = accelerator
        self._values: dict[str, list[Tensor]] = defaultdict(list)
        self._host_values: dict[str, float] = {}
        self._closed: tuple[int, list[str], HostCopy, dict[str, float]] | None = None

    def add(self, values: dict[str, Tensor]) -> None:
        """Adds one micro-batch's scalars; those on the host are the same for all micro-batches and ranks."""
        for name, value in values.items():
            if value.device.type == self._accelerator.device.type:
                self._values[name].append(value.detach().float())
            else:
                self._host_values[name] = float(value)

    def close(self, step: int, host_values: dict[str, float], *, stop: bool = False) -> dict[str, float] | None:
        """Ends `step` (counted from 1) and returns the step ended before it, as one row of numbers."""
        ready = self.flush()
        means = [torch.stack(values).mean() for values in self._values.values()]
        vector = torch.stack([*means, torch.full((), float(stop), device=self._accelerator.device)])
        vector = self._accelerator.reduce(vector, reduction="mean")
        self._closed = (step, list(self._values), HostCopy(vector), self._host_values | host_values)
        self._values.clear()
        self._host_values = {}
        return ready

    def flush(self) -> dict[str, float] | None:
        """The row of the last step that ended, if it hasn't been given out yet; waits for the device.

        Raises:
            NonFiniteLossError: its loss isn't finite.
        """
        if self._closed is None:
            return None
        step, names, copy, host_values = self._closed
        self._closed = None
        *means, stop = copy.read()
        self.stop_agreed = stop > 0
        row = {"step": float(step)} | dict(zip(names, means, strict=True)) | host_values
        # Under fp16 a gradient that overflows is expected: the scaler skips the step.
        vital = {"loss"}
        if self._accelerator.mixed_precision != "fp16":
            vital |= {"grad_norm", "projector_grad_norm"}
        if any(name in vital and not math.isfinite(value) for name, value in row.items()):
            parts = ", ".join(f"{name} {value:g}" for name, value in row.items() if name not in CLOCK)
            raise NonFiniteLossError(
                f"The loss or its gradient is not finite at step {step}: {parts}. Nothing of it was saved. "
                "Lower learning_rate, or the weight of the part that is not finite, and resume from the last "
                "checkpoint; in the first steps look at weights and data too."
            )
        return row


class Report:
    """Writes rows of metrics where they are read: a JSON-lines file, the trackers, the progress bar.

    A context manager; silent on every process but the main one.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path, total_steps: int, *, live: bool = True) -> None:
        self._accelerator = accelerator
        self._path = output_dir / METRICS_FILE
        self._total = total_steps
        self._main = accelerator.is_main_process
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[parts]}"),
        )
        self._console = Console(stderr=True)
        self._progress = Progress(*columns, console=self._console, disable=not (self._main and live))
        self._task = self._progress.add_task("Training", total=total_steps, parts="")

    def start(self, step: int) -> None:
        """Begins at `step`: rows of later steps, which a resumed run trains again, are removed from the file."""
        if self._main:
            kept = [row for row in read_metrics(self._path) if row["step"] <= step] if step > 0 else []
            beside = self._path.with_suffix(".partial")
            beside.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
            beside.replace(self._path)
            write_facts(self._path.parent, RunFacts(self._total, step))
        self._progress.update(self._task, completed=step)

    def log(self, row: dict[str, float] | None) -> None:
        """Writes one step's row; None is passed over."""
        if row is None or not self._main:
            return
        step = int(row["step"])
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | {"step": step}) + "\n")
        self._accelerator.log({name: value for name, value in row.items() if name != "step"}, step=step)
        parts = "  ".join(f"{label} {row[name]:.4g}" for name, label in SHOWN.items() if name in row)
        self._progress.update(self._task, completed=step, parts=parts)
        if not self._console.is_terminal and (step == self._total or step % max(1, self._total // 20) == 0):
            self._console.print(f"step {step}/{self._total}  {parts}", highlight=False)

    def log_evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the measures of an evaluation, `eval_` before their names, as a row of their own."""
        if not self._main:
            return
        row = {f"eval_{name}": value for name, value in metrics.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | row) + "\n")
        self._accelerator.log(row, step=step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self._progress.console.print(f"step {step}/{self._total}  evaluated: {shown}", highlight=False, soft_wrap=True)

    def task(self, description: str, total: int, unit: str) -> Callable[[int], None]:
        """A second bar, for what interrupts the training; call what it returns with the number of items done since."""
        number = self._progress.add_task(description, total=total, parts=unit)

        def advance(count: int) -> None:
            self._progress.advance(number, count)
            if any(task.id == number and task.finished for task in self._progress.tasks):
                self._progress.remove_task(number)

        return advance

    def __enter__(self) -> Report:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._progress.stop()
