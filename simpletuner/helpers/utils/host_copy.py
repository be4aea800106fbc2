"""Reading device values on the host without making the device wait."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """A copy of a tensor to the host that was started now and is read later.

    Read it a step after it was started: by then the device has passed it, and `read` doesn't stall.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._tensor = tensor.detach().to("cpu", non_blocking=True)
        if tensor.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> list[float]:
        """The values, as a flat list."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor.flatten().tolist()
