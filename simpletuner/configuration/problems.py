"""What is wrong with a configuration, in a form that the CLI, the trainer and the WebUI can all show."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    ``option`` is the option's name (or a file), ``message`` says what is wrong with which value, ``mend`` what to
    do about it. An ``error`` stops the run; a ``warning`` does not.
    """

    option: str
    message: str
    mend: str
    severity: Severity = "error"

    def __str__(self) -> str:
        return f"{self.severity}: {self.option}: {self.message}. {self.mend}"


def warning(option: str, message: str, mend: str) -> Problem:
    """A problem that does not stop the run."""
    return Problem(option, message, mend, "warning")


def has_errors(problems: Iterable[Problem]) -> bool:
    """Whether any of the problems stops the run."""
    return any(problem.severity == "error" for problem in problems)
