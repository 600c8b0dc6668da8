"""The image of a request: from a data URL or, if that is allowed, from a listed host."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from experiments.serving.errors import refuse
from experiments.serving.limits import (
    Limits,
    check_data_url,
    decode_data_url,
    find_size,
    find_size_in_url,
    open_image,
)
from experiments.serving.remote_images import RemoteImages


@dataclass(frozen=True)
class UndecodedImage:
    """An image of which nothing but the size, (width, height), is known."""

    size: tuple[int, int]


@dataclass(frozen=True)
class ReceivedImage:
    """An RGB image, or one that is not decoded, and its source: a file, or a data URL.

    `release` lets the next image be decoded: call it once this one has been answered.
    """

    image: Image.Image | UndecodedImage
    source: bytes | str
    release: Callable[[], None] = lambda: None

    @property
    def content(self) -> bytes:
        """The file that the image was read from."""
        return decode_data_url(self.source) if isinstance(self.source, str) else self.source


class PixelBudget:
    """Pixels that may be in memory at the same time; requests wait for them in order of arrival."""

    def __init__(self, pixels: int) -> None:
        self.num_free = pixels
        self._turn, self._released = asyncio.Lock(), asyncio.Event()

    async def take(self, num_pixels: int) -> Callable[[], None]:
        """Wait until that many pixels are free, and return what releases them, once."""
        async with self._turn:
            while self.num_free < num_pixels:
                self._released.clear()
                await self._released.wait()
            self.num_free -= num_pixels
        is_held = True

        def release() -> None:
            nonlocal is_held
            self.num_free += num_pixels * is_held
            is_held = False
            self._released.set()

        return release


class ImageReader:
    """Reads the images of requests. Without `remote`, only data URLs are read.

    Of the images that are decoded and not released, there are at most `NUM_LARGEST` times `limits.pixels`.
    """

    NUM_LARGEST = 4

    def __init__(self, limits: Limits, remote: RemoteImages | None = None) -> None:
        self.limits, self.remote = limits, remote
        self.budget = PixelBudget(self.NUM_LARGEST * limits.pixels)

    async def read(self, url: str, *, pixels: bool = True) -> ReceivedImage:
        """Return the image at a URL. Raises RequestError; files are decoded in a thread.

        Without `pixels`, only the header of the file is read, and damage behind it is not found.
        """
        if not url[:8].lower().startswith(("http://", "https://")):
            check_data_url(url, self.limits)
            source: bytes | str = url
            size = find_size_in_url(url, self.limits)
        elif self.remote is None:
            raise refuse(
                "remote images are not fetched: send the image as a data URL (data:image/png;base64,...)",
                param="messages",
            )
        else:
            source = await self.remote.fetch(url)
            size = find_size(source, self.limits)
        if not pixels:
            return ReceivedImage(UndecodedImage(size), source)
        release = await self.budget.take(size[0] * size[1])
        decoding = asyncio.ensure_future(asyncio.to_thread(self._decode, source))
        try:
            content, image = await asyncio.shield(decoding)
        except BaseException:  # the thread goes on when the client is gone
            decoding.add_done_callback(lambda done: (done.exception(), release()))
            raise
        return ReceivedImage(image, content, release)

    async def close(self) -> None:
        """Close the connections to remote hosts."""
        if self.remote is not None:
            await self.remote.close()

    def _decode(self, source: bytes | str) -> tuple[bytes, Image.Image]:
        content = decode_data_url(source) if isinstance(source, str) else source
        return content, open_image(content, self.limits)
