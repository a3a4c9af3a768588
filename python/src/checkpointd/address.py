"""Where the service is, how it is reached, and why it is not."""

from __future__ import annotations

import errno
import random
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from .errors import CheckpointdError, NotTheService
from .foreign_status import advice_for, is_passing

CONNECT_TIMEOUT = 10.0
_OF_CONNECTION = frozenset(
    ("connection", "host", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade")
)
_EXAMPLE = "such as http://127.0.0.1:8080"


class Address:
    """A service's URL with what is sent to it. Can be pickled; holds no connection."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None,
        token: str | None,
        ca: str | None,
        verify: bool,
    ) -> None:
        """Raises ValueError or TypeError, naming what is not allowed and never a secret."""
        if not isinstance(url, str):
            raise TypeError(f"the URL must be a string, {_EXAMPLE}, not {type(url).__name__}")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https"):
            # What is no URL may hold a password.
            given = "" if "@" in url else f", not {url!r}"
            raise ValueError(f"the URL must begin with http:// or https://{given}; {_EXAMPLE}")
        if parts.username is not None or parts.password is not None:
            raise ValueError("the URL must not hold a user or password; use the headers option")
        if not parts.hostname:
            raise ValueError(f"the URL has no host; give the service's, {_EXAMPLE}")
        if parts.query or parts.fragment:
            raise ValueError("the URL must not have a query or a fragment")
        self.is_tls = parts.scheme == "https"
        self.host = parts.hostname
        self.port = port or (443 if self.is_tls else 80)
        # As the URL has it, without the port that its scheme stands for.
        self.authority = parts.netloc
        self.prefix = parts.path.rstrip("/")
        self.text = f"{parts.scheme}://{parts.netloc}{self.prefix}"
        self.headers = _to_headers(headers, token)
        self._ca = ca
        self._verify = verify
        self._context: ssl.SSLContext | None = None
        # To know now that the ca can be read.
        _ = self.context

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_context": None}

    @property
    def context(self) -> ssl.SSLContext | None:
        """What TLS is made with; None without TLS. Raises OSError if the ca cannot be read."""
        if self.is_tls and self._context is None:
            context = ssl.create_default_context(cafile=self._ca)
            if not self._verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            context.set_alpn_protocols(["http/1.1"])
            self._context = context
        return self._context

    def explain(self, error: OSError) -> CheckpointdError:
        """The error of a connection that could not be made, with the likely cause."""
        text = str(error) or type(error).__name__
        if isinstance(error, ssl.SSLCertVerificationError):
            return NotTheService(
                "failed_precondition",
                f"the certificate of {self.text} is not trusted ({error.verify_message}); "
                "the option ca names a file of authorities to trust",
            )
        if isinstance(error, ssl.SSLError) and re.search("WRONG_VERSION|HTTP_REQUEST", text):
            return NotTheService(
                "failed_precondition",
                f"{self.text} does not speak TLS: begin the URL with http://",
            )
        how = ""
        if isinstance(error, socket.gaierror):
            how = "the host's name cannot be resolved"
        elif isinstance(error, ConnectionRefusedError):
            how = "nothing listens there; is the service started, and the port right?"
        elif isinstance(error, TimeoutError):
            how = "nothing answers there; is it the right host, and does a firewall let it through?"
        elif error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
            how = "there is no way to that host"
        elif isinstance(error, ConnectionError):
            how = "it closes connections; is the service behind it started, the port right?"
        return CheckpointdError(
            "unavailable", f"cannot reach {self.text}: {how and how + ' '}({text})"
        )

    def foreign(self, status: int, content_type: str, retry_after: str) -> CheckpointdError:
        """The error of an answer that is no answer of the service."""
        advice = advice_for(status, self.host)
        code, text = advice or ("unavailable", "")
        text = f"HTTP {status} from {self.text}{text and ': ' + text}"
        if is_passing(status):
            retry_delay = float(retry_after) if retry_after.isdigit() else None
            return CheckpointdError(code, text, retry_delay=retry_delay)
        if advice:
            return NotTheService(code, text)
        where = (
            f"is the path {self.prefix} right?"
            if status == 404 and self.prefix
            else "is it another server's port, or does the URL lack a path?"
        )
        kind = content_type.split(";")[0]
        told = f"HTTP {status}{kind and ', ' + kind}"
        return NotTheService(
            "unimplemented",
            f"there is no checkpointd service at {self.text} ({told}): {where}",
        )

    def no_http(self, data: bytes) -> CheckpointdError:
        """The error of an answer that is not even HTTP."""
        if data.startswith(b"\x15\x03"):
            text = f"{self.text} speaks TLS: begin the URL with https://"
            return NotTheService("failed_precondition", text)
        return NotTheService(
            "unimplemented",
            f"{self.text} is not a checkpointd service: it speaks no HTTP/1.1; is the port right?",
        )


def turned(infos: list[Any]) -> Iterator[tuple[Any, float]]:
    """Addresses of a name, beginning with another one each time, and the time that each has.

    Without this all agents would stay with the first that lives, and never come back to one that
    returned.
    """
    first = random.randrange(len(infos)) if infos else 0
    for tried, info in enumerate((*infos[first:], *infos[:first])):
        yield info, CONNECT_TIMEOUT if tried == len(infos) - 1 else 1.0


def prepare(sock: socket.socket) -> None:
    """Has the system notice by itself when the other side is gone, also while nothing is asked."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _to_headers(
    headers: Mapping[str, str] | None, token: str | None
) -> tuple[tuple[str, str], ...]:
    given = dict(headers or {})
    if token is not None:
        if any(name.lower() == "authorization" for name in given):
            raise ValueError('give either a token or headers with "authorization", not both')
        given["authorization"] = f"Bearer {token}"
    for name, value in given.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise ValueError(f"headers: {name!r} is no name of a header")
        if name.lower() in _OF_CONNECTION:
            raise ValueError(f'headers: "{name}" belongs to the connection and cannot be set')
        # Without the value, which is a secret more often than not.
        if not isinstance(value, str) or not re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", value):
            raise ValueError(
                f'headers: the value of "{name}" must be text without line breaks and control '
                "characters"
            )
    return tuple(given.items())
