"""One call of the Connect protocol on an HTTP/1.1 connection, without I/O.

For what no session carries: the streams, and everything where no session can be had.
"""

from __future__ import annotations

import json
import re

from .address import Address
from .credential import Headers
from .errors import CheckpointdError, broken, end_error, from_json
from .wire import END_OF_STREAM, HEAD, Envelopes


class Exchange:
    """A request and what comes back. Write `request`; `feed` what is read until it is `done`."""

    def __init__(
        self,
        address: Address,
        method: str,
        message: bytes,
        headers: Headers,
        *,
        is_stream: bool,
        timeout: float | None,
    ) -> None:
        kind = "application/connect+proto" if is_stream else "application/proto"
        if is_stream:
            message = HEAD.pack(0, len(message)) + message
        lines = [
            f"POST {address.prefix}/checkpointd.v1.{method} HTTP/1.1",
            f"Host: {address.authority}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(message)}",
            "Connect-Protocol-Version: 1",
            *(f"{name}: {value}" for name, value in headers),
        ]
        if timeout is not None:
            lines.append(f"Connect-Timeout-Ms: {max(1, int(timeout * 1000))}")
        self.request = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + message
        self.done = False
        self._address = address
        self._is_stream = is_stream
        self._kind = kind
        self._buffer = bytearray()
        self._headers: dict[str, str] | None = None
        self._status = 0
        self._left: int | None = None
        self._is_chunked = False
        self._body: list[bytes] = []
        self._envelopes = Envelopes()
        self._ended = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The messages that the bytes complete. Raises the error that the call ends with."""
        self._buffer += chunk
        if self._headers is None and not self._read_head():
            return []
        messages: list[bytes] = []
        for part in self._read_body():
            if self._is_stream and self._is_ours:
                self._read_messages(part, messages)
            else:
                self._body.append(part)
        if self.done:
            self._finish(messages)
        return messages

    def feed_end(self) -> list[bytes]:
        """The connection ended. As `feed`."""
        if self._headers is not None and self._left is None and not self._is_chunked:
            self.done = True
            messages: list[bytes] = []
            self._finish(messages)
            return messages
        raise broken("the connection was closed before the answer was complete")

    @property
    def _is_ours(self) -> bool:
        kind = (self._headers or {}).get("content-type", "").split(";")[0].strip().lower()
        return self._status == 200 and kind == self._kind

    def _read_head(self) -> bool:
        while True:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not b"HTTP/1.".startswith(bytes(head[:7])) or (not found and len(head) > 64 * 1024):
                raise self._address.no_http(bytes(self._buffer))
            if not found:
                return False
            status, *lines = head.decode("latin-1").split("\r\n")
            words = status.split(" ", 2)
            self._status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
            self._buffer = rest
            # 100 Continue and its like come before the answer.
            if not 100 <= self._status < 200:
                break
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        self._headers = headers
        self._is_chunked = headers.get("transfer-encoding", "").lower().endswith("chunked")
        if not self._is_chunked and headers.get("content-length", "").isdigit():
            self._left = int(headers["content-length"])
        return True

    def _read_body(self) -> list[bytes]:
        if not self._is_chunked:
            part = bytes(self._buffer)
            self._buffer.clear()
            if self._left is not None:
                self._left -= len(part)
                self.done = self._left <= 0
            return [part]
        # Chunk by chunk: a service makes one of each message.
        parts: list[bytes] = []
        at, buffer = 0, self._buffer
        while (line_end := buffer.find(b"\r\n", at)) >= 0:
            try:
                size = int(buffer[at:line_end].split(b";")[0], 16)
            except ValueError:
                raise broken("the answer's chunks cannot be read") from None
            start = line_end + 2
            if size == 0:
                # Trailers may follow, and an empty line does.
                end = buffer.find(b"\r\n\r\n", line_end)
                self.done = end >= 0
                at = end + 4 if self.done else at
                break
            if len(buffer) < start + size + 2:
                break
            parts.append(bytes(buffer[start : start + size]))
            at = start + size + 2
        del buffer[:at]
        return parts

    def _read_messages(self, part: bytes, messages: list[bytes]) -> None:
        for flags, payload in self._envelopes.feed(part):
            if not flags & END_OF_STREAM:
                messages.append(payload)
                continue
            error = end_error(payload)
            if error:
                raise error
            self._ended = True

    def _finish(self, messages: list[bytes]) -> None:
        if self._is_ours:
            if not self._is_stream:
                messages.append(b"".join(self._body))
            elif not self._ended:
                raise broken("the stream ended before its end")
            return
        raise self._error()

    def _error(self) -> CheckpointdError:
        headers = self._headers or {}
        kind = headers.get("content-type", "")
        body = b"".join(self._body)
        if kind.startswith("application/json") and self._status != 200:
            try:
                told = json.loads(body)
            except ValueError:
                told = None
            if isinstance(told, dict) and "code" in told:
                error = from_json(told, headers.get("x-request-id", ""))
                if error.code == "unimplemented":
                    return self._address.foreign(404, kind, "")
                return error
        # As our server says it, nginx and Go.
        if self._status == 400 and re.search(b"speaks TLS|HTTPS port|HTTPS server", body):
            return self._address.wants_tls()
        return self._address.foreign(self._status, kind, headers.get("retry-after", ""))
