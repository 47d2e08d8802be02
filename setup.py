"""How pip and colcon install the package; its name, version and licence stand in package.xml."""

from pathlib import Path
from xml.etree import ElementTree

from setuptools import find_packages, setup

HERE = Path(__file__).parent
manifest = ElementTree.parse(HERE / "package.xml").getroot()
name = manifest.findtext("name", "")


def files(pattern: str) -> list[str]:
    """The files of the source tree that match the pattern, as setuptools wants their paths."""
    return sorted(str(path.relative_to(HERE)) for path in HERE.glob(pattern))


setup(
    name=name,
    version=manifest.findtext("version"),
    description=manifest.findtext("description"),
    maintainer=manifest.findtext("maintainer"),
    license=manifest.findtext("license"),
    python_requires=">=3.10",
    packages=find_packages(include=[name, f"{name}.*"]),
    package_data={f"{name}.ros": ["*.xml"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{name}"]),
        (f"share/{name}", ["package.xml"]),
        (f"share/{name}/config", files("config/*.yaml") + files(f"{name}/ros/*.xml")),
        (f"share/{name}/launch", files("launch/*.py")),
    ],
    zip_safe=False,
    # Without triton: torch's builds for CUDA bring the version that suits them, others have no use
    # for it but to test the kernels.
    install_requires=[
        "backports.zstd; python_version < '3.14'",
        "lz4",
        "numba",
        "numpy",
        "opencv-python",
        "pyyaml",
        "rich",
        "rosbags",
        "scipy",
        "torch>=2.5",
    ],
    extras_require={
        "cameras": ["dv-processing"],
        "datasets": ["h5py", "hdf5plugin"],
        "plot": ["matplotlib"],
        "dev": [
            "evt3",
            "hypothesis",
            "pyright[nodejs]",
            "pytest",
            "pytest-xdist",
            "ruff",
            "triton",
        ],
    },
    entry_points={
        "console_scripts": [
            "event-binning-grad = event_binning_grad.cli:main",
            # What `ros2 run` and the launch files start.
            "perception_node = event_binning_grad.ros.node:main",
            "replay = event_binning_grad.ros.replay:main",
        ],
    },
)
