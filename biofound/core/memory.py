"""Memory of this process: settings of the C library, and the peak."""

import ctypes
import resource
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def keep_freed_memory() -> bool:
    """Keep freed memory for the next training step; False where the C library has no such setting.

    glibc hands large blocks back to the system and fetches them again, zeroed page by page: about 30,000
    page faults a step of the default model, a fifth of its time on a CPU. It concerns the whole process,
    and is for glibc on Linux; other C libraries have no such setting, and nothing happens there. All threads
    share one heap, because each heap would keep its own.
    """
    libc = _glibc()
    if libc is None:
        return False
    trim_threshold, mmap_threshold, arena_max, a_gigabyte = -1, -3, -8, 1 << 30  # M_* of malloc.h
    options = ((trim_threshold, a_gigabyte), (mmap_threshold, a_gigabyte), (arena_max, 1))
    return all(libc.mallopt(name, value) == 1 for name, value in options)


def return_freed_memory() -> bool:
    """Return kept memory to the system; False where the C library has no such setting.

    Validation and checkpoints take and free blocks of other sizes than a step's, between which its own no
    longer fit: without this a run grows by some 60 MB in its first epochs.
    """
    libc = _glibc()
    if libc is None:
        return False
    libc.malloc_trim(0)
    return True


def peak_memory(device: "torch.device") -> dict[str, int | None]:
    """The most memory that this process has held so far, in bytes.

    Returns:
        `process`: resident memory, with the pages of mapped window files, which the system can take back;
        `gpu`: what torch has allocated on the GPU, None on a CPU.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    gpu = None
    if device.type == "cuda":
        import torch

        gpu = torch.cuda.max_memory_allocated(device)
    return {"process": process, "gpu": gpu}


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
