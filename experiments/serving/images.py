"""The image of a request: from a data URL or, if that is allowed, from a listed host."""

import asyncio
from dataclasses import dataclass

from PIL import Image

from experiments.serving.errors import refuse
from experiments.serving.limits import Limits, decode_data_url, open_image
from experiments.serving.remote_images import RemoteImages


@dataclass(frozen=True)
class ReceivedImage:
    """An RGB image and the file that it was read from."""

    image: Image.Image
    content: bytes


class ImageReader:
    """Reads the images of requests. Without `remote`, only data URLs are read."""

    def __init__(self, limits: Limits, remote: RemoteImages | None = None) -> None:
        self.limits, self.remote = limits, remote

    async def read(self, url: str) -> ReceivedImage:
        """Return the image at a URL. Raises RequestError; files are decoded in a thread."""
        if not url[:8].lower().startswith(("http://", "https://")):
            return await asyncio.to_thread(self._decode, url)
        if self.remote is None:
            raise refuse(
                "remote images are not fetched: send the image as a data URL (data:image/png;base64,...)",
                param="messages",
            )
        content = await self.remote.fetch(url)
        return ReceivedImage(await asyncio.to_thread(open_image, content, self.limits), content)

    async def close(self) -> None:
        """Close the connections to remote hosts."""
        if self.remote is not None:
            await self.remote.close()

    def _decode(self, url: str) -> ReceivedImage:
        content = decode_data_url(url, self.limits)
        return ReceivedImage(open_image(content, self.limits), content)
