"""`video_jsonl`: questions about videos, each answered from a collage of frames, as in the M3 paper.

A row is that of `llava_jsonl` with the field `video` instead of `image`, and optionally `start` and `end`,
the part of the video in seconds: {"question_id": 1, "video": "a.mp4", "text": "...", "answer": "...",
"start": 60, "end": 90}. A collage is one image, so that every backbone answers it as an image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from experiments.tasks.images import UnreadableImage, locate_file
from experiments.tasks.llava_jsonl import LlavaJsonl, Place
from experiments.tasks.questions import Question
from experiments.tasks.rows import BadRow
from experiments.tasks.video import FrameChoice, check_video_package, read_collage
from m3_backbone.arguments import PositiveFloat, PositiveInt, checked
from m3_backbone.images import explain
from m3_backbone.outcomes.shards import digest_file

MAX_SECONDS = 4 * 3600.0
_FOREVER = 1e9  # larger whole numbers may not be floats


@dataclass(frozen=True)
class Clip:
    """Part of a video that a question is about: path in the folder, digest of the file, seconds."""

    name: str
    digest: str
    start: float | None
    end: float | None


class VideoJsonl(LlavaJsonl):
    """Questions about the videos in a folder; an image is the collage of the chosen frames of a video.

    The id of an image is DIGEST/START-END/FRAMES: the digest of the video file, the part of the video if the
    row names one, and the choice of frames. Videos are divided into splits by their digests alone: all
    parts, choices of frames and copies of a video are in one split, and tasks that differ in the choice of
    frames only have the same samples. `num_frames` is an attribute of each sample.

    Args:
        videos: the folder of videos; paths out of it are refused.
        num_frames: number of frames of the collage.
        every: seconds between two frames; None: the frames are uniform over the video. A video with more
            than `num_frames` frames `every` seconds apart is skipped.
        columns: columns of the collage; None: as many as make it square.
        frame_side: largest side of a frame in the collage, in pixels.
        max_seconds: videos that are longer are skipped.
        **arguments: those of `LlavaJsonl`, except for `images`; the field `image` is called `video`.

    Raises ModuleNotFoundError without PyAV, OSError for missing files and ValueError for arguments out of
    range.
    """

    folder_option = "task.videos"

    @checked
    def __init__(
        self,
        *,
        videos: str | Path,
        num_frames: PositiveInt = 6,
        every: PositiveFloat | None = None,
        columns: PositiveInt | None = None,
        frame_side: PositiveInt = 336,
        max_seconds: PositiveFloat = MAX_SECONDS,
        fields: Mapping[str, str | None] | None = None,
        **arguments: Any,
    ) -> None:
        check_video_package()
        super().__init__(images=videos, fields={"image": "video", **(fields or {})}, **arguments)
        self._choice = FrameChoice(num_frames, every, columns)
        self._frame_side, self._max_seconds = frame_side, max_seconds
        self.attributes = {"num_frames": num_frames}
        self._clips: dict[str, Clip] = {}

    @cached_property
    def content(self) -> dict[str, Any]:
        """JSON object that determines the samples."""
        choice = self._choice
        return super().content | {
            # Labels of earlier versions have no clusters: they are not continued.
            "cluster": "video",
            "num_frames": choice.num_frames,
            "every": choice.every,
            "columns": choice.columns,
            "frame_side": self._frame_side,
            "max_seconds": self._max_seconds,
        }

    def image(self, image_id: str) -> Image.Image:
        """Return the collage with this id. Raises UnreadableImage with the name of the video."""
        _ = self._index  # fills the clips
        clip = self._clips.get(image_id)
        if clip is None:
            raise UnreadableImage(image_id, "no question of the task has this video and choice of frames")
        path = locate_file(self.images, clip.name)
        try:
            is_same = digest_file(path)[:16] == clip.digest
        except OSError as error:
            raise UnreadableImage(clip.name, explain(error)) from error
        if not is_same:
            raise UnreadableImage(clip.name, "the file has changed since the questions were read")
        return read_collage(
            path,
            self._choice,
            name=clip.name,
            start=clip.start,
            end=clip.end,
            frame_side=self._frame_side,
            max_pixels=self._max_pixels,
            max_seconds=self._max_seconds,
        )

    def _find_cluster(self, image_id: str) -> str:
        return self._clips[image_id].digest

    def _read(self, place: Place, row: dict[str, Any]) -> Question:
        question = super()._read(place, row)
        start, end = _read_seconds(row, "start"), _read_seconds(row, "end")
        try:
            digest = digest_file(locate_file(self.images, question.image_id))[:16]
        except (UnreadableImage, OSError):
            # Labelling skips it with the reason.
            digest = question.image_id
        part = "" if start is None and end is None else f"/{_write(start or 0)}-{_write(end)}"
        choice = self._choice
        frames = f"{choice.num_frames}" + (f"x{_write(choice.every)}s" if choice.every else "")
        image_id = f"{digest}{part}/{frames}"
        self._clips[image_id] = Clip(question.image_id, digest, start, end)
        return replace(question, image_id=image_id)


def _write(seconds: float | None) -> str:
    """Return a number of seconds with all its digits, as other parts of a video have other ids."""
    return "" if seconds is None else f"{seconds:.15g}"


def _read_seconds(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _FOREVER:
        raise BadRow(f"{name} is {str(value)[:40]!r}, not a number of seconds")
    return float(value)
