"""Frames of video files, and their collage in one image.

Frames are read by seeking to the last keyframe before each of them, and decoded one at a time, so that
memory does not grow with the length of a video. Only demuxers of `_FORMATS` read a file: those of playlists
would open further files and addresses.
"""

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from m3_backbone.images import MAX_SIDE, UnreadableImage, explain

_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif"


# Keys of a task's content that may differ between two choices of frames of the same videos.
CHOICE_KEYS = ("name", "num_frames", "every", "columns", "frame_side")


@dataclass(frozen=True)
class FrameChoice:
    """Frames of a video that are shown: `num_frames` uniformly, or at most as many every `every` seconds.

    Uniform frames are the middles of `num_frames` parts of equal length. `every` starts at 0 seconds. The
    collage has `columns` columns; None: as many as make it square.
    """

    num_frames: int
    every: float | None = None
    columns: int | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Number of columns and rows of the collage."""
        columns = self.columns or math.ceil(math.sqrt(self.num_frames))
        return columns, math.ceil(self.num_frames / columns)

    def list_times(self, start: float, end: float) -> list[float]:
        """Return the times in seconds of the frames between `start` and `end`.

        Raises ValueError if more than `num_frames` frames are `every` seconds apart.
        """
        length = end - start
        if self.every is None:
            return [start + (i + 0.5) * length / self.num_frames for i in range(self.num_frames)]
        num_times = max(1, math.ceil(length / self.every - 1e-9))
        if num_times > self.num_frames:
            raise ValueError(
                f"{length:.1f} s have {num_times} frames at one every {self.every:g} s, and the collage has "
                f"room for {self.num_frames}"
            )
        return [start + i * self.every for i in range(num_times)]


def check_video_package() -> None:
    """Raise ModuleNotFoundError, which names the module, if PyAV is not installed."""
    importlib.import_module("av")


def read_collage(
    path: Path,
    choice: FrameChoice,
    *,
    name: str,
    start: float | None = None,
    end: float | None = None,
    frame_side: int,
    max_pixels: int,
    max_seconds: float,
) -> Image.Image:
    """Return the collage of the chosen frames of a video file, from left to right and from top to bottom.

    Args:
        path: the video file.
        choice: frames and grid.
        name: name of the video in errors.
        start, end: part of the video in seconds; None: from its beginning, to its end.
        frame_side: largest side of a frame in the collage, in pixels; smaller frames are not enlarged.
        max_pixels: largest number of pixels of a frame, and of the collage.
        max_seconds: largest length of the video in seconds.

    Raises UnreadableImage for a file that is no video, damaged, empty, too large or too long.
    """
    av: Any = importlib.import_module("av")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise UnreadableImage(name, "the file is empty")
            file.seek(0)
            with av.open(file, options={"format_whitelist": _FORMATS}) as container:
                stream = _find_stream(container, name, max_pixels)
                length = _find_length(container, stream, name, max_seconds)
                first, last = start or 0.0, min(length, math.inf if end is None else end)
                if not 0 <= first < last:
                    raise UnreadableImage(
                        name, f"no part from {first:g} to {last:g} s: it has {length:.1f} s"
                    )
                frames = [
                    _shrink(_read_frame(container, stream, time, name), frame_side)
                    for time in choice.list_times(first, last)
                ]
    except UnreadableImage:
        raise
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        # The message of PyAV's errors ends in the path; their strerror does not.
        reason = getattr(error, "strerror", None) or explain(error)
        raise UnreadableImage(name, f"not a readable video: {reason}") from error
    return _arrange(frames, choice.grid, name, max_pixels)


def _find_stream(container: Any, name: str, max_pixels: int) -> Any:
    """Return the first video stream. Raises UnreadableImage if there is none or its frames are too large."""
    if not container.streams.video:
        raise UnreadableImage(name, "it has no video stream")
    stream = container.streams.video[0]
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise UnreadableImage(name, f"too large: frames of {width} x {height} pixels")
    # Labelling has a process for each core already.
    stream.codec_context.thread_count = 1
    return stream


def _find_length(container: Any, stream: Any, name: str, max_seconds: float) -> float:
    """Return the length of the video in seconds."""
    length = 0.0
    if stream.duration:
        length = float(stream.duration * stream.time_base)
    elif container.duration:
        length = container.duration / 1_000_000
    if length <= 0:
        raise UnreadableImage(name, "its length is not known, or it has no frames")
    if length > max_seconds:
        raise UnreadableImage(name, f"too long: {length:.0f} s (at most {max_seconds:g})")
    return length


def _read_frame(container: Any, stream: Any, time: float, name: str) -> Image.Image:
    """Return the frame that is shown at `time`, in seconds from the first frame."""
    target = (stream.start_time or 0) + time / float(stream.time_base)
    container.seek(int(target), stream=stream, backward=True)
    shown = None
    for frame in container.decode(stream):
        if frame.pts is None:
            continue
        if shown is not None and frame.pts > target:
            break
        shown = frame
    if shown is None:
        raise UnreadableImage(name, f"no frame at {time:.1f} s")
    image: Image.Image = shown.to_image()
    return image


def _shrink(image: Image.Image, side: int) -> Image.Image:
    """Return the image with no side longer than `side`."""
    ratio = side / max(image.size)
    if ratio >= 1:
        return image
    width, height = (max(1, round(ratio * length)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _arrange(frames: Sequence[Image.Image], grid: tuple[int, int], name: str, max_pixels: int) -> Image.Image:
    """Return the frames in a grid; cells without a frame are black."""
    columns, rows = grid
    width, height = (max(lengths) for lengths in zip(*(frame.size for frame in frames), strict=True))
    size = (columns * width, rows * height)
    if size[0] * size[1] > max_pixels or max(size) > MAX_SIDE:
        raise UnreadableImage(name, f"too large: a collage of {size[0]} x {size[1]} pixels")
    collage = Image.new("RGB", size)
    for number, frame in enumerate(frames):
        row, column = divmod(number, columns)
        collage.paste(frame, (column * width, row * height))
    return collage
