"""The middleware's transport for large messages, for whatever process sends or takes them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from event_binning_grad.errors import ConfigError

TRANSPORTS = ("large_data", "default")
PROFILE = Path(__file__).with_name("large_data.xml")
# As Fast DDS calls it since Kilted, and before.
PROFILE_VARIABLE, OLD_PROFILE_VARIABLE = (
    "FASTDDS_DEFAULT_PROFILES_FILE",
    "FASTRTPS_DEFAULT_PROFILES_FILE",
)
BUILTIN_VARIABLE = "FASTDDS_BUILTIN_TRANSPORTS"

_OLD_DISTRIBUTIONS = ("humble", "iron", "jazzy")
_SHARED_MEMORY = Path("/dev/shm")
# Each process holds the profile's 16 MB; a container may have 64 MB in all, and a process that
# writes where there is no more ends.
_WANTED_BYTES = 128 << 20


def transport_environment(transport: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to add to the environment of a process that handles large messages.

    Args:
        transport: "large_data", or "default" for that of Fast DDS.
        environment: that of this process; what the user has chosen there stands.

    Raises:
        ConfigError: another transport.
    """
    if transport not in TRANSPORTS:
        raise ConfigError(f"transport {transport!r}: expected one of {', '.join(TRANSPORTS)}")
    chosen_by = (BUILTIN_VARIABLE, PROFILE_VARIABLE, OLD_PROFILE_VARIABLE)
    if any(environment.get(name) for name in chosen_by):
        return {}
    if transport == "default":
        return {BUILTIN_VARIABLE: "DEFAULT"}  # else the process itself takes large_data
    middleware = environment.get("RMW_IMPLEMENTATION") or "rmw_fastrtps_cpp"
    old = environment.get("ROS_DISTRO") in _OLD_DISTRIBUTIONS
    # There a profile's transports stay beside those that are bound to this machine.
    bound = old and environment.get("ROS_LOCALHOST_ONLY") == "1"
    if "fastrtps" not in middleware or bound or not _SHARED_MEMORY.is_dir():
        return {}
    file_system = os.statvfs(_SHARED_MEMORY)
    free_bytes = file_system.f_bavail * file_system.f_frsize
    if free_bytes < _WANTED_BYTES:
        logging.getLogger(__name__).warning(
            "%s has %d MB free, expected at least %d for the transport large_data: the default "
            "one is used, and messages of events above 0.5 MB will be lost; give the container "
            "more (docker run --shm-size)",
            _SHARED_MEMORY, free_bytes >> 20, _WANTED_BYTES >> 20,
        )  # fmt: skip
        return {BUILTIN_VARIABLE: "DEFAULT"}
    return {OLD_PROFILE_VARIABLE if old else PROFILE_VARIABLE: str(PROFILE)}
