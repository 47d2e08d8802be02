"""Camera models against OpenCV, calibration files, and rotations against scipy."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from event_binning_grad.errors import CalibrationError
from event_binning_grad.geometry import Camera
from event_binning_grad.geometry.camera import read_calib_txt
from event_binning_grad.geometry.rotation import (
    left_jacobian_transposed,
    rotate,
    so3_coefficients,
)

K = np.array([[199.1, 0, 132.2], [0, 198.8, 110.7], [0, 0, 1]])
SKEWED = np.array([[199.1, 2.5, 132.2], [0, 198.8, 110.7], [0, 0, 1]])
PLUMB_BOB = [-0.368, 0.15, -0.0003, -0.0008, 0.011]
EQUIDISTANT = [-0.048, 0.0115, -0.0556, 0.0213]


def camera(K: Any = K, model="plumb_bob", d=PLUMB_BOB, size=(240, 180)) -> Camera:
    return Camera(size[0], size[1], np.array(K), model, np.array(d, float))


def pixels(cam: Camera) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(cam.width), np.arange(cam.height)), -1).astype(float)


# ------------------------------------------------------------------------------------------ camera


@pytest.mark.parametrize("K", [K, SKEWED], ids=["plain", "skewed"])
@pytest.mark.parametrize(
    ("model", "d"),
    [
        ("plumb_bob", []),
        ("plumb_bob", [0, 0, 0, 0, 0]),
        ("plumb_bob", PLUMB_BOB[:4]),
        ("plumb_bob", PLUMB_BOB),
        ("equidistant", []),
        ("equidistant", EQUIDISTANT),
    ],
)
def test_projecting_the_bearings_gives_the_pixel_centres(K, model: str, d: list[float]):
    cam = camera(K, model, d)
    table = cam.bearings
    assert table.shape == (180, 240, 3)
    assert table.dtype == np.float32
    assert np.isfinite(table).all()
    assert np.linalg.norm(table, axis=-1) == pytest.approx(np.ones((180, 240)), abs=1e-6)
    assert np.abs(cam.project(table) - pixels(cam)).max() < 2e-3
    assert not table.flags.writeable


def test_bearings_point_right_and_down_with_the_pixels():
    table = camera().bearings
    assert (np.diff(table[..., 0], axis=1) > 0).all()
    assert (np.diff(table[..., 1], axis=0) > 0).all()
    assert (table[..., 2] > 0).all()
    ideal = camera(d=[]).bearings[20, 30]
    expected = np.array([(30 - 132.2) / 199.1, (20 - 110.7) / 198.8, 1.0])
    assert ideal == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)


def test_plumb_bob_projects_as_opencv_does():
    rng = np.random.default_rng(0)
    points = rng.uniform([-1, -0.8, 1], [1, 0.8, 3], (200, 3))
    for d in (PLUMB_BOB, PLUMB_BOB[:4]):
        expected, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), K, np.array(d))
        assert np.abs(camera(d=d).project(points) - expected[:, 0]).max() < 1e-9


def test_equidistant_projects_as_opencv_does():
    rng = np.random.default_rng(0)
    points = rng.uniform([-3, -3, 0.5], [3, 3, 3], (200, 3))
    cam = camera(model="equidistant", d=EQUIDISTANT)
    expected, _ = cv2.fisheye.projectPoints(
        points[:, None], np.zeros(3), np.zeros(3), K, np.array(EQUIDISTANT)
    )
    assert np.abs(cam.project(points) - expected[:, 0]).max() < 1e-9
    assert cam.project(np.array([0.0, 0.0, 2.0])) == pytest.approx([132.2, 110.7])


def test_field_of_view_over_180_degrees():
    wide = np.array([[60.0, 0, 120], [0, 60.0, 90], [0, 0, 1]])
    cam = camera(wide, "equidistant", [-0.01, 0.002, 0, 0])
    table = cam.bearings
    assert np.isfinite(table).all()
    angle = np.degrees(np.arctan2(np.hypot(table[..., 0], table[..., 1]), table[..., 2]))
    assert angle[90, 239] > 100
    assert (table[90, 239, 2] < 0).all()
    assert (np.diff(angle[90, 120:]) > 0).all()
    assert np.abs(cam.project(table) - pixels(cam)).max() < 1e-3


def test_pixels_beyond_the_fold_of_the_distortion_have_no_bearing():
    # r (1 - 0.5 r^2) never exceeds 0.5443 (r = 0.8165): pixels farther out (0.1 px) see nothing.
    cam = camera([[200, 0, 120], [0, 200, 90], [0, 0, 1]], d=[-0.5, 0, 0, 0, 0])
    radius = np.hypot(*np.moveaxis(pixels(cam) - [120, 90], -1, 0)) / 200
    table = cam.bearings
    assert np.isnan(table[radius > 0.545]).all()
    assert np.isfinite(table[radius < 0.54]).all()
    slope = np.hypot(table[..., 0], table[..., 1]) / table[..., 2]
    assert np.nanmax(slope) < 0.82
    # A fisheye polynomial that folds: again no bearing, and no false one.
    fish = camera([[60, 0, 120], [0, 60, 90], [0, 0, 1]], "equidistant", [0.1, -0.05, 0.01, -1e-3])
    missing = np.isnan(fish.bearings[..., 0])
    assert 0.05 < missing.mean() < 0.3
    assert np.nanmax(np.abs(fish.project(fish.bearings) - pixels(fish))) < 0.1


@settings(max_examples=40, deadline=None)
@given(st.floats(0.4, 2.0), st.floats(-0.3, 0.3), st.floats(-0.05, 0.1), st.floats(-2e-3, 2e-3))
def test_round_trip_of_many_lenses(focal: float, k1: float, k2: float, p: float):
    f = focal * 64
    k = [[f, 0, 31.0], [0, 1.02 * f, 24.5], [0, 0, 1]]
    cam = camera(k, d=[k1, k2, p, -p, 0], size=(64, 48))
    table = cam.bearings
    seen = np.isfinite(table[..., 0])
    assert seen[24, 31]
    # What has a bearing is seen there; OpenCV's own fixed point is slow near a fold.
    assert np.abs(cam.project(table)[seen] - pixels(cam)[seen]).max() < 0.11


# ----------------------------------------------------------------------------------- calibrations

YAML = """
image_width: 240
image_height: 180
camera_name: davis
camera_matrix: {rows: 3, cols: 3, data: [199.1, 0, 132.2, 0, 198.8, 110.7, 0, 0, 1]}
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [-0.368, 0.15, -0.0003, -0.0008, 0.011]}
"""


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def same(a: Camera, b: Camera) -> bool:
    return (
        (a.width, a.height, a.distortion_model) == (b.width, b.height, b.distortion_model)
        and np.array_equal(a.K, b.K)
        and np.array_equal(a.d, b.d)
    )


def test_camera_info_yaml(tmp_path: Path):
    cam = Camera.from_yaml(write(tmp_path / "c.yaml", YAML))
    assert same(cam, camera())


def test_fisheye_is_another_name_of_equidistant(tmp_path: Path):
    text = YAML.replace("plumb_bob", "fisheye").replace(", 0.011]", "]")
    assert Camera.from_yaml(write(tmp_path / "c.yaml", text)).distortion_model == "equidistant"


def test_calib_txt(tmp_path: Path):
    line = "199.1 198.8 132.2 110.7 -0.368 0.15 -0.0003 -0.0008 0.011\n"
    alone = write(tmp_path / "a.txt", line)
    sized = write(tmp_path / "b.txt", line + "\n 240 180 \n")
    assert same(Camera.from_calib_txt(alone, (240, 180)), camera())
    assert same(Camera.from_calib_txt(sized), camera())
    assert same(Camera.from_calib_txt(sized, (640, 480)), camera())  # the file knows best
    assert read_calib_txt(alone)[1] is None
    with pytest.raises(CalibrationError, match="no sensor size; write width and height"):
        Camera.from_calib_txt(alone)


def test_calibration_of_the_event_camera_dataset(data_dir: Path):
    cam = Camera.from_calib_txt(data_dir / "ecd_shapes_rotation" / "calib.txt", (240, 180))
    assert np.isfinite(cam.bearings).all()
    assert np.abs(cam.project(cam.bearings) - pixels(cam)).max() < 1e-2


def ros2_info(**changes: Any) -> SimpleNamespace:
    fields = {
        "width": 240, "height": 180, "distortion_model": "plumb_bob",
        "k": K.ravel(), "d": list(PLUMB_BOB), "binning_x": 0, "binning_y": 1,
        "roi": SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0, do_rectify=False),
    }  # fmt: skip
    return SimpleNamespace(**{**fields, **changes})


def test_camera_info_messages():
    assert same(Camera.from_camera_info(ros2_info()), camera())
    ros1 = {"width": 240, "height": 180, "distortion_model": "plumb_bob", "K": K.ravel().tolist()}
    assert same(Camera.from_camera_info({**ros1, "D": tuple(PLUMB_BOB)}), camera())
    undistorted = Camera.from_camera_info(ros2_info(distortion_model="", d=[]))
    assert undistorted.distortion_model == "plumb_bob"
    whole = SimpleNamespace(x_offset=0, y_offset=0, width=240, height=180, do_rectify=False)
    assert same(Camera.from_camera_info(ros2_info(roi=whole)), camera())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": [0.0] * 9}, "focal lengths 0, 0 px; expected positive numbers"),
        ({"k": [math.nan] * 9}, "K or d holds NaN"),
        ({"d": [math.inf, 0, 0, 0, 0]}, "K or d holds NaN or infinity"),
        ({"d": [0.1, 0.2]}, "2 coefficients for plumb_bob; expected 0 or 4 or 5"),
        ({"d": [0.0] * 8, "distortion_model": "rational_polynomial"}, "'rational_polynomial'"),
        ({"d": [0.0] * 5, "distortion_model": "equidistant"}, "5 coefficients for equidistant"),
        ({"k": [1.0] * 8}, "K and d must be 9 numbers"),
        ({"k": "nine"}, "K and d must be 9 numbers"),
        ({"k": None}, "K and d must be 9 numbers"),
        ({"k": [199, 0, 132, 5, 198, 110, 0, 0, 1]}, "K is no intrinsic matrix"),
        ({"k": [-199, 0, 132, 0, 198, 110, 0, 0, 1]}, "focal lengths -199"),
        ({"width": 0}, "sensor size 0x180; expected positive"),
        ({"width": "wide"}, "width and height"),
        ({"width": None}, "width and height"),
        ({"height": math.inf}, "width and height"),
        ({"binning_x": 2}, "binning"),
        (
            {"roi": SimpleNamespace(x_offset=10, y_offset=0, width=100, height=180)},
            "region of interest",
        ),
    ],
)
def test_bad_camera_info_is_refused_in_one_line(changes: dict[str, Any], message: str):
    with pytest.raises(CalibrationError, match=message) as caught:
        Camera.from_camera_info(ros2_info(**changes))
    assert "\n" not in str(caught.value)


def test_missing_field_is_named():
    with pytest.raises(CalibrationError, match="no field 'k' found; expected the fields of"):
        Camera.from_camera_info({"width": 1, "height": 1, "distortion_model": "", "d": []})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "just a string",
        "- 1\n- 2\n",
        "a: [1, 2\nb: {",
        "image_width: 240\n",
        b"\xff\xfe\x00binary\x80",
        YAML.replace("199.1", ".nan"),
        YAML.replace("240", ".inf"),
        YAML.replace("240", "[240]"),
        YAML.replace("data: [199.1, 0, 132.2, 0, 198.8, 110.7, 0, 0, 1]", "data: [1, 2, 3]"),
        YAML.replace("plumb_bob", "pinhole_fov"),
        "image_width: 240\nimage_height: 180\ncamera_matrix: oops\ndistortion_coefficients: 5\n",
    ],
)
def test_bad_yaml_is_refused_in_one_line_that_names_the_file(tmp_path: Path, text: str | bytes):
    path = write(tmp_path / "bad.yaml", text)
    with pytest.raises(CalibrationError, match=r"bad\.yaml") as caught:
        Camera.from_yaml(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "\n\n", "1 2 3\n", "a b c d e f g h i\n", "1 1 1 1 0 0 0 0 0\n240\n",
     "1 1 1 1 0 0 0 0 0\n240 0\n", "1 1 1 1 0 0 0 0 0\n24.5 18\n", b"\xff\x80 1 2",
     "0 0 0 0 0 0 0 0 0\n240 180\n", "nan 1 1 1 0 0 0 0 0\n240 180\n"],
)  # fmt: skip
def test_bad_calib_txt_is_refused_in_one_line(tmp_path: Path, text: str | bytes):
    with pytest.raises(CalibrationError) as caught:
        Camera.from_calib_txt(write(tmp_path / "calib.txt", text), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [Camera.from_yaml, Camera.from_calib_txt])
def test_missing_file_and_folder_are_refused_in_one_line(tmp_path: Path, read):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(CalibrationError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------- rotation


def vectors(angles: list[float], dtype=torch.float64) -> Tensor:
    axes = np.random.default_rng(1).standard_normal((len(angles), 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    return torch.tensor(axes * np.array(angles)[:, None], dtype=dtype)


# Zero, tiny, about the border between series and closed form (0.1), large, pi, several turns.
ANGLES = [0.0, 1e-300, 1e-160, 1e-9, 1e-4, 0.0999, 0.1, 0.1001, 1.0, 3.0, math.pi, 4.0, 20.0]


def test_rotation_agrees_with_scipy():
    r = vectors(ANGLES)
    points = torch.randn(len(ANGLES), 3, dtype=torch.float64)
    expected = Rotation.from_rotvec(r.numpy()).apply(points.numpy())
    assert np.abs(rotate(r, points).numpy() - expected).max() < 1e-13
    single = rotate(r.float(), points.float()).numpy()
    assert np.abs(single - expected).max() < 2e-5
    assert torch.equal(rotate(torch.zeros(3, dtype=torch.float64), points), points)


def test_rotation_is_right_handed_and_broadcasts():
    quarter = torch.tensor([0.0, 0.0, math.pi / 2], dtype=torch.float64)
    turned = rotate(quarter, torch.eye(3, dtype=torch.float64))
    expected = torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(turned, expected, atol=1e-15, rtol=0)
    assert rotate(torch.zeros(4, 1, 3), torch.ones(5, 3)).shape == (4, 5, 3)
    assert rotate(torch.zeros(0, 3), torch.ones(3)).shape == (0, 3)


@pytest.mark.parametrize("angle", ANGLES)
def test_rotation_has_the_true_gradient_at_every_angle(angle: float):
    r = vectors([angle]).requires_grad_()
    points = torch.randn(1, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(rotate, (r, points))
    assert torch.autograd.gradcheck(left_jacobian_transposed, (r, points))


def test_gradient_at_rest_is_the_cross_product():
    r = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    point = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64)
    covector = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(rotate(r, point) @ covector, r)
    torch.testing.assert_close(gradient, torch.linalg.cross(point, covector))
    for dtype in (torch.float32, torch.float64):
        zero = torch.zeros(3, dtype=dtype, requires_grad=True)
        rotate(zero, point.to(dtype)).sum().backward()
        assert zero.grad is not None
        assert torch.isfinite(zero.grad).all()


@pytest.mark.parametrize("angle", ANGLES)
def test_left_jacobian_by_finite_differences(angle: float):
    """Exp(r + dr) = Exp(J_l dr) Exp(r), so Log(Exp(r + dr) Exp(r)^-1) = J_l dr."""
    r = vectors([angle])[0].numpy()
    step = 1e-6
    columns = []
    for axis in np.eye(3):
        ends = [Rotation.from_rotvec(r + s * step * axis) for s in (1, -1)]
        columns.append((ends[0] * ends[1].inv()).as_rotvec() / (2 * step))
    jacobian = np.stack(columns, axis=1)
    found = left_jacobian_transposed(
        torch.tensor(r).expand(3, 3), torch.eye(3, dtype=torch.float64)
    )
    # Row i of `found` is J^T e_i, row i of J.
    assert np.abs(found.numpy() - jacobian).max() < 2e-9


def test_so3_coefficients_join_without_a_step():
    s = torch.tensor([0.01 * (1 - 1e-9), 0.01 * (1 + 1e-9)], dtype=torch.float64)
    for coefficient in so3_coefficients(s):
        assert float((coefficient[0] - coefficient[1]).abs()) < 1e-11
    a, b, c = so3_coefficients(torch.zeros(1, dtype=torch.float64))
    assert (float(a), float(b), float(c)) == (1.0, 0.5, pytest.approx(1 / 6))
