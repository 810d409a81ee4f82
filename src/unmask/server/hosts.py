"""Host names, as `Host` headers and `--allowed-host` write them, in one exact form for comparison."""

from __future__ import annotations

import ipaddress
import re

from unmask.errors import ConfigError, cut_text

AUTHORITY = re.compile(
    r"(?:\[(?P<literal>[0-9a-f:.]{2,45})\]|(?P<name>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*))(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII,
)
MAX_AUTHORITY_CHARS = 261
"""The longest host name, a colon and a port."""
MAX_PORT = 65535


def host_of(authority: str) -> str | None:
    """Return the host of `HOST` or `HOST:PORT`, in lower case; None if the text is anything else.

    An IPv6 address stands in brackets and is returned without them, in its shortest form. A name with a
    final dot, user information, a path or a port that is no number is not a host.
    """
    found = (
        AUTHORITY.fullmatch(authority.lower()) if len(authority) <= MAX_AUTHORITY_CHARS else None
    )
    if found is None or int(found["port"] or 0) > MAX_PORT:
        return None
    if found["literal"] is None:
        return found["name"]
    try:
        return str(ipaddress.IPv6Address(found["literal"]))
    except ValueError:
        return None


def allowed_host(text: str) -> str:
    """Return a host that an option names, in the form of `host_of`. Raises ConfigError.

    An IPv6 address may stand without brackets.
    """
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        host = host_of(text)
    if host is None or ":" in text.rpartition("]")[2]:
        raise ConfigError(
            f"--allowed-host {cut_text(text)!r} is not a host name; give the name or address alone, as in "
            f"example.org or ::1, without a port, a scheme or a final dot"
        )
    return host
