"""Tensors on disk: one safetensors file a record, written atomically, checked on reading."""

from __future__ import annotations

import os
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from simpletuner.helpers.data.errors import DatasetError

_CHECKSUM = "__crc32__"
_LEFTOVER_AGE = 3600.0
"""Seconds after which an unfinished write belongs to a process that was killed."""


@dataclass(frozen=True)
class TensorStore:
    """Records of named tensors under hashed keys.

    A record is there as a whole or not at all: it is written beside its place and renamed. What the disk spoils later
    is found by a checksum.
    """

    folder: Path

    def path(self, key: str) -> Path:
        """The file of a record; two levels, because a folder of a million files is slow."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def intact(self, key: str) -> bool:
        """Whether the record is there and its checksum holds (it is read for that)."""
        return self._read(key) is not None

    def read(self, key: str) -> dict[str, Tensor]:
        """The tensors of a record. Raises ``DatasetError`` where it is missing or damaged."""
        record = self._read(key)
        if record is None:
            raise DatasetError(f"cache_dir: {self.path(key)} is missing or damaged; start the run again to rebuild it.")
        return record

    def write(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Writes or replaces a record. Raises ``DatasetError`` where the disk is full or can't be written."""
        record = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = safetensors.torch.save(record | {_CHECKSUM: _checksum(record)})
        target = self.path(key)
        unfinished = target.with_name(f"{key}.{uuid4().hex}.tmp")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(data)
            unfinished.replace(target)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise DatasetError(
                f"cache_dir: can't write {target}: {os.strerror(error.errno or 0)}. Free space or set another folder; "
                "what is cached so far is kept."
            ) from error

    def remove_leftovers(self) -> None:
        """Removes what killed processes left unfinished; a write of another run that is under way stays."""
        oldest = time.time() - _LEFTOVER_AGE
        for unfinished in self.folder.glob("*/*.tmp"):
            if unfinished.stat().st_mtime < oldest:
                unfinished.unlink(missing_ok=True)

    def _read(self, key: str) -> dict[str, Tensor] | None:
        try:
            record = safetensors.torch.load(self.path(key).read_bytes())
        except (OSError, SafetensorError):
            return None
        checksum = record.pop(_CHECKSUM, None)
        return record if checksum is not None and torch.equal(checksum, _checksum(record)) else None


def _checksum(tensors: dict[str, Tensor]) -> Tensor:
    """`(1,)`: over names, types, shapes and bytes."""
    value = 0
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return torch.tensor([value])
