"""Peak memory of a function, counted exactly: what its tensors hold, not what the process was given."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import accumulate

import torch

# Without it the profiler prints a line at each start and stop, and an error where there is no GPU.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def peak_memory(function: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors on the device at the highest moment of one call, above those at its start.

    On a GPU by the caching allocator, after a call that lets libraries allocate their workspaces. On a CPU every
    allocation and release of torch's allocator is added up, those inside autograd functions and in the backward pass
    too; scratch that a library allocates by itself isn't seen.
    """
    if device.type == "cuda":
        function()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - start
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        function()
    assert profile.kineto_results is not None
    changes = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in changes), initial=0))


def mebibytes(count: int) -> str:
    return f"{count / 2**20:.3g} MiB"
