"""Which addresses data may come from: encrypted, and nothing inside the network that this machine stands in.

A suite's file may come from a stranger. Without this check it could make a cluster read what only machines inside it
reach. Machines of one's own are named in the environment: DART_TRUSTED_HOSTS=files.lab,10.0.0.7.

A name is looked up here and again by the library that connects; one that has another address the second time is not
found out by its address. A host inside would still have to show a certificate for that name.
"""

import ipaddress
import os
import socket
import urllib.request
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import requests

from pipeline.errors import UserError, problem

DOWNLOADS = ("https",)
SHARDS = ("https", "s3", "gs", "file")  # the last three are places that the user has set up
TRUSTED = "DART_TRUSTED_HOSTS"
# Ways to write an IPv4 address as one of IPv6 that no public name has (RFC 4291, 2765, 8215), and the one that a
# network without IPv4 gives to public ones (RFC 6052).
COMPATIBLE = tuple(map(ipaddress.IPv6Network, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b:1::/48")))
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def check_url(url: str, schemes: Iterable[str] = DOWNLOADS) -> None:
    """Refuse a URL of another scheme, with a password in it, or of a host that is no public one.

    Raises:
        UserError: saying which.
    """
    parts = _split(url)
    host, trusted = parts.hostname or "", is_trusted(parts.hostname or "")
    allowed = (*schemes, "http") if trusted else tuple(schemes)
    if parts.scheme not in allowed:
        remedy = f"use one of {', '.join(f'{scheme}://' for scheme in schemes)}"
        remedy += f", or name its host in {TRUSTED}" if parts.scheme == "http" else ""
        raise UserError(problem("url", shown(url), "not an address that data is read from", remedy))
    if parts.password or parts.username:
        raise UserError(problem("url", shown(url), "has a name or password in it", "leave credentials to the machine"))
    if parts.scheme in ("http", "https") and not trusted:
        _check_host(url, host)


def check_folder(url: str) -> None:
    """As `check_url`, for a folder of shards: names are put behind it, and it is written down beside the manifest.

    Raises:
        UserError: it is refused, or has a query or fragment, which may be a secret and is no part of a folder's name.
    """
    check_url(url, SHARDS)
    parts = _split(url)
    if parts.scheme != "file" and (parts.query or parts.fragment):
        rule = "has a query or fragment, which no folder has"
        raise UserError(problem("url", shown(url), rule, "leave credentials to the machine"))


def is_trusted(host: str) -> bool:
    """Whether the environment names this host."""
    return bool(host) and host in {name.strip().lower() for name in os.environ.get(TRUSTED, "").split(",")}


def shown(url: str) -> str:
    """The URL without what may be secret in it."""
    parts = _split(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


class CheckedSession(requests.Session):
    """A session that checks every address it is sent to, redirects included."""

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        check_url(request.url or "")
        return super().send(request, **kwargs)


def _split(url: str) -> Any:
    try:
        return urlsplit(url)
    except ValueError:
        raise UserError(problem("url", url, "not an address")) from None


def _check_host(url: str, host: str) -> None:
    """A host with any private address is refused: which of its addresses is taken is not ours to choose."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        if "https" in urllib.request.getproxies():
            return  # where a proxy resolves names, this machine cannot, and the proxy's rules hold
        reason = getattr(error, "strerror", None) or "no such name"
        raise UserError(
            problem("url", shown(url), f"its host cannot be found ({reason})", "is the network up?")
        ) from None
    inside = sorted(address for address in found if not _is_public(address))
    if inside:
        rule = f"its host is not a public one ({', '.join(inside)})"
        raise UserError(problem("url", shown(url), rule, f"if it is yours, name it: {TRUSTED}={host}"))


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])  # a link-local one may name its interface
    if parsed.version == 6:
        if any(parsed in network for network in COMPATIBLE):
            return False
        if parsed in NAT64:
            parsed = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
    inner = getattr(parsed, "sixtofour", None) or parsed
    return inner.is_global and not inner.is_multicast
