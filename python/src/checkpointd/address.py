"""Where the service is, how it is reached, and why it is not."""

from __future__ import annotations

import errno
import os
import random
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from .errors import CheckpointdError, NotTheService
from .foreign_status import advice_for, is_passing

CONNECT_TIMEOUT = 10.0
_EXAMPLE = "such as http://127.0.0.1:8080"


@dataclass(frozen=True)
class Tls:
    """How TLS is made: see `ConnectSaver`."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    verify: bool = True
    context: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        """Raises ValueError naming what does not go together."""
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key need each other")
        if self.context is None:
            return
        if self.ca is not None or self.cert is not None or not self.verify:
            raise ValueError("give either tls or ca, cert, key and verify: an SSLContext has all")
        if not isinstance(self.context, ssl.SSLContext):
            raise TypeError(f"tls must be an ssl.SSLContext, not {type(self.context).__name__}")

    @property
    def files(self) -> tuple[str, ...]:
        """Those that are read."""
        return tuple(file for file in (self.ca, self.cert, self.key) if file is not None)

    def make_context(self) -> ssl.SSLContext:
        """Raises OSError (SSLError is one) if a file cannot be used."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.cert is not None:
            context.load_cert_chain(self.cert, self.key)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["http/1.1"])
        return context


class Address:
    """A service's URL and the way to it. Holds no connection."""

    def __init__(self, url: str, tls: Tls | None = None) -> None:
        """Raises ValueError or TypeError, naming what is not allowed and never a secret."""
        if not isinstance(url, str):
            raise TypeError(f"the URL must be a string, {_EXAMPLE}, not {type(url).__name__}")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https", "unix"):
            # What is no URL may hold a password.
            given = "" if "@" in url else f", not {url!r}"
            raise ValueError(
                f"the URL must begin with http://, https:// or unix:{given}; {_EXAMPLE}"
            )
        if parts.username is not None or parts.password is not None:
            raise ValueError("the URL must not hold a user or password; use the headers option")
        if parts.query or parts.fragment:
            raise ValueError("the URL must not have a query or a fragment")
        self._tls = tls or Tls()
        self._context = self._tls.context
        self._stamp: object = None
        self.is_tls = parts.scheme == "https"
        if self._tls != Tls() and not self.is_tls:
            raise ValueError("ca, cert, key, verify and tls are for URLs that begin with https://")
        # The path of a socket of Unix, where it is one.
        self.socket_path: str | None = None
        self.host, self.port, self.prefix = "localhost", 0, ""
        if parts.scheme == "unix":
            if parts.netloc or not parts.path.startswith("/"):
                example = "such as unix:/run/checkpointd.sock"
                raise ValueError(f"the URL must have an absolute path, {example}")
            if not hasattr(socket, "AF_UNIX"):
                raise ValueError("this system has no sockets of Unix")
            self.socket_path = unquote(parts.path)
            self.authority = self.host
            self.text = f"unix:{self.socket_path}"
            return
        if not parts.hostname:
            raise ValueError(f"the URL has no host; give the service's, {_EXAMPLE}")
        self.host = parts.hostname
        self.port = port or (443 if self.is_tls else 80)
        # As the URL has it, without the port that its scheme stands for.
        self.authority = parts.netloc
        self.prefix = parts.path.rstrip("/")
        self.text = f"{parts.scheme}://{parts.netloc}{self.prefix}"
        # To know now that the files can be used.
        _ = self.context

    @property
    def context(self) -> ssl.SSLContext | None:
        """What TLS is made with; None without TLS. Raises OSError if a file cannot be used.

        Files that changed are read anew, since short-lived certificates are replaced.
        """
        if not self.is_tls or self._tls.context is not None:
            return self._context
        try:
            stamp = [_stamp_of(file) for file in self._tls.files]
            if self._context is None or stamp != self._stamp:
                self._context = self._tls.make_context()
                self._stamp = stamp
        except OSError:
            # They are being replaced. Until that is done the ones before are as good.
            if self._context is None:
                raise
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
        elif isinstance(error, FileNotFoundError):
            how = "there is no such socket; is the service started, and the path right?"
        elif isinstance(error, PermissionError):
            how = "this user may not connect to it"
        elif isinstance(error, ConnectionRefusedError):
            how = "nothing listens there; is the service started, and the port right?"
        elif isinstance(error, TimeoutError):
            how = "nothing answers there; is it the right host, and does a firewall let it through?"
        elif error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
            how = "there is no way to that host"
        elif isinstance(error, ConnectionError):
            how = "it closes connections; is the service behind it started, the port right?"
        told = CheckpointdError(
            "unavailable", f"cannot reach {self.text}: {how and how + ' '}({text})"
        )
        told.is_not_sent = True
        return told

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

    def wants_tls(self) -> CheckpointdError:
        """The error of a port that speaks TLS, where none is spoken."""
        text = f"{self.text} speaks TLS: begin the URL with https://"
        return NotTheService("failed_precondition", text)

    def no_http(self, data: bytes) -> CheckpointdError:
        """The error of an answer that is not even HTTP."""
        if data.startswith(b"\x15\x03"):
            return self.wants_tls()
        return NotTheService(
            "unimplemented",
            f"{self.text} is not a checkpointd service: it speaks no HTTP/1.1; is the port right?",
        )


def _stamp_of(file: str) -> tuple[int, ...]:
    status = os.stat(file)
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


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
