"""Images by URL: which hosts, addresses, redirects and sizes are fetched. A dictionary is the network."""

import asyncio
import base64

import httpx
import pytest

from experiments.serving.errors import RequestError
from experiments.serving.images import ImageReader
from experiments.serving.limits import Limits
from experiments.serving.remote_images import RemoteImages, resolve
from tests.experiments.serving.conftest import draw_picture, to_url

FILE = base64.b64decode(to_url(draw_picture()).partition(",")[2])
ADDRESSES = {
    "images.example": ["93.184.216.34"],
    "other.example": ["93.184.216.35"],
    "loopback.example": ["127.0.0.1"],
    "private.example": ["93.184.216.34", "10.0.0.7"],
    "metadata.example": ["169.254.169.254"],
    "six.example": ["::1"],
    "mapped.example": ["::ffff:192.168.0.1"],
    "nat.example": ["64:ff9b::7f00:1"],
    "tunnel.example": ["2002:7f00:1::"],
    "multicast.example": ["224.0.0.1"],
    "empty.example": [],
}
LIMITS = Limits(image_bytes=5000)


async def stream(content):
    for start in range(0, len(content), 1000):
        yield content[start : start + 1000]


def redirect(location):
    return httpx.Response(302, headers={"location": location})


ANSWERS = {
    "/a.png": lambda: httpx.Response(200, content=stream(FILE)),
    "/relative": lambda: redirect("/a.png"),
    "/to_stranger": lambda: redirect("https://stranger.example/a.png"),
    "/to_loopback": lambda: redirect("https://loopback.example/a.png"),
    "/to_file": lambda: redirect("file:///etc/passwd"),
    "/to_port": lambda: redirect("https://images.example:8080/a.png"),
    "/forever": lambda: redirect("/forever"),
    "/large": lambda: httpx.Response(200, content=stream(b"0" * 6000)),
    "/missing": lambda: httpx.Response(404),
    "/text": lambda: httpx.Response(200, content=stream(b"<html>")),
}


def read(url, hosts=tuple(ADDRESSES)):
    """The image at a URL, and the requests that were made."""
    requests = []

    def answer(request):
        requests.append(request)
        return ANSWERS[request.url.path]()

    async def find(host):
        return ADDRESSES[host]

    async def run():
        remote = RemoteImages(hosts, LIMITS, resolve=find, transport=httpx.MockTransport(answer))
        reader = ImageReader(LIMITS, remote)
        try:
            return await reader.read(url)
        finally:
            await reader.close()

    return asyncio.run(run()), requests


@pytest.mark.parametrize("url", ["https://images.example/a.png", "HTTP://IMAGES.example:80/a.png"])
def test_an_image_is_fetched_from_the_address_that_was_checked(url):
    received, (request,) = read(url)
    assert received.image.size == (96, 96) and received.content == FILE
    assert request.url.host == "93.184.216.34" and request.headers["host"].startswith("images.example")
    assert request.extensions["sni_hostname"] == "images.example"
    assert "cookie" not in request.headers and "authorization" not in request.headers


def test_redirects_are_followed_within_the_hosts():
    received, requests = read("https://images.example/relative")
    assert received.content == FILE and len(requests) == 2


NOT_PUBLIC = ["loopback", "private", "metadata", "six", "mapped", "nat", "tunnel", "multicast", "empty"]
REFUSED = [
    ("https://stranger.example/a.png", "images of the host 'stranger.example' are not fetched"),
    ("https://images.example.stranger.example/a.png", "are not fetched"),
    ("https://images.example@stranger.example/a.png", "no credentials"),
    ("https://images.example:8443/a.png", "the standard port"),
    ("http://images.example:443/a.png", "the standard port"),
    ("https://127.0.0.1/a.png", "images of the host '127.0.0.1' are not fetched"),
    *((f"https://{name}.example/a.png", "an address that is not public") for name in NOT_PUBLIC),
    ("https://images.example/to_stranger", "images of the host 'stranger.example' are not fetched"),
    ("https://images.example/to_loopback", "an address that is not public"),
    ("https://images.example/to_file", "the scheme https or http"),
    ("https://images.example/to_port", "the standard port"),
    ("https://images.example/forever", "more than 3 redirects"),
    ("https://images.example/large", "the image file is larger than 5,000 bytes"),
    ("https://images.example/missing", "the host answers 404"),
    ("https://images.example/text", "not a PNG, JPEG or WebP file"),
    ("https://[::1/a.png", "the URL of the image is not valid"),
]


@pytest.mark.parametrize(("url", "message"), REFUSED)
def test_what_is_not_fetched(url, message):
    with pytest.raises(RequestError, match=message):
        read(url)


def test_a_slow_host_is_given_up(monkeypatch):
    monkeypatch.setattr("experiments.serving.remote_images._SECONDS", 0.05)

    async def find(host):
        await asyncio.sleep(5)
        return ["93.184.216.34"]

    remote = RemoteImages(["images.example"], LIMITS, resolve=find)
    with pytest.raises(RequestError, match="did not arrive within"):
        asyncio.run(remote.fetch("https://images.example/a.png"))


def test_the_system_resolves_names():
    assert "127.0.0.1" in asyncio.run(resolve("localhost"))
