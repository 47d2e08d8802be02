"""The text at the head of Prophesee's files: lines "% key value" before the bytes of the events.

Source: Prophesee's documentation of its RAW and DAT file formats.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from event_binning_grad.events.file_recording import open_file
from event_binning_grad.events.types import NS_PER_S

MAX_HEADER_BYTES = 1 << 16
_MAX_SIDE = 1 << 11  # 11 bits of x and y
# Sizes by what headers call a sensor, and by the numbers of Prophesee's own systems.
_GENERATIONS = {
    "gen3": (640, 480), "gen31": (640, 480), "gen4": (1280, 720), "gen41": (1280, 720),
    "imx636": (1280, 720), "imx637": (1280, 720), "imx646": (1280, 720), "imx647": (1280, 720),
    "genx320": (320, 320), "saphir": (320, 320),
    "3.0": (640, 480), "3.1": (640, 480), "4.0": (1280, 720), "4.1": (1280, 720),
    "4.2": (1280, 720),
}  # fmt: skip
_VGA_SYSTEMS = (0x15, 0x1C, 0x1D, 0x21, 0x22, 0x23, 0x28, 0x29)
_HD_SYSTEMS = (0x1A, 0x1E, 0x1F, 0x20, 0x27, 0x30, 0x31, 0x32, 0x34, 0x35, 0x36, 0x3A, 0x42)
_SMALL_SYSTEMS = (0x37, 0x3B, 0x40)
_SYSTEMS = {
    **dict.fromkeys(_VGA_SYSTEMS, (640, 480)),
    **dict.fromkeys(_HD_SYSTEMS, (1280, 720)),
    **dict.fromkeys(_SMALL_SYSTEMS, (320, 320)),
}


@dataclass(frozen=True)
class PropheseeHeader:
    """Values by key (in lower case; those of "format" too), and where the bytes begin."""

    fields: dict[str, str]
    size: int

    def sensor_size(self) -> tuple[int, int] | None:
        """Width and height by the geometry, else by the sensor's name; None where none is said."""
        for sides in (
            (self.fields.get("width", ""), self.fields.get("height", "")),
            tuple(self.fields.get("geometry", "").lower().split("x")),
        ):
            if len(sides) == 2 and all(re.fullmatch(r"\d{1,5}", side.strip()) for side in sides):
                width, height = (int(side) for side in sides)
                if 0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE:
                    return width, height
        for key in ("sensor_name", "plugin_name", "sensor_generation", "generation"):
            for word in re.split(r"[_ ]", self.fields.get(key, "").lower()):
                if word in _GENERATIONS:
                    return _GENERATIONS[word]
        number = self.fields.get("system_id", "")
        return _SYSTEMS.get(int(number)) if re.fullmatch(r"\d{1,9}", number) else None

    def date_ns(self) -> int:
        """When it was recorded, in ns since 1970; no time zone is said: taken as UTC. 0 if
        unknown."""
        try:
            date = datetime.strptime(self.fields.get("date", ""), "%Y-%m-%d %H:%M:%S")
        except ValueError:
            return 0
        return max(0, int(date.replace(tzinfo=timezone.utc).timestamp()) * NS_PER_S)


def read_header(path: Path) -> PropheseeHeader:
    """The header of a .raw or .dat file; without fields where there is none.

    It ends with a line "% end", or before the first line that does not begin with "% ".
    """
    with open_file(path) as file:
        data = file.read(MAX_HEADER_BYTES)
    fields: dict[str, str] = {}
    at = 0
    while data.startswith(b"% ", at) and (end := data.find(b"\n", at)) >= 0:
        line = data[at + 2 : end].rstrip(b"\r")
        if not all(byte == 9 or 32 <= byte < 127 for byte in line):
            break  # these are events that look like a line's beginning
        at = end + 1
        key, _, value = line.decode("ascii").strip().partition(" ")
        if key == "end":
            break
        fields[key.lower()] = value.strip()
    name, *more = fields.get("format", "").split(";")
    if name:
        fields["format"] = name.strip()
    for part in more:
        key, _, value = part.partition("=")
        fields.setdefault(key.strip().lower(), value.strip())
    return PropheseeHeader(fields, at)
