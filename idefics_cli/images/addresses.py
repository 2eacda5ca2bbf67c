"""The servers that a download may connect to: their addresses are looked up once, and judged."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import requests
from requests.adapters import HTTPAdapter

LookUp = Callable[[str, int], Sequence[str]]
"""Returns the IP addresses of a host and port; raises OSError if there are none."""

WEB_PORTS = frozenset({80, 443})

_DEFAULT_PORTS = {"http": 80, "https": 443}
# In these networks, the last 32 bits are an IPv4 address to which a gateway connects (RFC 6052, RFC
# 8215).
_NAT64 = tuple(IPv6Network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48"))
_IPV4_COMPATIBLE = IPv6Network("::/96")
# These networks are not public, although Python 3.11 calls some of them global: IETF protocol
# assignments, and relays of 6to4 (RFC 7526).
_SPECIAL = tuple(map(ip_network, ("192.0.0.0/24", "192.88.99.0/24", "fec0::/10", "100::/64")))


class RefusedAddressError(Exception):
    """A server to which a download must not connect."""


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Which servers a download may connect to.

    Attributes:
        hosts: The only allowed hosts, as `host` or `host:port`; None allows all public ones.
        is_public: Whether an IP address belongs to a server on the internet.
        look_up: Finds the addresses of a host.
        ports: The ports of hosts that are not in *hosts*.
    """

    hosts: frozenset[str] | None
    is_public: Callable[[str], bool]
    look_up: LookUp
    ports: frozenset[int] = WEB_PORTS

    def addresses_of(self, host: str, port: int) -> Sequence[str]:
        """Return the addresses of a server, each of which may be used.

        Raises:
            RefusedAddressError: If the server is not allowed, or one of its addresses is not.
            OSError: If the host has no address.
        """
        if self.hosts is not None:
            name = host.rstrip(".").lower()
            if not {name, f"{name}:{port}"} & self.hosts:
                shown = name if port in _DEFAULT_PORTS.values() else f"{name}:{port}"
                raise RefusedAddressError(f"the host {shown} is not allowed")
            return self.look_up(host, port)
        if port not in self.ports:
            raise RefusedAddressError(f"the port {port} is not allowed")
        found = self.look_up(host, port)
        # One private address is enough to refuse the host, because an attacker can add public
        # addresses.
        for address in found:
            if not self.is_public(address):
                raise RefusedAddressError(f"{address} is not a public address")
        return found


class PinnedAdapter(HTTPAdapter):
    """Connects to the addresses that were judged, and never looks a host up a second time.

    A second look-up could give another address, as in DNS rebinding. The `Host` header, the name in
    the TLS handshake and the name in the certificate stay those of the URL.

    Args:
        policy: Which servers it may connect to.
    """

    def __init__(self, policy: AddressPolicy) -> None:
        super().__init__()
        self._policy = policy
        self._address = ""

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send *request* to the first address that answers; *proxies* are not used.

        Raises:
            RefusedAddressError: If the policy refuses the server.
            requests.RequestException: As `HTTPAdapter.send`.
        """
        where, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        host, port = where["host"], where["port"] or _DEFAULT_PORTS[where["scheme"]]
        try:
            addresses = self._policy.addresses_of(host, port)
        except (OSError, UnicodeError) as error:
            raise requests.ConnectionError(error) from error
        name = f"[{host}]" if ":" in host else host
        is_usual = port == _DEFAULT_PORTS[where["scheme"]]
        request.headers["Host"] = name if is_usual else f"{name}:{port}"
        for self._address in addresses[:-1]:
            try:
                return super().send(request, stream, timeout, verify, cert, {})
            except requests.ConnectionError:
                continue
        self._address = addresses[-1]
        return super().send(request, stream, timeout, verify, cert, {})

    # Any: the types of requests are private, and do not know the options of urllib3.
    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> Any:
        """Return the parts of a connection, with the judged address in place of the host."""
        where, options = super().build_connection_pool_key_attributes(request, verify, cert)
        is_secure = where["scheme"] == "https"
        named = {"server_hostname": where["host"]} if is_secure else {}
        return {**where, "host": self._address}, {**options, **named}


def look_up(host: str, port: int) -> Sequence[str]:
    """Return the IP addresses of *host*, by the resolver of the system."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_public(address: str) -> bool:
    """Return whether the IP *address* belongs to a server on the internet.

    An IPv6 address that only wraps an IPv4 address is judged by that one.
    """
    found = _unwrapped(ip_address(address.partition("%")[0]))
    if any(found.version == net.version and found in net for net in _SPECIAL):
        return False
    return found.is_global and not found.is_multicast and not found.is_reserved


def _unwrapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if isinstance(address, IPv4Address):
        return address
    inner = address.ipv4_mapped or address.sixtofour
    if inner is None and address.teredo is not None:
        inner = address.teredo[1]
    if inner is None and any(address in net for net in (*_NAT64, _IPV4_COMPATIBLE)):
        inner = IPv4Address(int(address) & 0xFFFFFFFF)
    return address if inner is None else inner
