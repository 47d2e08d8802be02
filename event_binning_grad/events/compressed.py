"""Bytes that were compressed as one stream, perhaps cut short."""

from __future__ import annotations

from typing import Any

MAX_BYTES = 1 << 28
LZ4_MAGIC, ZSTD_MAGIC = b"\x04\x22\x4d\x18", b"\x28\xb5\x2f\xfd"


def decompressed(data: bytes, form: str, most: int = MAX_BYTES) -> tuple[bytes, bool]:
    """What can be decompressed, at most so many bytes, and whether the stream is whole.

    form: "lz4" (frames), "zstd" or "bz2"; "" and "none" give the data as they are.

    Raises:
        ImportError: the library for it is not there.
        ValueError: the form is another, or the bytes are damaged.
    """
    if form in ("", "none"):
        return data, True
    if form == "lz4":
        from lz4.frame import LZ4FrameDecompressor

        made: Any = LZ4FrameDecompressor()
        # LZ4 makes at most 255 bytes of one; memory for the whole limit costs more than this.
        most = min(most, 256 * len(data))
    elif form == "zstd":
        made = _zstd_decompressor()
    elif form == "bz2":
        from bz2 import BZ2Decompressor

        made = BZ2Decompressor()
    else:
        raise ValueError(f"compressed as {form!r}, expected lz4, zstd or bz2")
    try:
        return made.decompress(data, most), made.eof
    except Exception as error:  # each library has errors of its own
        raise ValueError(f"damaged {form} data: {error}") from error


def _zstd_decompressor() -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found]  # Python 3.14
    except ImportError:
        from backports import zstd  # rosbags brings it
    return zstd.ZstdDecompressor()
