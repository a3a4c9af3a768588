"""A real service with a Postgres of its own, for all tests of a run."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from checkpointd import ConnectSaver

MAIN = Path(__file__).parents[2] / "dist/src/cli/main.js"


class Service:
    """`checkpointd serve` in a process of its own, on a port that it keeps when it starts anew."""

    def __init__(self, *flags: str, port: int = 0, env: dict[str, str] | None = None) -> None:
        self.flags = flags
        self.env = {**os.environ, **(env or {})}
        self.start(port)

    def start(self, port: int) -> None:
        self.log = tempfile.NamedTemporaryFile("r+", suffix=".log")  # noqa: SIM115
        self.process = subprocess.Popen(
            ["node", str(MAIN), "serve", "--port", str(port), *self.flags],
            stdout=self.log.fileno(),
            stderr=subprocess.STDOUT,
            env=self.env,
        )
        until = time.monotonic() + 120
        while "checkpointd is ready" not in self.output():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < until, self.output()
            time.sleep(0.05)
        self.url = re.search(r"listens on (\S+)", self.output())[1]
        self.port = int(self.url.rsplit(":", 1)[1])

    def output(self) -> str:
        return Path(self.log.name).read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    assert MAIN.exists(), "build the service first: npm run build"
    folder = tempfile.mkdtemp(prefix="checkpointd-python-")
    running = Service("--data-dir", folder, env={"DATABASE_URL": ""})
    password = Path(folder, "password").read_text().strip()
    port = re.search(r"psql -h 127.0.0.1 -p (\d+)", running.output())[1]
    running.dsn = f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def saver(service: Service) -> Iterator[ConnectSaver]:
    with ConnectSaver(service.url) as made:
        yield made


@pytest.fixture
def thread() -> str:
    return f"thread-{uuid4()}"


@pytest.fixture
def sql(service: Service) -> Iterator[psycopg.Connection]:
    """The service's database."""
    with psycopg.connect(service.dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def named(service: Service, thread: str) -> Iterator[ConnectSaver]:
    """A saver whose graph's name no other test has."""
    with ConnectSaver(service.url, graph=f"graph of {thread}") as made:
        yield made
