"""Where webhooks may be sent: what a URL must be, and to which addresses a connection may be made.

Whoever can create an endpoint chooses a URL that the service then calls from inside its network. So only https to
public addresses is allowed, and hosts that the operator has named. The address is checked where the socket is made, so
the one that is checked is the one that is connected to, whatever DNS answers before or after.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from errno import EACCES
from typing import Any
from urllib.parse import SplitResult, urlsplit

from tunewright.errors import InvalidRequest, quoted

LONGEST_URL = 2048
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", re.IGNORECASE)
_ODD_NUMBER = re.compile(r"\d+|0x[0-9a-f]*", re.IGNORECASE)
"""The last part of a host that some read as an address of IPv4, such as 2130706433 or 0x7f.1 for 127.0.0.1."""
_OPTION = "The operator can allow the host with --webhook-host"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class AddressRefused(OSError):
    """A connection to this address is not allowed."""


class AllowedHosts:
    """The hosts of --webhook-host: any address, and also http."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = {name.strip("[]").lower().removesuffix(".") for name in names}

    def __contains__(self, host: str) -> bool:
        return host.lower().removesuffix(".") in self._names  # the dot of a name that is whole


def check_url(url: str, allowed: AllowedHosts) -> None:
    """Raises InvalidRequest where events cannot be sent to this URL, or may not. No name is resolved."""
    parts = _split(url)
    host = (parts.hostname or "").removesuffix(".")
    if host in allowed:
        return
    if parts.scheme != "https":
        raise _refused(f"{quoted(url)} is not https. {_OPTION}.")
    literal = _literal(host)
    if (literal is not None and not is_public(literal)) or host == "localhost" or host.endswith(".localhost"):
        raise _refused(f"{host} is not a public address. {_OPTION}.")


def is_public(address: Address) -> bool:
    """Whether the address is one of the public internet. For IPv6 addresses that stand for one of IPv4, that one
    counts."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def open_socket(host: str, allowed: AllowedHosts, found: tuple[Any, ...]) -> socket.socket:
    """A socket for an address of `host`, an entry of `getaddrinfo`, to which it is connected next. Raises
    AddressRefused."""
    family, kind, protocol, _, where = found
    address = _literal(str(where[0]))
    if address is None:
        raise AddressRefused(EACCES, f"{quoted(where[0])} is no address.")
    if host not in allowed and not is_public(address):
        raise AddressRefused(EACCES, f"{host} has the address {address}, which is not public. {_OPTION}.")
    return socket.socket(family, kind, protocol)


def _split(url: str) -> SplitResult:
    wrong = f"{quoted(url)} is not the URL of an endpoint, such as https://example.com/hooks"
    if len(url) > LONGEST_URL or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise _refused(f"{wrong}: it has up to {LONGEST_URL} characters of ASCII, without spaces.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _refused(f"{wrong}: {error}.") from error
    if parts.scheme not in ("https", "http") or not parts.hostname or port == 0:
        raise _refused(f"{wrong}.")
    host = parts.hostname.removesuffix(".")
    if _literal(host) is None:
        if "[" in parts.netloc or not _NAME.fullmatch(host):
            raise _refused(f"{wrong}: a host has letters, digits, hyphens and dots.")
        if _ODD_NUMBER.fullmatch(host.rpartition(".")[2]):
            raise _refused(f"{wrong}: write its address with four numbers.")
    if "@" in parts.netloc or parts.fragment:
        raise _refused(f"{wrong}: a user, a password and a fragment cannot be part of it.")
    return parts


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _refused(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="url", code="webhook_url_refused")
