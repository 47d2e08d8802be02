"""Guards numba's parallel sections, and makes OpenMP's threads good neighbours."""

from __future__ import annotations

import os
import threading

_LOCK = threading.RLock()

# OMP_WAIT_POLICY is the standard's; GNU's runtime takes the finer count of spins before it sleeps.
_WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "300"}


def parallel_section() -> threading.RLock:
    """The lock to hold (`with parallel_section():`) while a parallel numba function runs.

    numba picks its threading layer by what the machine has (TBB, OpenMP, else its own workqueue).
    The workqueue aborts the process when two Python threads start parallel sections at once; one
    lock makes every layer safe, and costs nothing that matters, because a section keeps all cores
    busy.
    """
    return _LOCK


def let_threads_sleep() -> None:
    """Tells OpenMP's threads to sleep, not to spin, at the end of a parallel section.

    For programs, to be called before torch or numba is imported: the settings of the environment
    are read once, when the first OpenMP runtime is loaded, and what the user has set stands. On a
    robot other processes want the cores too, and a thread that spins keeps the very one from
    running that it waits for: windows of 4 ms took over 100 ms beside one busy process.
    """
    for name, value in _WAITING.items():
        os.environ.setdefault(name, value)
