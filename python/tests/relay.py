"""What may stand between an agent and the service."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading


class Relay:
    """Passes bytes on to a port, and does to them what a test asks for."""

    def __init__(self, target: int, *, tls: ssl.SSLContext | None = None) -> None:
        self.target = target
        self.tls = tls
        self.allows_upgrades = True
        self.frozen: set[socket.socket] = set()
        self.connections: list[tuple[socket.socket, socket.socket]] = []
        self.heads: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http{'s' if tls else ''}://localhost:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        """The connections there are pass nothing on any more, and do not end either."""
        for pair in self.connections:
            self.frozen.update(pair)

    def cut(self) -> None:
        """Ends the connections there are."""
        for pair in self.connections:
            for each in pair:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        self.connections.clear()

    def close(self) -> None:
        self.listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._begin, args=(near,), daemon=True).start()

    def _begin(self, near: socket.socket) -> None:
        try:
            if self.tls:
                near = self.tls.wrap_socket(near, server_side=True)
            head = near.recv(65536)
            self.heads.append(head)
            if b"Upgrade:" in head and not self.allows_upgrades:
                head = re.sub(rb"(Connection: Upgrade|Upgrade: [^\r]*)\r\n", b"", head)
            far = socket.create_connection(("127.0.0.1", self.target))
            self.connections.append((near, far))
            far.sendall(head)
        except OSError:
            near.close()
            return
        threading.Thread(target=self._pass, args=(far, near), daemon=True).start()
        self._pass(near, far)

    def _pass(self, source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if source not in self.frozen:
                    to.sendall(data)
            to.shutdown(socket.SHUT_WR)
