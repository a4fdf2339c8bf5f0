"""Whom a job's end may be told: hosts that the operator listed, at addresses that are public or listed as well.

A name is resolved once, and what was checked is what is connected to: a name that answers differently the next time
(DNS rebinding) is never asked a next time. An entry of the list is `host` (https on port 443; a loopback host: any
port) or `host:port` (http or https there). An address that is not public must itself be such an entry.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from jobs.errors import SeqprocError, SpecError, UsageError

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_MOST_ADDRESSES = 4  # of one name

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Place = tuple[int, tuple[str, int]]  # address family, (address, port)


class Refused(SeqprocError):
    """A target that must not be told."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a webhook's URL points to. `host` is a name in lower case or an address without brackets."""

    scheme: str
    host: str
    port: int
    path: str  # with the query

    @classmethod
    def of(cls, url: str) -> Self:
        """Raises ValueError with a sentence that repeats nothing of what may be a secret."""
        if not re.fullmatch(r"[!-~]+", url) or "\\" in url:
            raise ValueError("must be ASCII without blanks; a name in another script goes in its xn-- form")
        parts = urlsplit(url)
        if parts.scheme not in _PORTS:
            raise ValueError("must begin with https:// (or http://, where the operator allows it)")
        if "@" in parts.netloc:
            raise ValueError("must hold no user and no password: everyone who sees the job would see them")
        host = _host(parts.hostname or "")
        try:
            port = parts.port or _PORTS[parts.scheme]
        except ValueError:
            raise ValueError("has a port that is no port") from None
        query = f"?{parts.query}" if parts.query else ""
        return cls(parts.scheme, host, port, (parts.path or "/") + query)

    @property
    def authority(self) -> str:
        """The host, and the port where it is not the scheme's own: what the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class AllowedHosts:
    """The operator's list, SEQPROC_WEBHOOK_HOSTS."""

    entries: tuple[tuple[str, int | None], ...]

    @classmethod
    def of(cls, hosts: Iterable[str]) -> Self:
        """Raises UsageError for an entry that is no host."""
        return cls(tuple(map(_entry, hosts)))

    def check(self, target: Target) -> None:
        """Raises Refused unless the target's host is on the list; what it resolves to is not asked."""
        if self._lists(target.host, target):
            return
        if not any(host == target.host for host, _port in self.entries):
            raise Refused(f"{target.host} is not among the hosts that may be told; see SEQPROC_WEBHOOK_HOSTS")
        wanted = f"{target.scheme} on port {target.port}"
        raise Refused(
            f"{target.host} may not be told by {wanted}; SEQPROC_WEBHOOK_HOSTS would have to list "
            f"{target.host}:{target.port}"
        )

    def resolve(self, target: Target) -> list[Place]:
        """The addresses of the target that may be connected to, asked for once. Raises Refused if there is none."""
        self.check(target)
        try:
            found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise Refused(f"{target.host} cannot be resolved: {error}") from None
        addresses = dict.fromkeys((int(family), str(place[0])) for family, _, _, _, place in found)
        allowed = [(family, (address, target.port)) for family, address in addresses if self._may(address, target)]
        if not allowed:
            shown = " and ".join(address for _, address in addresses)
            raise Refused(
                f"{target.host} is at {shown}, which is not public; SEQPROC_WEBHOOK_HOSTS would have to list that "
                "address as well"
            )
        return allowed[:_MOST_ADDRESSES]

    def _may(self, address: str, target: Target) -> bool:
        parsed = ipaddress.ip_address(address)
        # Who lists `localhost` means this machine.
        local = target.host == "localhost" and parsed.is_loopback
        return local or _is_public(parsed) or self._lists(str(parsed), target)

    def _lists(self, host: str, target: Target) -> bool:
        return any(_covers(port, host, target) for listed, port in self.entries if listed == host)


def check_webhook(url: str | None, hosts: Sequence[str]) -> None:
    """What submit can know of a webhook. Raises SpecError."""
    if url is None:
        return
    try:
        AllowedHosts.of(hosts).check(Target.of(url))
    except Refused as refused:
        raise SpecError([f"webhook: {refused}"]) from None


def _covers(port: int | None, host: str, target: Target) -> bool:
    if port is not None:
        return port == target.port
    return _is_loopback(host) or (target.scheme, target.port) == ("https", 443)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        # An IPv4 address in another coat is reached as what it is.
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return _is_public(inner)
    return address.is_global and not address.is_multicast


def _host(text: str) -> str:
    """A host in the one form in which hosts are compared. Raises ValueError."""
    host = text.lower().rstrip(".")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise ValueError("names no host")
    return host


def _entry(text: str) -> tuple[str, int | None]:
    try:
        try:
            return str(ipaddress.ip_address(text)), None
        except ValueError:
            parts = urlsplit(f"//{text}")
            if parts.netloc != text or "@" in text:
                raise ValueError("is more than a host") from None
            return _host(parts.hostname or ""), parts.port
    except ValueError:
        raise UsageError(
            f"SEQPROC_WEBHOOK_HOSTS: {text!r} is no host; list names or addresses, each with or without a port, "
            "like hooks.example.org,10.0.0.5:8080"
        ) from None
