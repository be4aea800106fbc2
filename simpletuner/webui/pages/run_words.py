"""What is said of a run: its state, its steps, how busy its machine is."""

from __future__ import annotations

from typing import Any

from simpletuner.webui import wording
from simpletuner.webui.pages.layout import Look
from simpletuner.webui.runs import Run
from simpletuner.webui.watch import Progress

# Icon, and class of the colour, of each state.
STATE_LOOKS = {
    "starting": ("hourglass_top", "text-primary"),
    "running": ("play_circle", "text-primary"),
    "stopping": ("pending", "amber"),
    "finished": ("check_circle", "text-positive"),
    "stopped": ("pause_circle", "faint"),
    "failed": ("error", "text-negative"),
    "killed": ("cancel", "text-negative"),
}


def state_words(run: Run, look: Look) -> str:
    """What a run does, or how it ended."""
    _ = look.words
    if run.state == "failed":
        return _("Failed (exit code {code})").format(code=run.exit_code)
    if run.state == "killed" and run.exit_code is not None and run.exit_code < 0:
        return _("Killed by signal {signal}").format(signal=-run.exit_code)
    is_cache = run.command == "cache"
    return {
        "starting": _("Building caches…") if is_cache else _("Starting, building caches…"),
        "running": _("Building caches…") if is_cache else _("Training…"),
        "stopping": _("Stopping…") if is_cache else _("Stopping: saving a checkpoint…"),
        "finished": _("Finished"),
        "stopped": _("Stopped"),
        "killed": _("Killed"),
    }[run.state]


def command_words(run: Run, look: Look) -> str:
    """What a run was started for."""
    return look.words("Building caches") if run.command == "cache" else look.words("Training")


def steps_words(progress: Progress, look: Look) -> str:
    """The steps done, of how many."""
    _ = look.words
    step = wording.count(progress.step, look.language)
    if progress.total is None:
        return _("Step {step}").format(step=step)
    return _("Step {step} of {total}").format(step=step, total=wording.count(progress.total, look.language))


def progress_words(progress: Progress, look: Look, *, active: bool) -> str:
    """Steps done, and while it trains what is left and how long a step takes."""
    _ = look.words
    parts = [steps_words(progress, look)]
    if active and progress.seconds_left is not None:
        parts.append(_("{time} left").format(time=wording.duration(progress.seconds_left, look.language)))
    if progress.step_seconds is not None:
        parts.append(_("{time} a step").format(time=wording.step_time(progress.step_seconds, look.language)))
    return " · ".join(parts)


def machine_measures(state: dict[str, Any], look: Look) -> list[tuple[str, float]]:
    """Each measure in words, and as a share of 1; what isn't known is left out."""
    _, language = look.words, look.language
    measures: list[tuple[str, float]] = []

    def add(name: str, share: float | None, *details: str) -> None:
        if share is not None:
            measures.append((" · ".join((f"{name}: {wording.percent(share, language)}", *details)), share))

    def of(used: float, total: float) -> str:
        amounts = {"used": wording.size(used, language), "total": wording.size(total, language)}
        return _("{used} of {total}").format(**amounts)

    if state.get("cpu_percent") is not None:
        add(_("CPU"), state["cpu_percent"] / 100)
    memory = state.get("memory")
    if memory and memory["total"]:
        add(_("Memory"), memory["used"] / memory["total"], of(memory["used"], memory["total"]))
    for gpu in state.get("gpus", ()):
        details = [of(gpu["memory_used"], gpu["memory_total"])] if gpu.get("memory_total") else []
        if gpu.get("temperature") is not None:
            details.append(f"{wording.number(gpu['temperature'], language)} °C")
        utilisation = gpu.get("utilisation")
        add(gpu["name"], None if utilisation is None else utilisation / 100, *details)
    return measures
