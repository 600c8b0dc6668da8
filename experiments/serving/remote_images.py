"""Images that a request names by URL, from hosts on a list only."""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection

import httpx

from experiments.serving.errors import refuse
from experiments.serving.limits import Limits, join_pieces, too_many_bytes

# Returns the addresses of a host.
Resolve = Callable[[str], Awaitable[list[str]]]

_MAX_REDIRECTS = 3
_SECONDS = 10.0
_PORTS = {"http": 80, "https": 443}


async def resolve(host: str) -> list[str]:
    """Return the IP addresses of a host. Raises OSError if it has none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class RemoteImages:
    """Fetches images over HTTP from listed hosts.

    Every URL, also that of a redirect, must name a host in `hosts`, use the standard port and hold no
    credentials, and all addresses of the host must be public. The connection is made to the address that was
    checked, so that another answer of the name server cannot redirect it. The size of the file and the time
    of the whole fetch are limited. Proxies and credentials of the environment are not used.
    """

    def __init__(
        self,
        hosts: Collection[str],
        limits: Limits,
        *,
        resolve: Resolve = resolve,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.hosts = frozenset(host.lower() for host in hosts)
        self.limits = limits
        self._resolve = resolve
        self._client = httpx.AsyncClient(
            transport=transport, trust_env=False, follow_redirects=False, timeout=_SECONDS
        )

    async def fetch(self, url: str) -> bytes:
        """Return the file at a URL. Raises RequestError if it may not or cannot be fetched."""
        try:
            async with asyncio.timeout(_SECONDS):
                target = _parse(url)
                for _ in range(_MAX_REDIRECTS + 1):
                    content = await self._fetch_once(target)
                    if isinstance(content, bytes):
                        return content
                    target = content
        except TimeoutError as error:
            raise refuse(f"the image did not arrive within {_SECONDS:g} seconds", param="messages") from error
        except (httpx.HTTPError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise refuse(f"the image cannot be fetched: {reason}", param="messages") from error
        raise refuse(f"the image has more than {_MAX_REDIRECTS} redirects", param="messages")

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _fetch_once(self, url: httpx.URL) -> bytes | httpx.URL:
        """Return the file at a URL, or the URL to which it redirects."""
        address = await self._check(url)
        port = "" if url.port is None else f":{url.port}"
        request = self._client.build_request(
            "GET",
            url.copy_with(host=address),
            headers={"host": f"{url.host}{port}", "accept": "image/*", "accept-encoding": "identity"},
            extensions={"sni_hostname": url.host},  # the certificate is that of the host, not of the address
        )
        response = await self._client.send(request, stream=True)
        try:
            if response.is_redirect:
                return url.join(response.headers.get("location", ""))
            if response.status_code != 200:
                raise refuse(
                    f"the image cannot be fetched: the host answers {response.status_code}", param="messages"
                )
            too_large = too_many_bytes(self.limits)
            return await join_pieces(response.aiter_raw(), self.limits.image_bytes, too_large)
        finally:
            await response.aclose()

    async def _check(self, url: httpx.URL) -> str:
        """Return an address of the host of a URL. Raises RequestError if it may not be fetched."""
        if url.scheme not in _PORTS or url.userinfo or url.port not in (None, _PORTS[url.scheme]):
            raise refuse(
                "an image URL has the scheme https or http, the standard port and no credentials",
                param="messages",
            )
        if url.host.lower() not in self.hosts:
            raise refuse(
                f"images of the host {url.host!r} are not fetched: send a data URL, or start the server with "
                "remote_hosts=[...]",
                param="messages",
            )
        addresses = await self._resolve(url.host)
        if not addresses or not all(_is_public(address) for address in addresses):
            raise refuse(f"the host {url.host!r} has an address that is not public", param="messages")
        return addresses[0]


def _parse(url: str) -> httpx.URL:
    try:
        return httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise refuse("the URL of the image is not valid", param="messages") from error


def _is_public(address: str) -> bool:
    """Return whether an IP address, or the IPv4 address that it embeds, is one of the public internet."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        embedded = parsed.ipv4_mapped or parsed.sixtofour
        if embedded is not None:
            return _is_public(str(embedded))
        if parsed in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            return _is_public(str(ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)))
    return parsed.is_global and not parsed.is_multicast
