"""Serves a dv stream, as a process of its own: events, IMU samples or triggers by dv's
NetworkWriter.

    python dv_server.py PORT KIND SECONDS [BEHIND_S]

Each batch holds BATCH events (or one IMU sample, or one rising edge) of known values. The camera's
clock is BEHIND_S behind this machine's. The process ends without warning.
"""

from __future__ import annotations

import os
import sys
import time

import dv_processing as dv

WIDTH, HEIGHT, BATCH = 64, 48, 1000
NAME = "DVXPLORER_TEST0001"


PERIOD_S = 0.004


def serve(port: int, kind: str, seconds: float, behind_s: float) -> None:
    if kind == "events":
        stream = dv.io.Stream.EventStream(0, "events", NAME, (WIDTH, HEIGHT))
    elif kind == "imu":
        stream = dv.io.Stream.IMUStream(0, "imu", NAME)
    else:
        stream = dv.io.Stream.TriggerStream(0, "triggers", NAME)
    writer = dv.io.NetworkWriter("127.0.0.1", port, stream)
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        if writer.getClientCount():
            now_us = time.time_ns() // 1000 - round(1e6 * behind_s)
            if kind == "events":
                writer.writeEvents(events(now_us))
            elif kind == "imu":
                writer.writeImu(imu(now_us))
            else:
                writer.writeTriggers(edges(now_us))
        time.sleep(PERIOD_S)
    os._exit(0)


def events(now_us: int) -> dv.EventStore:
    """Events 1 us apart that end now: event k is at x k % 64, y k % 48, and ON where k is odd."""
    store = dv.EventStore()
    for k in range(BATCH):
        store.push_back(now_us - BATCH + k, k % WIDTH, k % HEIGHT, bool(k % 2))
    return store


def imu(now_us: int) -> dv.IMUPacket.ImuVector:
    """A sample of 180 deg/s about x and of 1 g along z."""
    samples = dv.IMUPacket.ImuVector()
    samples.append(dv.IMU(now_us, 20.0, 0.0, 0.0, 1.0, 180.0, 0.0, 0.0, 0.0, 0.0, 0.0))
    return samples


def edges(now_us: int) -> dv.TriggerPacket.TriggersVector:
    """A rising edge, now."""
    found = dv.TriggerPacket.TriggersVector()
    found.append(dv.Trigger(now_us, dv.TriggerType.EXTERNAL_SIGNAL_RISING_EDGE))
    return found


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float((*sys.argv, "0")[4]))
