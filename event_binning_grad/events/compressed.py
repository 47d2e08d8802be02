"""Bytes that were compressed as one stream, perhaps cut short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from event_binning_grad.errors import RecordingError

MAX_BYTES = 1 << 28
LZ4_MAGIC, ZSTD_MAGIC = b"\x04\x22\x4d\x18", b"\x28\xb5\x2f\xfd"


def decompressed(data: bytes, form: str, most: int = MAX_BYTES) -> tuple[bytes, bool]:
    """What can be decompressed, and whether the stream is whole.

    form: "lz4" (frames), "zstd" or "bz2"; "" and "none" give the data as they are.

    Raises:
        ImportError: the library for it is not there.
        ValueError: the form is another, the bytes are damaged, or they give more than `most`.
    """
    if form in ("", "none"):
        return data, True
    room = most + 1
    if form == "lz4":
        from lz4.frame import LZ4FrameDecompressor

        made: Any = LZ4FrameDecompressor()
        # LZ4 makes at most 255 bytes of one; memory for the whole limit costs more than this.
        room = min(room, 256 * len(data))
    elif form == "zstd":
        made = _zstd_decompressor()
    elif form == "bz2":
        from bz2 import BZ2Decompressor

        made = BZ2Decompressor()
    else:
        raise ValueError(f"compressed as {form!r}, expected lz4, zstd or bz2")
    try:
        content = made.decompress(data, room)
    except Exception as error:  # each library has errors of its own
        raise ValueError(f"damaged {form} data: {error}") from error
    if len(content) > most:
        raise ValueError(f"{form} data of more than {most:,} bytes")
    return content, made.eof


def library_missing(path: Path, error: ImportError) -> RecordingError:
    """The error of a file that cannot be decompressed here."""
    return RecordingError(
        f"{path} is compressed, and what decompresses it is missing ({error}): "
        "pip install lz4 backports.zstd"
    )


def _zstd_decompressor() -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found]  # Python 3.14
    except ImportError:
        from backports import zstd  # rosbags brings it
    return zstd.ZstdDecompressor()
