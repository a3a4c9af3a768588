"""An agent's spans go on to the service, by sessions and by calls of their own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import Service
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.graph import END, START, StateGraph
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from typing_extensions import TypedDict

from checkpointd import CheckpointdError, ConnectSaver

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
tracer = provider.get_tracer("app")


class Collector:
    """Takes what the service exports."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = b""
                # In chunks, of unknown length in all.
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                bodies.append(body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def has_child_of(self, span: ReadableSpan, name: str) -> bool:
        """Whether a span of that name came whose parent is this one: by their bytes in OTLP."""
        trace_id = span.context.trace_id.to_bytes(16, "big")
        parent = b"\x22\x08" + span.context.span_id.to_bytes(8, "big")
        wanted = parent + b"\x2a" + bytes([len(name)]) + name.encode()
        return any(wanted in body and trace_id in body for body in self.bodies)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()


@pytest.fixture(scope="module")
def traced(service: Service, collector: Collector) -> Iterator[Service]:
    env = {
        "DATABASE_URL": service.dsn,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server.server_port}",
        "OTEL_BSP_SCHEDULE_DELAY": "20",
        "CHECKPOINTD_TRACE_LIMIT": "1000000",
    }
    running = Service(env=env)
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def application() -> Iterator[None]:
    """An application that has set OpenTelemetry up."""
    trace._TRACER_PROVIDER_SET_ONCE._done = False
    trace.set_tracer_provider(provider)
    exporter.clear()
    yield
    trace._TRACER_PROVIDER = None


def put(saver: ConnectSaver, thread: str) -> None:
    config = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
    saver.put(config, empty_checkpoint(), {"source": "loop", "step": 1}, {})


def told(name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name.endswith(f"/{name}")]


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def without_sessions(saver: ConnectSaver) -> None:
    async def none(*_: object) -> None:
        return None

    saver._client._session = lambda *_: None  # type: ignore[method-assign]
    saver._client._asession = none  # type: ignore[method-assign]


@pytest.mark.parametrize("sessions", [True, False])
def test_a_call_is_a_span_above_the_services(
    traced: Service, collector: Collector, thread: str, sessions: bool
) -> None:
    with ConnectSaver(traced.url) as saver:
        if not sessions:
            without_sessions(saver)
        with tracer.start_as_current_span("agent") as agent:
            put(saver, thread)
            asyncio.run(saver.aget_tuple({"configurable": {"thread_id": thread}}))
            assert [each.thread_id for each in saver.threads.list()]
    for name in ("Put", "GetTuple", "ListThreads"):
        (span,) = told(name)
        assert span.kind is trace.SpanKind.CLIENT
        assert span.parent is not None
        assert span.parent.span_id == agent.get_span_context().span_id
        assert span.attributes is not None
        assert span.attributes["rpc.method"] == span.name
        assert span.attributes["server.port"] == traced.port
        if name != "ListThreads":
            assert span.attributes["gen_ai.conversation.id"] == thread
        until(lambda span=span: collector.has_child_of(span, span.name))


@pytest.mark.parametrize("is_async", [False, True])
def test_a_graphs_run_is_one_trace(
    traced: Service, collector: Collector, thread: str, is_async: bool
) -> None:
    class State(TypedDict):
        log: list[str]

    graph = StateGraph(State)
    graph.add_node("one", lambda _: {"log": ["one"]})
    graph.add_edge(START, "one")
    graph.add_edge("one", END)
    config = {"configurable": {"thread_id": thread}}
    with ConnectSaver(traced.url) as saver:
        compiled = graph.compile(checkpointer=saver)
        with tracer.start_as_current_span("agent") as agent:
            if is_async:
                asyncio.run(compiled.ainvoke({"log": []}, config))
            else:
                compiled.invoke({"log": []}, config)
    puts = told("Put")
    assert len(puts) == 3
    for span in puts:
        assert span.context.trace_id == agent.get_span_context().trace_id
        until(lambda span=span: collector.has_child_of(span, span.name))


def test_a_put_of_what_is_new_is_a_put(traced: Service, collector: Collector, thread: str) -> None:
    config = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
    with ConnectSaver(traced.url) as saver, tracer.start_as_current_span("agent"):
        for version, value in (("1", ["x" * 20_000]), ("2", ["x" * 20_000, "y"])):
            checkpoint = empty_checkpoint()
            checkpoint["channel_values"] = {"a": value}
            checkpoint["channel_versions"] = {"a": version}
            config = saver.put(config, checkpoint, {"source": "loop", "step": 1}, {"a": version})
    _, second = told("Put")
    assert second.attributes is not None
    assert second.attributes["gen_ai.conversation.id"] == thread
    until(lambda: collector.has_child_of(second, "checkpointd.v1.SessionService/PutExtending"))


def test_without_a_span_nothing_is_sent(traced: Service, thread: str) -> None:
    with ConnectSaver(traced.url) as saver:
        put(saver, thread)
    assert exporter.get_finished_spans() == ()


def test_what_is_not_sampled_is_told_so(traced: Service, collector: Collector, thread: str) -> None:
    silent = TracerProvider(sampler=ALWAYS_OFF).get_tracer("app")
    with ConnectSaver(traced.url) as saver:
        with silent.start_as_current_span("agent") as agent:
            put(saver, thread)
        with tracer.start_as_current_span("agent"):
            put(saver, f"{thread}-loud")
        (span,) = told("Put")
        until(lambda: collector.has_child_of(span, span.name))
    trace_id = agent.get_span_context().trace_id.to_bytes(16, "big")
    assert not any(trace_id in body for body in collector.bodies)


def test_an_error_is_the_spans(traced: Service) -> None:
    with ConnectSaver(traced.url) as saver, tracer.start_as_current_span("agent"):
        with pytest.raises(CheckpointdError):
            saver.get_tuple({"configurable": {"thread_id": "x" * 70_000}})
        (span,) = told("GetTuple")
        assert span.status.status_code is trace.StatusCode.ERROR
        assert span.attributes is not None
        assert span.attributes["rpc.status_code"] == "invalid_argument"
        for _ in saver.threads.list():
            break
        until(lambda: len(told("ListThreads")) == 1)
        assert told("ListThreads")[0].status.is_ok


def test_no_call_fails_for_what_is_set_up(
    traced: Service, thread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    with ConnectSaver(traced.url) as saver, tracer.start_as_current_span("agent"):
        monkeypatch.setattr(trace, "get_tracer", fail)
        put(saver, thread)


def test_calls_are_made_where_there_is_no_opentelemetry(traced: Service, thread: str) -> None:
    script = f"""
import sys
sys.modules["opentelemetry"] = None
from checkpointd import ConnectSaver
with ConnectSaver({traced.url!r}) as saver:
    print(saver.get_tuple({{"configurable": {{"thread_id": {thread!r}}}}}))
"""
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True
    )
    assert output.stdout.strip() == "None"
