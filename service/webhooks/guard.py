"""Where webhooks may go. A tenant's address must not lead into the operator's own network.

A name is resolved once for each attempt, every address it has is checked, and the connection goes to one of the checked
addresses, so a name that changes between look and call gains nothing. Redirects are not followed, proxies not used.
"""

import ipaddress
import re
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from service.errors import InvalidRequest

TIMEOUT = aiohttp.ClientTimeout(total=15, connect=5)
USER_AGENT = "Weft-Webhooks/1"
PRINTABLE = re.compile(r"[!-~]{1,2048}")
# Addresses within which an IPv4 address is carried to wherever it leads.
CARRIERS = tuple(ipaddress.ip_network(block) for block in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))


class AddressRefused(OSError):
    """The address is not one that webhooks may go to."""


class Undelivered(Exception):
    """No answer came. The message says why, in words that tell nothing of the operator's network."""


def check_url(text: str, private: bool) -> None:
    """Raises InvalidRequest where webhooks can never go; a name's addresses are looked at when one is sent."""
    try:
        url = URL(text) if PRINTABLE.fullmatch(text) else URL()
        host, port = url.host, url.port
    except ValueError:
        host = port = None
        url = URL()
    if not host or not port or url.user is not None or url.password is not None or url.fragment:
        raise _unusable("give an absolute address without user name, password and fragment")
    if url.scheme != "https" and not (private and url.scheme == "http"):
        raise _unusable("it must begin with 'https://'")
    if not private and _literal(host) is not None and not _public(host):
        raise _unusable("it names an address that is not public")


def _unusable(reason: str) -> InvalidRequest:
    return InvalidRequest(f"Webhooks cannot be sent to this 'url': {reason}.", code="invalid_webhook_url", param="url")


@asynccontextmanager
async def open_sender(private: bool) -> AsyncGenerator["Sender"]:
    connector = aiohttp.TCPConnector(
        resolver=None if private else CheckedResolver(), use_dns_cache=False, force_close=True, limit=0
    )
    async with aiohttp.ClientSession(
        connector=connector, timeout=TIMEOUT, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
    ) as session:
        yield Sender(session, private)


class Sender:
    def __init__(self, session: aiohttp.ClientSession, private: bool) -> None:
        self._session = session
        self._private = private

    async def post(self, url: str, headers: dict[str, str], body: str) -> int:
        """The status of the answer, whose body is nobody's business. Raises Undelivered."""
        try:
            # The connector asks its resolver for names alone.
            host = URL(url).host or ""
            if not self._private and _literal(host) is not None and not _public(host):
                raise AddressRefused(host)
            sent = {**headers, "content-type": "application/json", "user-agent": USER_AGENT}
            async with self._session.post(url, data=body.encode(), headers=sent, allow_redirects=False) as answer:
                return answer.status
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Undelivered(_reason(error)) from error


class CheckedResolver(AbstractResolver):
    """Gives the addresses of a name where all of them are public."""

    def __init__(self) -> None:
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if not all(_public(each["host"]) for each in found):
            raise AddressRefused(host)
        return found

    async def close(self) -> None:
        await self._resolver.close()


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _public(host: str) -> bool:
    address = ipaddress.ip_address(host)
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif any(address in block for block in CARRIERS):
            return False
    return address.is_global and not address.is_multicast


def _reason(error: Exception) -> str:
    match error:
        case AddressRefused():
            return "the address is not public"
        case aiohttp.ClientConnectorError() if isinstance(error.os_error, AddressRefused):
            return "the address is not public"
        case aiohttp.ClientConnectorDNSError():
            return "the name could not be resolved"
        case aiohttp.ClientSSLError():
            return "TLS could not be set up"
        case TimeoutError():
            return "no answer in time"
        case aiohttp.ClientConnectorError():
            return "no connection"
        case _:
            return "no usable answer"
