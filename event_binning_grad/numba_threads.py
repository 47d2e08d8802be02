"""Guards numba's parallel sections, and makes its threads good neighbours.

numba picks its threading layer by what the machine has (TBB, OpenMP, else its own workqueue). The
workqueue aborts the process when two Python threads start parallel sections at once: one lock
makes every layer safe, and costs nothing that matters, because a section keeps all cores busy.

OpenMP's threads spin at the end of a section until the last one is done. On a robot other
processes want the cores too, and a thread that spins keeps the one from running that it waits for:
windows of 4 ms took 100 ms and more beside one busy process. So the threads are told to sleep.
"""

from __future__ import annotations

import os
import threading

import numba

_LOCK = threading.RLock()
_started = False

# OMP_WAIT_POLICY is the standard's; GNU's runtime takes the finer count of spins before it sleeps.
_WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "300"}


def parallel_section() -> threading.RLock:
    """The lock to hold (`with parallel_section():`) while a parallel numba function runs."""
    if not _started:
        _start_threads()
    return _LOCK


def _start_threads() -> None:
    """Starts numba's threads; OpenMP reads its settings once, when it is loaded.

    What the user has set stands, and the environment is left as it was.
    """
    global _started
    with _LOCK:
        added = [name for name in _WAITING if name not in os.environ]
        os.environ.update({name: _WAITING[name] for name in added})
        try:
            numba.set_num_threads(numba.get_num_threads())
        finally:
            for name in added:
                del os.environ[name]
        _started = True
