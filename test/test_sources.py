"""Sources without ROS: network streams, cameras, recordings, and the thread that reads them."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from event_binning_grad.events.decoder import PacketDecoder
from event_binning_grad.events.encoder import packetize
from event_binning_grad.events.recordings import open_recording, write_bag
from event_binning_grad.events.types import EventPacket, Events, stamp_to_ns
from event_binning_grad.simulate import SimulationConfig, write_simulation
from event_binning_grad.sources.camera_settings import apply_settings, setters
from event_binning_grad.sources.dv import DvCamera, DvNetwork, read_inputs
from event_binning_grad.sources.file import FileSource, Pace
from event_binning_grad.sources.metavision import Metavision, mono_words, packets
from event_binning_grad.sources.source import (
    Measurement,
    Opened,
    SourceError,
    SourceReader,
    SourceUnusableError,
    Wait,
)

SERVER = Path(__file__).with_name("dv_server.py")
DEADLINE_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(kind: str, port: int, seconds: float = DEADLINE_S) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, str(SERVER), str(port), kind, str(seconds)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@dataclass
class Taken:
    """What a SourceReader said."""

    items: list[Any] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    ended: int = 0
    failures: list[BaseException] = field(default_factory=list)

    def end(self) -> None:
        self.ended += 1

    def of(self, kind: type) -> list[Any]:
        return [item for item in self.items if isinstance(item, kind)]

    def wait_for(self, condition: Any) -> None:
        end_s = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end_s, (self.reports, len(self.items), self.failures)
            time.sleep(0.01)


@contextmanager
def reading(source: Any, retry_s: float = 0.1) -> Iterator[Taken]:
    taken = Taken()
    reader = SourceReader(
        source, taken.items.append, taken.reports.append, taken.end, taken.failures.append, retry_s
    )
    reader.start()
    try:
        yield taken
    finally:
        assert reader.stop(5.0)


def test_network_stream_arrives_whole_and_in_time() -> None:
    pytest.importorskip("dv_processing")
    port = free_port()
    with served("events", port), reading(DvNetwork("127.0.0.1", port)) as taken:
        taken.wait_for(lambda: len(taken.of(EventPacket)) >= 50)
        received_ns = time.time_ns()
    (opened,) = taken.of(Opened)
    assert "DVXPLORER_TEST0001, 64x48" in opened.text
    assert not taken.failures
    assert taken.reports[-1] == ""
    decoder = PacketDecoder()
    taken_packets = taken.of(EventPacket)
    decoded = [decoder.decode(packet) for packet in taken_packets]
    assert decoder.counters.events % 1000 == 0
    assert decoder.counters.lost_packets == decoder.counters.out_of_bounds_events == 0
    assert [packet.seq for packet in taken_packets] == list(range(len(taken_packets)))
    for packet, part in zip(taken_packets, decoded, strict=True):
        events = part.events
        assert (events.width, events.height) == (64, 48)
        k = np.arange(len(events)) % 1000
        np.testing.assert_array_equal(events.x, k % 64)
        np.testing.assert_array_equal(events.y, k % 48)
        np.testing.assert_array_equal(events.p, k % 2)
        np.testing.assert_array_equal(np.diff(events.t[:1000]), 1000)
        # The stamp is that of the first bytes: after the first event, and not long after.
        delay_ns = stamp_to_ns(packet.header.stamp) - int(events.t[0])
        assert 0 <= delay_ns < 2e9
        assert int(events.t[-1]) <= received_ns


def test_network_stream_that_comes_and_goes_is_found_again() -> None:
    pytest.importorskip("dv_processing")
    port = free_port()
    with reading(DvNetwork("127.0.0.1", port)) as taken:
        taken.wait_for(lambda: bool(taken.reports))
        assert f"nobody serves a dv stream at 127.0.0.1:{port} (" in taken.reports[0]
        for n in (1, 2):
            with served("events", port):
                taken.wait_for(lambda n=n: len(taken.of(Opened)) == n and taken.reports[-1] == "")
                before = len(taken.of(EventPacket))
                taken.wait_for(lambda before=before: len(taken.of(EventPacket)) > before + 5)
            taken.wait_for(lambda: taken.reports[-1] != "")
            assert any("has ended; trying again" in line for line in taken.reports)
    assert not taken.failures
    assert not taken.ended


def test_network_imu_is_in_si_units_and_triggers_have_a_direction() -> None:
    pytest.importorskip("dv_processing")
    ports = free_port(), free_port(), free_port()
    source = DvNetwork("127.0.0.1", *ports)
    assert source.sensors == {"imu"}
    began_ns = time.time_ns()
    with ExitStack() as stack:
        for kind, port in zip(("events", "imu", "triggers"), ports, strict=True):
            stack.enter_context(served(kind, port))
        taken = stack.enter_context(reading(source))

        def of(sensor: str) -> list[Measurement]:
            return [item for item in taken.of(Measurement) if item.sensor == sensor]

        taken.wait_for(lambda: min(len(of("imu")), len(of("trigger"))) >= 20)
        assert taken.of(EventPacket)
    for item in taken.of(Measurement):
        assert item.clock_of_events
        assert began_ns - 1000 < item.stamp_ns < time.time_ns()
    for sample in of("imu"):
        np.testing.assert_allclose(sample.value, [np.pi, 0, 0], atol=1e-6)
        assert sample.acceleration is not None
        np.testing.assert_allclose(sample.acceleration, [0, 0, 9.81], atol=0.01)
    assert all(edge.value is True for edge in of("trigger"))


def test_network_stream_goes_on_without_its_imu() -> None:
    pytest.importorskip("dv_processing")
    port, imu_port = free_port(), free_port()
    with served("events", port), reading(DvNetwork("127.0.0.1", port, imu_port)) as taken:
        with served("imu", imu_port):
            taken.wait_for(lambda: bool(taken.of(Measurement)))
        before = len(taken.of(EventPacket))
        taken.wait_for(lambda: len(taken.of(EventPacket)) > before + 50)
    assert not taken.failures


@pytest.mark.parametrize("kind", ["imu", "triggers"])
def test_network_stream_of_something_else_is_one_line(kind: str) -> None:
    pytest.importorskip("dv_processing")
    port = free_port()
    what = {"imu": "IMU samples", "triggers": "triggers"}[kind]
    with served(kind, port), reading(DvNetwork("127.0.0.1", port)) as taken:
        taken.wait_for(lambda: any("has no events" in line for line in taken.reports))
    expected = f"127.0.0.1:{port} has no events ({what}): give the port of the camera's events"
    assert any(expected in line for line in taken.reports)
    assert not taken.failures


def test_no_camera_is_one_line_and_tried_again() -> None:
    dv = pytest.importorskip("dv_processing")
    if dv.io.camera.discover():
        pytest.skip("there is a camera here")
    with reading(DvCamera("nobody")) as taken:
        taken.wait_for(lambda: len(taken.reports) >= 2)
    assert taken.reports[0].startswith(
        "no iniVation camera with 'nobody' in its name at USB, found"
    )
    with pytest.raises(SourceError, match="no iniVation camera found at USB"):
        next(DvCamera().read())


def test_missing_package_is_one_line_and_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dv_processing", None)
    monkeypatch.setitem(sys.modules, "metavision_core", None)
    for source, line in (
        (DvNetwork("127.0.0.1", 1), "dv_processing cannot be imported"),
        (DvCamera(), "pip install dv-processing"),
        (Metavision(), "install Metavision or OpenEB"),
    ):
        with reading(source, 0.01) as taken:
            time.sleep(0.1)
        (report,) = taken.reports
        assert line in report


class FakeBias(Enum):
    OnBn = 0


class FakeCamera:
    """The settings of a camera as the bindings offer them: their types stand in their text."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def setContrastThresholdOn(self, value: Any) -> None:
        """setContrastThresholdOn(self: dv.C, contrastThresholdOn: typing.SupportsInt) -> None"""
        if not 0 <= value <= 17:
            raise ValueError("expected 0 to 17")
        self.calls.append(("on", value))

    def setIMUFlipX(self, flip: Any) -> None:
        """setIMUFlipX(self: dv.C, flipX: bool) -> None"""
        self.calls.append(("flip", flip))

    def setFrameInterval(self, interval: Any) -> None:
        """setFrameInterval(self: dv.C, frameIntervalUs: datetime.timedelta) -> None"""
        self.calls.append(("interval", interval))

    def setBias(self, bias: Any, coarse: Any, fine: Any) -> None:
        """setBias(self: dv.C, bias: dv.FakeBias, coarse: typing.X, fine: typing.X) -> None"""
        self.calls.append(("bias", bias, coarse, fine))


FAKE_DV: Any = SimpleNamespace(FakeBias=FakeBias)


def test_camera_settings_call_the_cameras_methods() -> None:
    camera = FakeCamera()
    text = "contrast_threshold_on=9 imu_flip_x=true frame_interval=4ms bias=OnBn,5,120"
    apply_settings(camera, FAKE_DV, text)
    interval = timedelta(milliseconds=4)
    assert camera.calls == [
        ("on", 9), ("flip", True), ("interval", interval), ("bias", FakeBias.OnBn, 5, 120),
    ]  # fmt: skip
    apply_settings(camera, FAKE_DV, "")
    assert len(camera.calls) == 4


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ("gain=3", "'gain=3': expected name=value with a name of bias, contrast_threshold_on"),
        ("imu_flip_x", "'imu_flip_x': expected name=value"),
        ("contrast_threshold_on=99", "was refused: expected 0 to 17"),
        ("contrast_threshold_on=high", "'high' is no integer, time, true or false"),
        ("bias=OffBn,5,120", "'OffBn', expected one of OnBn"),
        ("bias=OnBn", "was refused"),
    ],
)
def test_bad_camera_setting_is_one_line(settings: str, line: str) -> None:
    with pytest.raises(SourceUnusableError) as error:
        apply_settings(FakeCamera(), FAKE_DV, settings)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_of_the_real_cameras_are_known() -> None:
    """What config/default.yaml gives as examples exists in dv-processing."""
    camera = pytest.importorskip("dv_processing").io.camera
    assert {"contrast_threshold_on", "contrast_threshold_off"} <= set(setters(camera.DVXplorer))
    davis = setters(camera.DAVIS)
    assert {"davis346_bias_coarse_fine", "frames_running", "auto_exposure"} <= set(davis)
    assert "On" in camera.DAVIS.Davis346BiasCF.__members__


class FakeInput:
    """A dv input that gives two batches, an IMU sample and trigger edges, and ends."""

    def __init__(self, dv: ModuleType) -> None:
        self._dv, self._batches = dv, 3
        self.settings: list[Any] = []

    def getCameraName(self) -> str:
        return "DAVIS346_FAKE"

    def getEventResolution(self) -> tuple[int, int]:
        return 346, 260

    def isRunning(self) -> bool:
        return self._batches > 0

    def isImuStreamAvailable(self) -> bool:
        return True

    def isTriggerStreamAvailable(self) -> bool:
        return True

    def setTimeInterval(self, interval: timedelta) -> None:
        self.settings.append(interval)

    def getNextEventBatch(self) -> Any:
        self._batches -= 1
        if self._batches < 0:
            return None
        store = self._dv.EventStore()
        if self._batches:  # the last one is empty
            store.push_back(1_000_000 * (3 - self._batches), 3, 4, True)
        return store

    def getNextImuBatch(self) -> Any:
        samples = self._dv.IMUPacket.ImuVector()
        samples.append(self._dv.IMU(5, 20.0, 1.0, 0.0, 0.0, 0.0, 0.0, 90.0, 0.0, 0.0, 0.0))
        return samples if self._batches == 2 else None

    def getNextTriggerBatch(self) -> Any:
        kinds = self._dv.TriggerType
        edges = [
            SimpleNamespace(timestamp=7, type=kinds.EXTERNAL_SIGNAL_RISING_EDGE),
            SimpleNamespace(timestamp=8, type=kinds.APS_FRAME_START),
            SimpleNamespace(timestamp=9, type=kinds.EXTERNAL_SIGNAL_FALLING_EDGE),
        ]
        return edges if self._batches == 2 else None


def test_camera_gives_events_imu_and_triggers(monkeypatch: pytest.MonkeyPatch) -> None:
    dv = pytest.importorskip("dv_processing")
    camera = FakeInput(dv)
    model = SimpleNamespace(name="DAVIS")
    found = [SimpleNamespace(cameraModel=model, serialNumber="FAKE")]
    fake = SimpleNamespace(io=SimpleNamespace(camera=SimpleNamespace()))
    fake.io.camera.discover = lambda: found
    fake.io.camera.open = lambda device: camera
    monkeypatch.setattr("event_binning_grad.sources.dv.import_dv", lambda: fake)
    items: list[Any] = [item for item in DvCamera("davis_fa").read() if not isinstance(item, Wait)]
    kinds = [type(item) for item in items]
    assert kinds == [Opened, EventPacket, *[Measurement] * 3, EventPacket]
    assert items[0].text == "DAVIS346_FAKE, 346x260"
    assert camera.settings == [timedelta(milliseconds=4)]
    assert (items[1].seq, items[5].seq) == (0, 1)
    decoder = PacketDecoder()
    times = [int(decoder.decode(items[k]).events.t[0]) for k in (1, 5)]
    assert times == [1_000_000_000, 2_000_000_000]
    np.testing.assert_allclose(items[2].value, [0, 0, np.pi / 2])
    measured = [(item.sensor, item.stamp_ns, item.clock_of_events) for item in items[2:5]]
    assert measured == [("imu", 5000, True), ("trigger", 7000, True), ("trigger", 9000, True)]
    assert (items[3].value, items[4].value) == (True, False)
    with pytest.raises(SourceError, match=r"no iniVation camera with 'xplorer'.*found DAVIS_FAKE"):
        next(DvCamera("xplorer").read())


def test_dv_batch_is_stamped_when_its_first_event_came() -> None:
    """Whatever reading it costs: the clock is looked at before, and the batch is whole then."""
    dv = pytest.importorskip("dv_processing")
    clock_ns = [5_000_000_000]

    class Slow(FakeInput):
        def getNextEventBatch(self) -> Any:
            store = super().getNextEventBatch()
            clock_ns[0] += 10_000_000
            if store is not None and not store.isEmpty():
                store.push_back(store.getHighestTime() + 3000, 5, 6, False)
            return store

    items = read_inputs([Slow(dv)], lambda: clock_ns[0])
    stamps = [stamp_to_ns(item.header.stamp) for item in items if isinstance(item, EventPacket)]
    assert stamps == [4_997_000_000, 5_007_000_000]


BATCH = np.dtype([("x", "<u2"), ("y", "<u2"), ("p", "<i2"), ("t", "<i8")])


def test_metavision_batches_become_packets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in for the bindings, with the shape of theirs."""
    rng = np.random.default_rng(0)
    batches = []
    for k in range(3):
        batch = np.zeros(500 * (k != 1), BATCH)
        batch["x"], batch["y"] = rng.integers(0, 1280, len(batch)), rng.integers(0, 720, len(batch))
        batch["p"] = rng.integers(0, 2, len(batch))
        batch["t"] = np.sort(rng.integers(4000 * k, 4000 * (k + 1), len(batch)))
        batches.append(batch)

    class EventsIterator:
        def __init__(self, input_path: str, delta_t: int) -> None:
            if input_path == "absent":
                raise OSError("no camera")
            self.opened = input_path, delta_t

        def get_size(self) -> tuple[int, int]:
            return 720, 1280

        def __iter__(self) -> Iterator[Any]:
            return iter(batches)

    event_io: Any = ModuleType("metavision_core.event_io")
    event_io.EventsIterator = EventsIterator
    monkeypatch.setitem(sys.modules, "metavision_core", ModuleType("metavision_core"))
    monkeypatch.setitem(sys.modules, "metavision_core.event_io", event_io)
    taken: list[Any]
    opened: Any
    opened, *taken = Metavision("00001234").read()
    assert opened.text == "the camera 00001234: 1280x720"
    assert [packet.seq for packet in taken] == [0, 1]
    decoder = PacketDecoder()
    for packet, batch in zip(taken, (batches[0], batches[2]), strict=True):
        events = decoder.decode(packet).events
        np.testing.assert_array_equal(events.t, batch["t"] * 1000)
        for name in "xyp":
            np.testing.assert_array_equal(getattr(events, name), batch[name])
    with pytest.raises(SourceError, match=r"the camera absent cannot be opened .no camera"):
        next(Metavision("absent").read())


def test_metavision_packets_are_stamped_when_their_first_event_came() -> None:
    batch = np.array([(1, 2, 1, 10), (3, 4, 0, 12)], BATCH)
    (packet,) = packets([batch], 8, 8, now_ns=lambda: 123_456)
    assert stamp_to_ns(packet.header.stamp) == 123_456 - 2_000
    assert packet.time_base == 10_000
    words = mono_words(batch)
    assert [hex(word) for word in words] == [hex(1 << 63 | 2 << 48 | 1 << 32), "0x40003000007d0"]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("simulated") / "bag"
    config = SimulationConfig(duration_s=0.4, width=64, height=48, peak_rad_s=(3.0, 3.0, 3.0))
    write_simulation(path, replace(config, imu_hz=200.0, scene="layers"))
    return path


def test_file_comes_in_real_time(recording: Path) -> None:
    expected: list[Any] = list(open_recording(recording).packets())
    began_s = time.monotonic()
    source = FileSource(recording, rate=2.0, wanted=frozenset({"imu"}))
    with reading(source) as taken:
        taken.wait_for(lambda: taken.ended)
    took_s = time.monotonic() - began_s
    got = taken.of(EventPacket)
    assert [packet.seq for packet in got] == [packet.seq for packet in expected]
    span_s = (stamp_to_ns(expected[-1].header.stamp) - stamp_to_ns(expected[0].header.stamp)) * 1e-9
    assert took_s > span_s / 2
    (opened,) = taken.of(Opened)
    assert opened.calibration is not None
    assert opened.calibration["width"] == 64
    samples = taken.of(Measurement)
    assert 60 <= len(samples) <= 90  # 200 Hz for 0.4 s
    # In order with the events, by their stamps.
    stamps = [
        item.stamp_ns if isinstance(item, Measurement) else stamp_to_ns(item.header.stamp)
        for item in taken.items
        if not isinstance(item, Opened)
    ]
    assert stamps == sorted(stamps)
    assert not taken.failures
    assert taken.reports == [""]


def test_file_damaged_in_the_middle_ends(tmp_path: Path) -> None:
    lines = [f"{k * 1e-4:.6f} {k % 64} {k % 48} {k % 2}" for k in range(200_000)]
    lines[190_000] = "no event"
    (tmp_path / "events.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "calib.txt").write_text("50 50 32 24 0 0 0 0 0\n64 48\n")
    with reading(FileSource(tmp_path, rate=1e6)) as taken:
        taken.wait_for(lambda: taken.ended)
    assert taken.of(EventPacket)
    assert "line 190001" in taken.reports[-1]
    assert not taken.failures


def test_file_loops_until_stopped(recording: Path) -> None:
    count = sum(1 for _ in open_recording(recording).packets())
    with reading(FileSource(recording, rate=1000.0, loop=True)) as taken:
        taken.wait_for(lambda: len(taken.of(EventPacket)) > 2 * count)
    assert not taken.ended
    texts = [opened.text for opened in taken.of(Opened)]
    assert texts[0].endswith(": 64x48")
    assert texts[1:3] == [f"the recording {recording} begins again"] * 2


def test_triggers_of_a_file_come_in_the_order_of_time(tmp_path: Path) -> None:
    """Those that lie beside the events, as in AEDAT4; times are in us there."""
    dv = pytest.importorskip("dv_processing")
    path, start_us = tmp_path / "camera.aedat4", 1_700_000_000_000_000
    config = dv.io.MonoCameraWriter.Config("DVXPLORER_TEST0001")
    config.addEventStream((64, 48))
    config.addTriggerStream()
    writer = dv.io.MonoCameraWriter(str(path), config)
    kinds = dv.TriggerType
    for k in range(100):
        store = dv.EventStore()
        for n in range(20):
            store.push_back(start_us + 1000 * k + n, n, n, True)
        writer.writeEvents(store)
    for k, kind in ((10, kinds.EXTERNAL_SIGNAL_RISING_EDGE), (20, kinds.APS_FRAME_START)):
        writer.writeTrigger(dv.Trigger(start_us + 1000 * k + 500, kind))
    falling = kinds.EXTERNAL_SIGNAL_FALLING_EDGE
    writer.writeTrigger(dv.Trigger(start_us + 30_500, falling))
    del writer
    with closing(FileSource(path, rate=1000.0).read()) as items:
        taken = [item for item in items if not isinstance(item, (Wait, Opened))]
    edges = [item for item in taken if isinstance(item, Measurement)]
    found = [(edge.sensor, edge.stamp_ns // 1000 - start_us, edge.value) for edge in edges]
    assert found == [("trigger", 10_500, True), ("trigger", 30_500, False)]
    stamps = [
        item.stamp_ns if isinstance(item, Measurement) else stamp_to_ns(item.header.stamp)
        for item in taken
    ]
    assert len(stamps) > 2
    assert stamps == sorted(stamps)


def test_file_of_plain_events_is_packetized(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    times_s = np.arange(2000) * 1e-4
    rows = [f"{t:.6f} {k % 64} {k % 48} {k % 2}" for k, t in enumerate(times_s)]
    (folder / "events.txt").write_text("\n".join(rows) + "\n")
    (folder / "calib.txt").write_text("50 50 32 24 0 0 0 0 0\n64 48\n")
    with closing(FileSource(folder, rate=1000.0).read()) as items:
        taken = [item for item in items if isinstance(item, EventPacket)]
    assert len(taken) >= 45  # 4 ms each
    assert stamp_to_ns(taken[0].header.stamp) == 1  # they begin at 0, which is no stamp
    decoder = PacketDecoder()
    decoded = [decoder.decode(packet).events for packet in taken]
    events = Events.concatenate(decoded)
    np.testing.assert_array_equal(events.x, np.arange(2000) % 64)
    np.testing.assert_array_equal(events.p, np.arange(2000) % 2)


def test_bad_file_is_one_line(tmp_path: Path) -> None:
    with reading(FileSource(tmp_path / "absent")) as taken:
        taken.wait_for(lambda: bool(taken.reports))
    (report,) = taken.reports
    assert "absent does not exist" in report
    assert not taken.ended
    path = tmp_path / "bag"
    events = Events.empty(8, 8)
    write_bag(path, packetize(events, 4.0))
    with reading(FileSource(path)) as taken:
        taken.wait_for(lambda: bool(taken.reports))
    assert "holds no events" in taken.reports[0]


def test_pace() -> None:
    now_s = [100.0]
    pace = Pace(2.0, lambda: now_s[0])
    second = 10**9
    assert pace.wait_s(5 * second) == 0.0
    assert pace.wait_s(7 * second) == pytest.approx(1.0)
    now_s[0] = 101.5
    assert pace.wait_s(7 * second) == 0.0
    assert pace.wait_s(9 * second) == pytest.approx(0.5)
    # A clock that was set, back or far ahead, is not waited for; what follows is.
    assert pace.wait_s(3 * second) == 0.0
    assert pace.wait_s(4 * second) == pytest.approx(0.5)
    assert pace.wait_s(400 * second) == 0.0
    assert pace.wait_s(401 * second) == pytest.approx(0.5)


def test_what_no_source_should_raise_is_told() -> None:
    class Broken:
        name, ends, sensors = "it", False, frozenset()

        def read(self) -> Iterator[Any]:
            yield Wait()
            raise KeyError("broken")

    with reading(Broken()) as taken:
        taken.wait_for(lambda: bool(taken.failures))
    assert isinstance(taken.failures[0], KeyError)
