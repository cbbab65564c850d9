"""By which address hosts reach each other, where their names say nothing of it."""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys

if sys.platform != "win32":
    import fcntl

__all__ = ["address_towards", "interface_of", "is_own"]

_SIOCGIFADDR = 0x8915  # of Linux: the address of an interface


def is_own(host: str) -> bool:
    """Whether a name or address is this host's.

    Example:
        >>> is_own("127.0.0.1"), is_own("192.0.2.1")
        (True, False)
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.bind(address)  # the system refuses what is not
    except OSError:
        return False
    return True


def address_towards(host: str) -> str | None:
    """This host's own address on the way to another, None if there is no way. Nothing is sent.

    The name of this host itself often leads to a loopback address, which says nothing of how others reach it: None.

    Example:
        >>> address_towards("127.0.0.1")
        '127.0.0.1'
    """
    try:
        family, kind, _, _, there = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(there)
            address = str(probe.getsockname()[0])
    except OSError:
        return None
    loopback = ipaddress.ip_address(address.partition("%")[0]).is_loopback
    return None if loopback and host not in (address, "localhost") else address


def interface_of(address: str) -> str | None:
    """The network interface with an IPv4 address, None if it is not known.

    Example:
        >>> interface_of("192.0.2.1") is None
        True
    """
    if sys.platform == "win32":
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has no address, or this is no Linux
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
