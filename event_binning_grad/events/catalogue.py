"""Public sequences that can be fetched: names, where their publishers offer them, and licences.

No publisher gives checksums of these files, so none stand here; see `fetch`.
"""

from __future__ import annotations

from dataclasses import dataclass

MB = 10**6


@dataclass(frozen=True)
class RemoteFile:
    """A file of a sequence.

    url: where it is offered.
    target: where it goes in the sequence's directory; an archive is unpacked into that folder.
    about_bytes: its size as others have found it, for the list only; 0 if nobody said.
    page: where a person can get it if the URL fails; the data set's homepage if empty.
    """

    url: str
    target: str
    about_bytes: int = 0
    page: str = ""

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.target.rpartition("/")[2] if not self.packed else self.url.rpartition("/")[2]

    @property
    def packed(self) -> bool:
        return self.url.endswith(".zip")


@dataclass(frozen=True)
class DataSet:
    """Whose sequences they are, and under which licence: who fetches one has to keep to it."""

    title: str
    homepage: str
    licence: str


@dataclass(frozen=True)
class Sequence:
    name: str
    data_set: DataSet
    holds: str
    files: tuple[RemoteFile, ...]

    @property
    def about_bytes(self) -> int:
        """The size of the files together; 0 if it is not known of all."""
        sizes = [file.about_bytes for file in self.files]
        return sum(sizes) if all(sizes) else 0


EVENT_CAMERA_DATASET = DataSet(
    "Event-Camera Dataset (Mueggler et al., IJRR 2017)",
    "https://rpg.ifi.uzh.ch/davis_data.html",
    "CC BY-NC-SA 3.0: not for commercial use",
)
MVSEC = DataSet(
    "MVSEC (Zhu et al., RA-L 2018; flow: EV-FlowNet, RSS 2018)",
    "https://daniilidis-group.github.io/mvsec/download/",
    "CC BY-SA 4.0",
)
DSEC = DataSet(
    "DSEC (Gehrig et al., RA-L 2021; flow: E-RAFT, 3DV 2021)",
    "https://dsec.ifi.uzh.ch/dsec-datasets/download/",
    "see https://dsec.ifi.uzh.ch",
)

# With the size of the archive where it is known.
_TEXT_SEQUENCES = {
    "shapes_rotation": 157 * MB, "shapes_translation": 0, "shapes_6dof": 0,
    "poster_rotation": 834 * MB, "poster_translation": 0, "poster_6dof": 0,
    "boxes_rotation": 893 * MB, "boxes_translation": 0, "boxes_6dof": 0,
    "hdr_poster": 0, "hdr_boxes": 0, "outdoors_walking": 0, "outdoors_running": 0,
    "dynamic_rotation": 0, "dynamic_translation": 0, "dynamic_6dof": 0,
    "office_zigzag": 0, "office_spiral": 0, "urban": 0,
    "slider_close": 0, "slider_far": 0, "slider_hdr_close": 0, "slider_hdr_far": 0,
    "slider_depth": 0, "simulation_3planes": 0, "simulation_3walls": 0,
}  # fmt: skip

# What the download page's folders hold, by the files' own numbers there, and the size if known.
_MVSEC_FILES = {
    "indoor_flying1": (
        ("_data.hdf5", "18lISHaEtIHxTETuuNHBRHPTtsVhq29l_", 0),
        ("_gt_flow_dist.npz", "1AmwVGm5oH2Fk-XPcaIJNzZ9hKV8U7Fs3", 0),
    ),
    "indoor_flying2": (
        ("_data.hdf5", "1BD7cVNUdDgvqTYPdzxy9Tcyl1FrjhrjF", 0),
        ("_gt_flow_dist.npz", "1X6Fa0ZuEwRTEshQhKyekKYXcDZYoe_eh", 0),
    ),
    "indoor_flying3": (
        ("_data.hdf5", "1Q7Mm_oZrSI_cTRktY8LcUaLSrGUmAERJ", 0),
        ("_gt_flow_dist.npz", "1nkjEIL_uMSQXHKP25LWXbgV2shb4dmxL", 0),
    ),
    "outdoor_day1": (
        ("_data.hdf5", "1JLIrw2L24zIQBmqaWvef7G2t9tsMY3H0", 12_136 * MB),
        ("_gt.hdf5", "1wzUmTBxQ5wtSpB0KBogliB2IGTrCtJ7e", 6_267 * MB),
        ("_gt_flow_dist.npz", "1XjJnriPh3k0FJo11or7X02myWARqVt7S", 7_390 * MB),
    ),
}

_DSEC_TRAIN = (
    "interlaken_00_c", "interlaken_00_d", "interlaken_00_e", "interlaken_00_f", "interlaken_00_g",
    "thun_00_a", "zurich_city_00_a", "zurich_city_00_b", "zurich_city_01_a", "zurich_city_01_b",
    "zurich_city_01_c", "zurich_city_01_d", "zurich_city_01_e", "zurich_city_01_f",
    "zurich_city_02_a", "zurich_city_02_b", "zurich_city_02_c", "zurich_city_02_d",
    "zurich_city_02_e", "zurich_city_03_a", "zurich_city_04_a", "zurich_city_04_b",
    "zurich_city_04_c", "zurich_city_04_d", "zurich_city_04_e", "zurich_city_04_f",
    "zurich_city_05_a", "zurich_city_05_b", "zurich_city_06_a", "zurich_city_07_a",
    "zurich_city_08_a", "zurich_city_09_a", "zurich_city_09_b", "zurich_city_09_c",
    "zurich_city_09_d", "zurich_city_09_e", "zurich_city_10_a", "zurich_city_10_b",
    "zurich_city_11_a", "zurich_city_11_b", "zurich_city_11_c",
)  # fmt: skip
_DSEC_TEST = (
    "interlaken_00_a", "interlaken_00_b", "interlaken_01_a", "thun_01_a", "thun_01_b",
    "zurich_city_12_a", "zurich_city_13_a", "zurich_city_13_b", "zurich_city_14_a",
    "zurich_city_14_b", "zurich_city_14_c", "zurich_city_15_a",
)  # fmt: skip
_DSEC_WITH_FLOW = frozenset((
    "thun_00_a", "zurich_city_01_a", "zurich_city_02_a", "zurich_city_02_c", "zurich_city_02_d",
    "zurich_city_02_e", "zurich_city_03_a", "zurich_city_05_a", "zurich_city_05_b",
    "zurich_city_06_a", "zurich_city_07_a", "zurich_city_08_a", "zurich_city_09_a",
    "zurich_city_10_a", "zurich_city_10_b", "zurich_city_11_a", "zurich_city_11_b",
    "zurich_city_11_c",
))  # fmt: skip


def sequences() -> dict[str, Sequence]:
    """All that can be fetched, by name."""
    found = [_text_sequence(name, size) for name, size in _TEXT_SEQUENCES.items()]
    found += [_mvsec_sequence(name) for name in _MVSEC_FILES]
    found += [_dsec_sequence(name, "train") for name in _DSEC_TRAIN]
    found += [_dsec_sequence(name, "test") for name in _DSEC_TEST]
    return {sequence.name: sequence for sequence in found}


def _text_sequence(name: str, about_bytes: int) -> Sequence:
    url = f"https://rpg.ifi.uzh.ch/datasets/davis/{name}.zip"
    return Sequence(
        name, EVENT_CAMERA_DATASET, "events, camera motion", (RemoteFile(url, "", about_bytes),)
    )


def _mvsec_sequence(name: str) -> Sequence:
    scene = name.rstrip("0123456789")
    files = [
        RemoteFile(
            f"https://drive.usercontent.google.com/download?id={number}&export=download&confirm=t",
            f"{name}{suffix}",
            about_bytes,
            f"https://drive.google.com/open?id={number}",
        )
        for suffix, number, about_bytes in _MVSEC_FILES[name]
    ]
    calibration = f"http://visiondata.cis.upenn.edu/mvsec/{scene}/{scene}_calib.zip"
    files.append(RemoteFile(calibration, f"{scene}_calib", 1 * MB))
    return Sequence(name, MVSEC, "events, gyroscope, flow", tuple(files))


def _dsec_sequence(name: str, part: str) -> Sequence:
    base = f"https://download.ifi.uzh.ch/rpg/DSEC/{part}/{name}/{name}_"
    files = [
        RemoteFile(f"{base}events_left.zip", "events/left"),
        RemoteFile(f"{base}calibration.zip", "calibration"),
    ]
    if name in _DSEC_WITH_FLOW:
        times = f"{base}optical_flow_forward_timestamps.txt"
        files.append(RemoteFile(f"{base}optical_flow_forward_event.zip", "flow/forward"))
        files.append(RemoteFile(times, "flow/forward_timestamps.txt"))
    holds = "events, flow" if name in _DSEC_WITH_FLOW else "events"
    return Sequence(name, DSEC, holds, tuple(files))
