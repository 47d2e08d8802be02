"""The C library's memory, for a process through which large messages pass."""

from __future__ import annotations

import ctypes

# Numbers of malloc.h. The first may not be more than 32 MiB.
_TRIM_THRESHOLD, _TRIM_BYTES = -1, 256 << 20
_MMAP_THRESHOLD, _MMAP_BYTES = -3, 32 << 20


def keep_freed_memory() -> None:
    """Lets the process keep memory that it frees, up to 256 MiB a heap, and use it again.

    By default glibc gives a message's memory back to the system when it is freed, and each page of
    the next one's is fetched and cleared anew. That is half of all the work of receiving.
    Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _TRIM_BYTES)
        mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)
