"""Pausing a replay: by a service, and by the space key of a terminal."""

from __future__ import annotations

import os
import select
import sys
import threading
from typing import Any

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node


class PauseControl:
    """Whether a replay is paused, and who may change that.

    Once started, threads of its own listen to the service ~/pause (std_srvs/SetBool, where that
    package is installed) and to the space key, where standard input is a terminal in whose
    foreground this process is.
    """

    def __init__(self, node: Node, paused: bool) -> None:
        self._node = node
        self._running = threading.Event()
        if not paused:
            self._running.set()
        self._stopping = threading.Event()
        self._executor: SingleThreadedExecutor | None = None
        self._threads: list[threading.Thread] = []
        self._terminal: Any = None

    @property
    def is_paused(self) -> bool:
        return not self._running.is_set()

    def wait(self, timeout_s: float) -> None:
        """Until it goes on, or so long."""
        self._running.wait(timeout_s)

    def pause(self, paused: bool) -> str:
        """Pauses, or goes on; says what it is now."""
        if paused:
            self._running.clear()
        else:
            self._running.set()
        return "paused" if paused else "playing"

    def start(self) -> None:
        self._serve()
        self._listen_to_keys()

    def stop(self) -> None:
        """Ends the threads, and leaves the terminal as it was."""
        self._stopping.set()
        self._running.set()
        if self._executor is not None:
            self._executor.shutdown(timeout_sec=1.0)
        for thread in self._threads:
            thread.join(1.0)
        if self._terminal is not None:
            import termios

            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._terminal)
            self._terminal = None

    def _serve(self) -> None:
        try:
            from std_srvs.srv import SetBool
        except ImportError:
            self._node.get_logger().info("no service ~/pause: std_srvs is not installed")
            return

        def on_request(request: Any, response: Any) -> Any:
            response.success, response.message = True, self.pause(request.data)
            return response

        self._node.create_service(SetBool, "~/pause", on_request)
        self._executor = SingleThreadedExecutor(context=self._node.context)
        self._executor.add_node(self._node)
        self._begin(self._spin)

    def _spin(self) -> None:
        assert self._executor is not None
        try:
            while not self._stopping.is_set():
                self._executor.spin_once(timeout_sec=0.5)
        except ExternalShutdownException:
            pass
        except Exception:
            if self._node.context.ok() and not self._stopping.is_set():
                raise

    def _listen_to_keys(self) -> None:
        try:
            terminal = sys.stdin.fileno()
            if not os.isatty(terminal) or os.tcgetpgrp(terminal) != os.getpgrp():
                return
        except (AttributeError, OSError, ValueError):  # no standard input at all
            return
        import termios
        import tty

        self._terminal = termios.tcgetattr(terminal)
        tty.setcbreak(terminal)  # keys come at once; Ctrl-C stays what it is
        self._begin(self._read_keys)

    def _read_keys(self) -> None:
        terminal = sys.stdin.fileno()
        while not self._stopping.is_set():
            if select.select([terminal], [], [], 0.2)[0]:
                keys = os.read(terminal, 64)
                if not keys:
                    return
                if keys.count(b" ") % 2:
                    self.pause(not self.is_paused)

    def _begin(self, target: Any) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()
