"""The image of a request: from a data URL or, if that is allowed, from a listed host."""

import asyncio
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
    """An RGB image, or one that is not decoded, and its source: a file, or a data URL."""

    image: Image.Image | UndecodedImage
    source: bytes | str

    @property
    def content(self) -> bytes:
        """The file that the image was read from."""
        return decode_data_url(self.source) if isinstance(self.source, str) else self.source


class ImageReader:
    """Reads the images of requests. Without `remote`, only data URLs are read."""

    def __init__(self, limits: Limits, remote: RemoteImages | None = None) -> None:
        self.limits, self.remote = limits, remote

    async def read(self, url: str, *, pixels: bool = True) -> ReceivedImage:
        """Return the image at a URL. Raises RequestError; files are decoded in a thread.

        Without `pixels`, only the header of the file is read, and damage behind it is not found.
        """
        if not url[:8].lower().startswith(("http://", "https://")):
            check_data_url(url, self.limits)
            if not pixels:
                return ReceivedImage(UndecodedImage(find_size_in_url(url, self.limits)), url)
            return await asyncio.to_thread(self._decode, url)
        if self.remote is None:
            raise refuse(
                "remote images are not fetched: send the image as a data URL (data:image/png;base64,...)",
                param="messages",
            )
        content = await self.remote.fetch(url)
        return ReceivedImage(await asyncio.to_thread(self._open, content, pixels), content)

    async def close(self) -> None:
        """Close the connections to remote hosts."""
        if self.remote is not None:
            await self.remote.close()

    def _decode(self, url: str) -> ReceivedImage:
        content = decode_data_url(url)
        return ReceivedImage(open_image(content, self.limits), content)

    def _open(self, content: bytes, pixels: bool) -> Image.Image | UndecodedImage:
        return open_image(content, self.limits) if pixels else UndecodedImage(find_size(content, self.limits))
