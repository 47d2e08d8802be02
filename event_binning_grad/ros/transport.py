"""The middleware's transport for large messages, for whoever starts the node."""

from __future__ import annotations

from collections.abc import Mapping

from event_binning_grad.errors import ConfigError

VARIABLE = "FASTDDS_BUILTIN_TRANSPORTS"
# With the defaults best-effort messages above 0.6 MB are almost all lost. With this a process
# still talks to those that have the defaults.
LARGE_DATA = (
    "LARGE_DATA?max_msg_size=4MB&sockets_size=16MB&non_blocking=false&tcp_negotiation_timeout=50"
)
TRANSPORTS = ("large_data", "default")

# Who has set one of these has chosen a transport.
_CHOSEN_BY = (VARIABLE, "FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")


def transport_environment(transport: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to add to the environment of a process that handles large messages.

    Args:
        transport: "large_data", or "default" to leave everything as it is.
        environment: that of this process; what the user has chosen there stands.

    Raises:
        ConfigError: another transport.
    """
    if transport not in TRANSPORTS:
        raise ConfigError(f"transport {transport!r}: expected one of {', '.join(TRANSPORTS)}")
    if transport == "default" or any(environment.get(name) for name in _CHOSEN_BY):
        return {}
    return {VARIABLE: LARGE_DATA}
