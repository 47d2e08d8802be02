"""The perception node: event packets in, the camera's velocity and dense flow out."""

from __future__ import annotations

import copy
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from event_camera_msgs.msg import EventPacket
from geometry_msgs.msg import TwistWithCovarianceStamped, Vector3Stamped
from rclpy.clock import Clock, ClockType  # pyright: ignore[reportPrivateImportUsage] # Humble
from rclpy.executors import Executor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, Image, TimeReference

from event_binning_grad.cli import load_camera
from event_binning_grad.errors import EventBinningError
from event_binning_grad.estimation import EgomotionEstimate
from event_binning_grad.estimation.flow_estimate import FlowEstimate
from event_binning_grad.events.types import NS_PER_S, PacketLike
from event_binning_grad.geometry import Camera
from event_binning_grad.pipeline import PipelineConfig
from event_binning_grad.pipeline_flow import FlowStage
from event_binning_grad.ros import health
from event_binning_grad.ros.flow_health import FlowReport, assess_flow, flow_figures
from event_binning_grad.ros.flow_output import FlowOutput
from event_binning_grad.ros.flow_worker import FlowWorker
from event_binning_grad.ros.health import Report
from event_binning_grad.ros.messages import (
    to_diagnostics,
    to_status,
    to_twist,
    to_vector,
    to_window_reference,
    write_image,
)
from event_binning_grad.ros.packet_queue import PacketQueue
from event_binning_grad.ros.parameters import NodeConfig, declare, unknown_parameters
from event_binning_grad.ros.qos import CAMERA_INFO_QOS, EVENTS_QOS, OUTPUT_DEPTH
from event_binning_grad.ros.sensor_inputs import SensorInputs
from event_binning_grad.ros.sensors import (
    Reading,
    ReadingQueue,
    Sensor,
    needed_sensors,
    to_rotation,
)
from event_binning_grad.ros.worker import CompensatedImage, Worker

if TYPE_CHECKING:
    from rclpy.subscription import MessageInfo  # not on Humble

_LOG_PERIOD_S = 5.0
# A packet that has waited for this share of queue_ms means that windows must be left out. Well
# before the queue drops packets, and no sooner than a hiccup of the machine passes by itself.
_BEHIND = 0.25
# So often the depth's subscription is matched to the publishers that are there, s.
_MATCH_PERIOD_S = 0.2


class PerceptionNode(Node):
    """Estimates the velocity of one event camera, and the flow of what it sees.

    Subscribes ~/events (event_camera_msgs/EventPacket); without a calibration_file ~/camera_info;
    and of ~/depth, ~/range and ~/imu what the parameters make use of. Publishes ~/twist
    (TwistWithCovarianceStamped, rad/s and m/s, camera frame, trusted estimates only), ~/window
    (TimeReference: a twist's stamp and the end of its window), ~/iwe (mono8, the motion-compensated
    events), with motion_model planar ~/velocity_over_distance (1/s) and ~/plane (the plane's unit
    normal), and /diagnostics; all but ~/twist and /diagnostics only while somebody listens. With
    estimate flow or both also what FlowOutput says.

    The executor's thread receives, a worker thread decodes and estimates, and another one estimates
    the flow. start() begins, stop() must be called at the end.

    Raises:
        EventBinningError: a parameter or the calibration file is bad.
    """

    def __init__(self) -> None:
        super().__init__("perception")
        self._config = declare(self, NodeConfig)
        pipeline_config = declare(self, PipelineConfig)
        for name in unknown_parameters(self):
            self.get_logger().warning(f"parameter {name} is not known here and has no effect")
        self.failure: BaseException | None = None
        self._queue: PacketQueue[PacketLike] = PacketQueue(self._config.queue_ms / 1e3)
        self._readings = ReadingQueue()
        behind_s = _BEHIND * self._config.queue_ms / 1e3
        self._flow = self._flow_output = None
        if pipeline_config.estimates_flow:
            self._flow = FlowWorker(pipeline_config, self._config.queue_ms / 1e3, self)
            self._flow_output = FlowOutput(self, self._config.flow_points, self._config.iwe_rate_hz)
        self._worker = Worker(
            pipeline_config, self._queue, self._readings, self, behind_s, self._flow
        )
        self._sensors = SensorInputs(
            self,
            needed_sensors(pipeline_config),
            to_rotation(self._config.imu_to_camera),
            self._on_reading,
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
        stopped = self._worker.stop(timeout_s)
        if self._flow is not None:
            left_s = timeout_s - (time.monotonic() - began_s)
            stopped = self._flow.stop(max(0.0, left_s)) and stopped
        return stopped

    # Called on the executor's thread.

    def _on_events(self, packet: EventPacket) -> None:
        self._last_arrival_s = time.monotonic()
        self._queue.put(packet, self._last_arrival_s, len(packet.events))

    def _on_events_with_info(self, packet: EventPacket, info: MessageInfo) -> None:
        """The same where rclpy tells how long the packet has waited in the middleware."""
        received_ns = info["received_timestamp"]  # 0 where the middleware does not know
        waited_s = max(0, time.time_ns() - received_ns) / NS_PER_S if received_ns else 0.0
        self._last_arrival_s = time.monotonic()
        self._queue.put(packet, self._last_arrival_s - waited_s, len(packet.events))

    def _on_reading(self, reading: Reading) -> None:
        self._readings.put(reading, self._queue.received_packets)

    def _on_camera_info(self, info: CameraInfo) -> None:
        parts = (info.width, info.height, info.distortion_model, info.d, info.k)
        # As text: NaN is not equal to itself, and one bad calibration is to be reported once.
        content = repr((parts, info.binning_x, info.binning_y, info.roi))
        if content == self._last_camera_info:
            return
        self._last_camera_info = content
        try:
            self._worker.set_camera(Camera.from_camera_info(info))
        except EventBinningError as error:
            self._refuse_calibration(error)

    def _subscribe(self) -> None:
        self._sensors.subscribe()
        if Sensor.DEPTH in needed_sensors(self._pipeline_config):
            clock = Clock(clock_type=ClockType.STEADY_TIME)
            self.create_timer(_MATCH_PERIOD_S, self._sensors.subscribe, clock=clock)
        knows_info = hasattr(Subscription, "CallbackType")  # not yet on Humble
        callback = self._on_events_with_info if knows_info else self._on_events
        self.create_subscription(EventPacket, "~/events", callback, EVENTS_QOS)
        self._ready = True
        outputs = [self._twist.topic_name] if self._pipeline_config.estimates_egomotion else []
        if self._flow_output is not None:
            outputs.append(self._flow_output.topic)
        self.get_logger().info(
            f"ready: {self._events_topic} -> {', '.join(outputs)} "
            f"(device {self._pipeline_config.device})"
        )

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
            track_repairs=self._track_repairs,
            last_discontinuity=self._worker.last_discontinuity or "",
            device=self._pipeline_config.device,
            gradient=self._pipeline_config.gradient,
            motion_model=self._pipeline_config.motion_model,
            counters=copy.deepcopy(self._worker.counters),
            activity=self._worker.take_activity(),
            sensors=self._sensors.reports(self._readings.dropped),
            egomotion=egomotion,
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

    # Called on the workers' threads.

    def on_ready(self) -> None:
        assert self._executor is not None  # start() gave it
        self._executor.create_task(self._subscribe)

    def on_estimate(
        self, estimate: EgomotionEstimate, packet: PacketLike, image: CompensatedImage
    ) -> None:
        self._sensors.compare_stamps(estimate.window_end_ns)
        self._track_repairs += estimate.searched and estimate.status.ok
        if not estimate.status.ok:
            return
        frame_id = self._config.frame_id or packet.header.frame_id
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

    def on_flow(self, estimate: FlowEstimate, stage: FlowStage, frame_id: str) -> None:
        assert self._flow_output is not None  # made with the worker that calls
        self._flow_output.publish(estimate, stage, self._config.frame_id or frame_id)

    def on_rejected(self, reason: str) -> None:
        self._rejected += 1
        self._last_rejection = reason
        self.get_logger().warning(f"packet dropped: {reason}", throttle_duration_sec=_LOG_PERIOD_S)

    def on_refused_reading(self, sensor: Sensor, reason: str) -> None:
        self._sensors.refuse(sensor, reason)

    def on_calibration(self, camera: Camera, error: EventBinningError | None) -> None:
        if error is not None:
            self._refuse_calibration(error)
            return
        self._calibration_problem, self._calibrated, self._calibration_refused = "", True, False
        self.get_logger().info(
            f"calibration: {camera.width}x{camera.height}, {camera.distortion_model}, "
            f"focal lengths {camera.K[0, 0]:.1f} {camera.K[1, 1]:.1f} px"
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

    def _refuse_calibration(self, error: EventBinningError) -> None:
        kept = "; the calibration before it stays in use" if self._calibrated else ""
        self._calibration_problem, self._calibration_refused = f"{error}{kept}", True
        self.get_logger().error(self._calibration_problem)

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
        """Reads the calibration file, or subscribes to camera_info; says what is missing then."""
        if self._config.calibration_file:
            self._worker.set_camera(load_camera(Path(self._config.calibration_file)))
            return "the calibration is being prepared"
        topic = self.resolve_topic_name("~/camera_info")
        self.create_subscription(CameraInfo, "~/camera_info", self._on_camera_info, CAMERA_INFO_QOS)
        return (
            f"no calibration yet: publish sensor_msgs/CameraInfo on {topic}, or set the parameter "
            "calibration_file"
        )
