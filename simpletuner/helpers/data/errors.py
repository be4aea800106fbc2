"""What goes wrong with data, in one sentence each."""

from __future__ import annotations

from pathlib import Path


class DatasetError(ValueError):
    """The run can't go on with this data; the message names the option or the file, and the mend."""


class MediaError(ValueError):
    """One image or clip can't be used; the caller decides whether that ends the run."""

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(f"{path}: {str(reason).strip()}")
        self.path = path
        self.reason = str(reason).strip()
