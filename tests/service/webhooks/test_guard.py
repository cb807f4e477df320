"""Addresses that a tenant must not reach through the service, named in every way there is."""

import socket
from typing import Any

import pytest

from service.errors import InvalidRequest
from service.webhooks import guard
from service.webhooks.guard import Undelivered, check_url, open_sender

PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.0.1",
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b:1::a00:1",
    "2002:7f00:1::",
    "2001:0:7f00:1::",
    "2001:db8::1",
]


def _url(address: str) -> str:
    return f"https://[{address}]/" if ":" in address else f"https://{address}/"


@pytest.mark.parametrize("address", PRIVATE)
async def test_private_addresses_are_refused_before_and_when_sending(address: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_url(_url(address), private=False)
    assert refused.value.code == "invalid_webhook_url"
    async with open_sender(private=False) as sender:
        with pytest.raises(Undelivered, match="not public"):
            await sender.post(_url(address), {}, "{}")


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "0177.0.0.1", "localhost", "LOCALHOST."])
async def test_other_spellings_of_loopback_are_found_when_they_are_resolved(host: str) -> None:
    async with open_sender(private=False) as sender:
        with pytest.raises(Undelivered):
            await sender.post(f"https://{host}/", {}, "{}")


@pytest.mark.parametrize("address", PRIVATE)
async def test_a_name_is_judged_by_every_address_it_has(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def resolved(_self: Any, host: str, *_: Any) -> list[Any]:
        asked.append(host)
        return [{"hostname": host, "host": each, "port": 443} for each in ("93.184.216.34", address)]

    monkeypatch.setattr(guard.aiohttp.ThreadedResolver, "resolve", resolved)
    async with open_sender(private=False) as sender:
        with pytest.raises(Undelivered, match="not public"):
            await sender.post("https://rebinding.example/", {}, "{}")
    assert asked == ["rebinding.example"], "resolved once: what is checked is what is called"


async def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that means something else a moment later gains nothing."""
    answers = iter(["93.184.216.34", "127.0.0.1"])
    connected: list[Any] = []

    async def resolved(_self: Any, host: str, port: int, *_: Any) -> list[Any]:
        address = next(answers)
        return [{"hostname": host, "host": address, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}]

    async def start_connection(addr_infos: list[Any], **_: Any) -> Any:
        connected.extend(each[4][0] for each in addr_infos)
        raise OSError("not in a test")

    monkeypatch.setattr(guard.aiohttp.ThreadedResolver, "resolve", resolved)
    monkeypatch.setattr("aiohttp.connector.aiohappyeyeballs.start_connection", start_connection)
    async with open_sender(private=False) as sender:
        with pytest.raises(Undelivered, match="no connection"):
            await sender.post("https://rebinding.example/", {}, "{}")
    assert connected == ["93.184.216.34"]


@pytest.mark.parametrize("url", ["https://example.com/a?b=c", "https://example.com:8443", "https://93.184.216.34/"])
def test_public_addresses_are_taken(url: str) -> None:
    check_url(url, private=False)


def test_without_tls_only_where_private_networks_are_allowed() -> None:
    with pytest.raises(InvalidRequest, match="https"):
        check_url("http://example.com/", private=False)
    check_url("http://10.0.0.1:8080/hook", private=True)
