"""The perception node: event packets in, the camera's velocity and dense flow out."""

from __future__ import annotations

import copy
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistWithCovarianceStamped, Vector3Stamped
from rclpy.clock import Clock, ClockType  # pyright: ignore[reportPrivateImportUsage] # Humble
from rclpy.exceptions import ParameterException
from rclpy.executors import Executor
from rclpy.node import Node
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo, Image, Imu, TimeReference

from event_binning_grad.commands.shared import is_yaml, load_camera
from event_binning_grad.errors import ConfigError, EventBinningError
from event_binning_grad.estimation import EgomotionEstimate
from event_binning_grad.estimation.flow_estimate import FlowEstimate
from event_binning_grad.events.types import EventPacket, PacketLike
from event_binning_grad.geometry import Camera
from event_binning_grad.geometry.camera import read_calib_txt
from event_binning_grad.pipeline import PipelineConfig, Trigger
from event_binning_grad.pipeline_flow import FlowStage
from event_binning_grad.ros import health
from event_binning_grad.ros.event_topics import EventTopic
from event_binning_grad.ros.flow_health import FlowReport, assess_flow, flow_figures
from event_binning_grad.ros.flow_output import FlowOutput
from event_binning_grad.ros.flow_worker import FlowWorker
from event_binning_grad.ros.health import Report
from event_binning_grad.ros.messages import (
    to_diagnostics,
    to_imu,
    to_status,
    to_trigger,
    to_twist,
    to_vector,
    to_window_reference,
    write_image,
)
from event_binning_grad.ros.packet_queue import PacketQueue, SerializedArray
from event_binning_grad.ros.parameters import NodeConfig, declare, unknown_parameters
from event_binning_grad.ros.qos import CAMERA_INFO_QOS, OUTPUT_DEPTH, SENSOR_QOS
from event_binning_grad.ros.sensor_inputs import SensorInputs
from event_binning_grad.ros.sensors import (
    Reading,
    ReadingQueue,
    Sensor,
    needed_sensors,
    to_rotation,
)
from event_binning_grad.ros.sources import make_source
from event_binning_grad.ros.worker import CompensatedImage, Worker
from event_binning_grad.sources.file import FileSource
from event_binning_grad.sources.source import (
    Measurement,
    Opened,
    SourceReader,
)

_LOG_PERIOD_S = 5.0
IMU_FRAME_ID = "event_camera_imu"
# A packet that has waited for this share of queue_ms means that windows must be left out. Well
# before the queue drops packets, and no sooner than a hiccup of the machine passes by itself.
_BEHIND = 0.25
# So often the depth's subscription is matched to the publishers that are there, s.
_MATCH_PERIOD_S = 0.2
# So often it is looked who publishes the events, and as what, s.
_LOOK_PERIOD_S = 0.1
# The same problem of a source is logged again after so long, s.
_REPEAT_S = 30.0


class PerceptionNode(Node):
    """Estimates the velocity of one event camera, and the flow of what it sees.

    Subscribes ~/events (of one of the types of event_topics) or reads another source; without a
    calibration_file or recording ~/camera_info; and of ~/depth, ~/range and ~/imu what the
    parameters make use of and the source does not bring. Publishes ~/twist
    (TwistWithCovarianceStamped, rad/s and m/s, camera frame, trusted estimates only), ~/window
    (TimeReference: a twist's stamp and the end of its window), ~/iwe (mono8, the motion-compensated
    events), with motion_model planar ~/velocity_over_distance (1/s) and ~/plane (the plane's unit
    normal), ~/trigger (TimeReference, the edges of the camera's trigger input), ~/imu_out (Imu,
    what the source of the events brings), and /diagnostics; all but ~/twist and /diagnostics only
    while somebody listens. With estimate flow or both also what FlowOutput says.

    The executor's thread receives, a worker thread decodes and estimates, and another one estimates
    the flow. start() begins, stop() must be called at the end.

    Raises:
        EventBinningError: a parameter or the calibration file is bad.
    """

    def __init__(self) -> None:
        try:
            super().__init__("perception")
        except ParameterException as error:  # one of ROS's own, as use_sim_time
            raise ConfigError(" ".join(str(error).split())) from None
        self._config = declare(self, NodeConfig)
        pipeline_config = declare(self, PipelineConfig)
        for name in unknown_parameters(self):
            self.get_logger().warning(f"parameter {name} is not known here and has no effect")
        self.failure: BaseException | None = None
        self._queue: PacketQueue[PacketLike | SerializedArray] = PacketQueue(
            self._config.queue_ms / 1e3
        )
        self._readings = ReadingQueue()
        behind_s = _BEHIND * self._config.queue_ms / 1e3
        self._flow = self._flow_output = None
        if pipeline_config.estimates_flow:
            self._flow = FlowWorker(pipeline_config, self._config.queue_ms / 1e3, self)
            self._flow_output = FlowOutput(self, self._config.flow_points, self._config.iwe_rate_hz)
        self._worker = Worker(
            pipeline_config, self._queue, self._readings, self, behind_s, self._flow
        )
        needed = needed_sensors(pipeline_config)
        self._source = make_source(self._config, frozenset(sensor.value for sensor in needed))
        brought = frozenset() if self._source is None else self._source.sensors
        self._sensors = SensorInputs(
            self,
            needed,
            to_rotation(self._config.imu_to_camera),
            self._on_reading,
            [sensor for sensor in needed if sensor.value in brought],
        )
        self._events = EventTopic(self, self._config.events_type, self._on_events)
        self._source_problem, self._next_source_log_s = "", 0.0
        self._reader: SourceReader | None = None
        if self._source is not None:
            self._reader = SourceReader(
                self._source,
                self._on_source_item,
                self._on_source_problem,
                self._on_source_end,
                self.on_failure,
            )
        self._pipeline_config = pipeline_config
        self._executor: Executor | None = None
        self._ready = False
        self._image = Image()
        self._next_image_s = 0.0
        self._rejected, self._last_rejection = 0, ""
        self._track_repairs = 0
        self._published, self._last_published_s = 0, time.monotonic()
        self._last_arrival_s = time.monotonic()
        if pipeline_config.estimates_egomotion:
            self._twist = self.create_publisher(TwistWithCovarianceStamped, "~/twist", OUTPUT_DEPTH)
            self._window = self.create_publisher(TimeReference, "~/window", OUTPUT_DEPTH)
            self._iwe = self.create_publisher(Image, "~/iwe", OUTPUT_DEPTH)
            self._of_plane = self._create_plane_publishers()
        self._triggers = self.create_publisher(TimeReference, "~/trigger", SENSOR_QOS)
        self._imu: Publisher | None = None
        if "imu" in brought:
            self._imu = self.create_publisher(Imu, "~/imu_out", SENSOR_QOS)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", OUTPUT_DEPTH)
        self._events_topic = self.resolve_topic_name("~/events")
        self._last_camera_info: str | None = None
        self._calibrated = self._calibration_refused = False
        self._calibration_problem = self._take_calibration()
        self._last_report, self._last_flow_report = self._report(), self._flow_report()
        # Not on ROS time: a node that waits for /clock must be able to say so.
        self.create_timer(
            self._config.diagnostics_period_s,
            self._publish_diagnostics,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )

    def start(self, executor: Executor) -> None:
        """Starts the workers; events are subscribed to as soon as everything is compiled.

        A packet that came before would have to wait seconds, or be dropped.
        """
        self._executor = executor
        if self._flow is not None:
            self._flow.start()
        self._worker.start()

    def stop(self, timeout_s: float) -> bool:
        """Ends the workers; False if one is still busy (with the compiler) after the time."""
        began_s = time.monotonic()
        stopped = self._reader is None or self._reader.stop(timeout_s)
        left_s = timeout_s - (time.monotonic() - began_s)
        stopped = self._worker.stop(max(0.0, left_s)) and stopped
        if self._flow is not None:
            left_s = timeout_s - (time.monotonic() - began_s)
            stopped = self._flow.stop(max(0.0, left_s)) and stopped
        return stopped

    # Called on the executor's thread.

    def _on_events(self, packet: Any, waited_s: float, size: int) -> None:
        self._last_arrival_s = time.monotonic()
        self._queue.put(packet, self._last_arrival_s - waited_s, size)

    def _on_reading(self, reading: Reading | Measurement) -> None:
        self._readings.put(reading, self._queue.received_packets)

    def _on_camera_info(self, info: CameraInfo) -> None:
        parts = (info.width, info.height, info.distortion_model, info.d, info.k)
        # As text: NaN is not equal to itself, and one bad calibration is to be reported once.
        content = repr((parts, info.binning_x, info.binning_y, info.roi))
        if content == self._last_camera_info:
            return
        self._last_camera_info = content
        self._use(info)

    def _subscribe(self) -> None:
        self._sensors.subscribe()
        if Sensor.DEPTH in needed_sensors(self._pipeline_config):
            clock = Clock(clock_type=ClockType.STEADY_TIME)
            self.create_timer(_MATCH_PERIOD_S, self._sensors.subscribe, clock=clock)
        if self._reader is not None:
            self._reader.start()
        else:
            self._events.look()
            clock = Clock(clock_type=ClockType.STEADY_TIME)
            self.create_timer(_LOOK_PERIOD_S, self._events.look, clock=clock)
        self._ready = True
        outputs = [self._twist.topic_name] if self._pipeline_config.estimates_egomotion else []
        if self._flow_output is not None:
            outputs.append(self._flow_output.topic)
        self.get_logger().info(
            f"ready: {self._events_from} -> {', '.join(outputs)} "
            f"(device {self._pipeline_config.device})"
        )

    @property
    def _events_from(self) -> str:
        return self._events_topic if self._source is None else self._source.name

    def _publish_diagnostics(self) -> None:
        before, now = self._last_report, self._report()
        self._last_report = now
        name = self.get_fully_qualified_name()
        part = "egomotion" if now.egomotion else "events"
        statuses = [
            to_status(f"{name}: {part}", *health.assess(before, now), health.figures(before, now))
        ]
        flow_before, flow_now = self._last_flow_report, self._flow_report()
        self._last_flow_report = flow_now
        if flow_before is not None and flow_now is not None:
            problem = assess_flow(flow_before, flow_now)
            figures = flow_figures(flow_before, flow_now)
            statuses.append(to_status(f"{name}: flow", *problem, figures))
        self._diagnostics.publish(to_diagnostics(self.get_clock().now().to_msg(), *statuses))

    def _report(self) -> Report:
        queue = self._queue
        # The flow needs no calibration, but who gives a bad one wants to know.
        egomotion = self._pipeline_config.estimates_egomotion
        told = egomotion or self._calibration_refused
        return Report(
            time_s=time.monotonic(),
            events_topic=self._events_topic,
            publishers=self.count_publishers(self._events_topic),
            ready=self._ready,
            calibration_problem=self._calibration_problem if told else "",
            received_packets=queue.received_packets,
            received_bytes=queue.received_bytes,
            queued_packets=len(queue),
            shed_packets=queue.shed_packets,
            shed_bytes=queue.shed_bytes,
            rejected_packets=self._rejected,
            last_rejection=self._last_rejection,
            last_arrival_s=self._last_arrival_s,
            published=self._published,
            last_published_s=self._last_published_s,
            dropped_readings=sum(self._readings.dropped.values()),
            track_repairs=self._track_repairs,
            last_discontinuity=self._worker.last_discontinuity or "",
            device=self._pipeline_config.device,
            gradient=self._pipeline_config.gradient,
            motion_model=self._pipeline_config.motion_model,
            counters=copy.deepcopy(self._worker.counters),
            activity=self._worker.take_activity(),
            sensors=self._sensors.reports(self._readings.dropped),
            egomotion=egomotion,
            source="" if self._source is None else self._source.name,
            events_problem=self._source_problem if self._source else self._events.problem,
        )

    def _flow_report(self) -> FlowReport | None:
        flow, output = self._flow, self._flow_output
        if flow is None or output is None:
            return None
        return FlowReport(
            time_s=time.monotonic(),
            ready=self._ready,
            last_arrival_s=self._last_arrival_s,
            last_published_s=output.last_published_s,
            published=output.published,
            calibrated=flow.camera is not None,
            calibration_advice=self._calibration_problem,
            stride=flow.stride,
            device=self._pipeline_config.device,
            gradient=self._pipeline_config.gradient,
            counters=copy.deepcopy(flow.counters),
            activity=flow.take_activity(),
        )

    # Called on the thread that reads the source.

    def _on_source_item(self, item: EventPacket | Measurement | Opened) -> None:
        if isinstance(item, EventPacket):
            self._on_events(item, 0.0, len(item.events))
        elif isinstance(item, Measurement):
            self._on_reading(item)
        else:
            self.get_logger().info(f"events: {item.text}", throttle_duration_sec=1.0)
            if item.calibration is not None and not self._config.calibration_file:
                self._use(item.calibration)

    def _on_source_problem(self, problem: str) -> None:
        now_s = time.monotonic()
        if problem and (problem != self._source_problem or now_s >= self._next_source_log_s):
            self._next_source_log_s = now_s + _REPEAT_S
            self.get_logger().warning(problem)
        self._source_problem = problem

    def _on_source_end(self) -> None:
        assert self._source is not None  # it has ended
        assert self._executor is not None  # start() gave it
        self._worker.end()
        while self.context.ok() and not self._worker.has_ended:
            time.sleep(_LOOK_PERIOD_S)
        ends = self._config.recording_end == "stop"
        text = f"{self._source.name} has ended"
        self._source_problem = "" if ends else f"{text}: nothing more will come"
        self.get_logger().info(f"{text}, and so does the node" if ends else self._source_problem)
        if ends:
            self._executor.create_task(self._end)

    def _end(self) -> None:
        self._publish_diagnostics()
        rclpy.try_shutdown(context=self.context)

    # Called on the workers' threads.

    def on_ready(self) -> None:
        assert self._executor is not None  # start() gave it
        self._executor.create_task(self._subscribe)

    def on_estimate(
        self, estimate: EgomotionEstimate, frame_id: str, image: CompensatedImage
    ) -> None:
        self._sensors.compare_stamps(estimate.window_end_ns)
        self._track_repairs += estimate.searched and estimate.status.ok
        if not estimate.status.ok:
            return
        frame_id = self._config.frame_id or frame_id
        self._twist.publish(to_twist(estimate, frame_id))
        self._published += 1
        self._last_published_s = time.monotonic()
        if self._window.get_subscription_count():
            self._window.publish(to_window_reference(estimate, frame_id))
        for name, publisher in self._of_plane.items():
            value = getattr(estimate, name)
            if np.isfinite(value).all() and publisher.get_subscription_count():
                publisher.publish(to_vector(value, estimate.stamp_ns, frame_id))
        if self._last_published_s >= self._next_image_s and self._iwe.get_subscription_count():
            counts = image()
            if counts is not None:
                self._next_image_s = self._last_published_s + 1 / self._config.iwe_rate_hz
                write_image(self._image, counts, estimate.stamp_ns, frame_id)
                self._iwe.publish(self._image)

    def on_measurement(self, measurement: Measurement) -> Reading | None:
        publisher = self._imu
        if measurement.sensor == "imu" and publisher and publisher.get_subscription_count():
            publisher.publish(to_imu(measurement, self._config.frame_id or IMU_FRAME_ID))
        return self._sensors.measured(measurement)

    def on_flow(self, estimate: FlowEstimate, stage: FlowStage, frame_id: str) -> None:
        assert self._flow_output is not None  # made with the worker that calls
        self._flow_output.publish(estimate, stage, self._config.frame_id or frame_id)

    def on_trigger(self, trigger: Trigger, frame_id: str) -> None:
        if self._triggers.get_subscription_count():
            self._triggers.publish(to_trigger(trigger, self._config.frame_id or frame_id))

    def on_rejected(self, reason: str) -> None:
        self._rejected += 1
        self._last_rejection = reason
        self.get_logger().warning(f"packet dropped: {reason}", throttle_duration_sec=_LOG_PERIOD_S)

    def on_refused_reading(self, sensor: Sensor, reason: str) -> None:
        self._sensors.refuse(sensor, reason)

    def on_calibration(self, camera: Camera | None, error: EventBinningError | None) -> None:
        if error is not None:
            self._refuse_calibration(error)
            return
        assert camera is not None  # else there is an error
        self._calibration_problem, self._calibrated, self._calibration_refused = "", True, False
        self.get_logger().info(
            f"calibration: {camera.width}x{camera.height}, {camera.distortion_model}, "
            f"focal lengths {camera.K[0, 0]:.1f} {camera.K[1, 1]:.1f} px",
            throttle_duration_sec=_LOG_PERIOD_S,
        )

    def on_failure(self, error: BaseException) -> None:
        if not self.context.ok():  # publishing failed because the node is being shut down
            return
        self.failure = error
        text = str(error)
        if not isinstance(error, EventBinningError):  # unexpected: whoever repairs it needs all
            text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        self.get_logger().fatal(f"the node ends: {text}")
        rclpy.try_shutdown(context=self.context)

    # On either.

    def _use(self, calibration: CameraInfo | dict[str, Any]) -> None:
        try:
            self._worker.set_camera(Camera.from_camera_info(calibration))
        except EventBinningError as error:
            self._refuse_calibration(error)

    def _refuse_calibration(self, error: EventBinningError) -> None:
        kept = "; the calibration before it stays in use" if self._calibrated else ""
        self._calibration_problem, self._calibration_refused = f"{error}{kept}", True
        self.get_logger().error(self._calibration_problem, throttle_duration_sec=_LOG_PERIOD_S)

    def _create_plane_publishers(self) -> dict[str, Publisher]:
        """By the name of the estimate's field that they publish; none without a plane."""
        if self._pipeline_config.motion_model != "planar":
            return {}
        topics = {"velocity_over_distance": "~/velocity_over_distance", "plane_normal": "~/plane"}
        return {
            name: self.create_publisher(Vector3Stamped, topic, OUTPUT_DEPTH)
            for name, topic in topics.items()
        }

    def _take_calibration(self) -> str:
        """Reads the calibration file, or what a recording holds, or subscribes to camera_info; says
        what is missing then."""
        if self._config.calibration_file:
            return self._load_calibration(Path(self._config.calibration_file))
        if isinstance(self._source, FileSource):
            return self._find_calibration(self._source)
        topic = self.resolve_topic_name("~/camera_info")
        self.create_subscription(CameraInfo, "~/camera_info", self._on_camera_info, CAMERA_INFO_QOS)
        return (
            f"no calibration yet: publish sensor_msgs/CameraInfo on {topic}, or set the parameter "
            "calibration_file"
        )

    def _load_calibration(self, path: Path) -> str:
        if not is_yaml(path) and read_calib_txt(path)[1] is None:
            self._worker.set_camera_by_size(lambda size: Camera.from_calib_txt(path, size))
            return f"{path} says no sensor size: waiting for that of the packets"
        self._worker.set_camera(load_camera(path))
        return "the calibration is being prepared"

    def _find_calibration(self, source: FileSource) -> str:
        if source.recording.calibration() is not None:
            return "the calibration is being prepared"
        remedy = "set the parameter calibration_file (a camera_info YAML, or calib.txt)"
        if not self._pipeline_config.estimates_flow:
            raise ConfigError(
                f"{source.name} holds no calibration, and a twist needs one: {remedy}"
            )
        problem = f"no calibration in {source.name}, so no twist is made: {remedy}"
        if self._pipeline_config.estimates_egomotion:
            self.get_logger().warning(problem)
        return problem
