"""The image of a request: from a data URL or, if that is allowed, from a listed host."""

import asyncio
from dataclasses import dataclass

from PIL import Image

from experiments.serving.errors import refuse
from experiments.serving.limits import Limits, decode_data_url, find_size, open_image
from experiments.serving.remote_images import RemoteImages


@dataclass(frozen=True)
class UndecodedImage:
    """An image of which nothing but the size, (width, height), is known."""

    size: tuple[int, int]


@dataclass(frozen=True)
class ReceivedImage:
    """An RGB image, or one that is not decoded, and the file that it was read from."""

    image: Image.Image | UndecodedImage
    content: bytes


# Longest data URL, in characters, that is read without a thread if its image is not decoded.
_SHORT = 1_000_000


class ImageReader:
    """Reads the images of requests. Without `remote`, only data URLs are read."""

    def __init__(self, limits: Limits, remote: RemoteImages | None = None) -> None:
        self.limits, self.remote = limits, remote

    async def read(self, url: str, *, pixels: bool = True) -> ReceivedImage:
        """Return the image at a URL. Raises RequestError; files are decoded in a thread.

        Without `pixels`, only the header of the file is read, and damage behind it is not found.
        """
        if not url[:8].lower().startswith(("http://", "https://")):
            if not pixels and len(url) <= _SHORT:
                return self._decode(url, pixels)
            return await asyncio.to_thread(self._decode, url, pixels)
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

    def _decode(self, url: str, pixels: bool) -> ReceivedImage:
        content = decode_data_url(url, self.limits)
        return ReceivedImage(self._open(content, pixels), content)

    def _open(self, content: bytes, pixels: bool) -> Image.Image | UndecodedImage:
        return open_image(content, self.limits) if pixels else UndecodedImage(find_size(content, self.limits))
