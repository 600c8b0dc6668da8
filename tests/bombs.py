"""PNG files whose headers promise more pixels than the files hold."""

import struct
import zlib


def make_png(width: int, height: int, pixels: bytes = b"", *, depth: int = 8, color: int = 2) -> bytes:
    """Return a PNG of this size with these bytes as pixels; `color` is 2 for RGB, 0 for greyscale."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
