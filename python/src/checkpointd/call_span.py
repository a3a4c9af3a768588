"""Spans of an agent's calls, where its application uses OpenTelemetry and a span is active.

Nothing is imported for it: who has an active span has imported `opentelemetry.trace`.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from google.protobuf.message import Message

from .address import Address
from .credential import Headers
from .errors import CheckpointdError, NotCarried
from .messages import OpenSessionRequest

# Longer ones are not heeded by the service.
_MOST_TRACESTATE = 512
_MOST_THREAD = 256


class CallSpan:
    """The span of one try of a call: a context that ends it, with the error if there is one."""

    __slots__ = ("_span", "_trace", "fields", "headers")

    def __init__(self, trace: Any, span: Any, traceparent: str, tracestate: str) -> None:
        self._trace = trace
        self._span = span
        # What is added to an operation of a session, and to a call of its own.
        self.fields = OpenSessionRequest(
            traceparent=traceparent, tracestate=tracestate
        ).SerializeToString()
        headers = (("traceparent", traceparent), ("tracestate", tracestate))
        self.headers: Headers = headers if tracestate else headers[:1]

    def __enter__(self) -> CallSpan:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end(error)

    def end(self, error: BaseException | None = None) -> None:
        """Ends it. Does nothing the second time."""
        span = self._span
        if not span.is_recording():
            return
        # What was not carried is on another carrier; a reader that leaves a stream is no error.
        if error is not None and not isinstance(error, (NotCarried, GeneratorExit)):
            kind = type(error).__name__
            if isinstance(error, CheckpointdError):
                kind = error.code
                span.set_attribute("rpc.status_code", kind)
            span.set_attribute("error.type", kind)
            span.set_status(self._trace.StatusCode.ERROR)
        span.end()


def begin(method: str, request: Message, address: Address) -> CallSpan | None:
    """The span of a call that begins; None unless one is active in the application."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    try:
        if not trace.get_current_span().get_span_context().is_valid:
            return None
        name = f"checkpointd.v1.{method}"
        attributes: dict[str, Any] = {
            "rpc.system.name": "connectrpc",
            "rpc.method": name,
            "server.address": address.socket_path or address.host,
        }
        if address.socket_path is None:
            attributes["server.port"] = address.port
        thread = _thread_of(request)
        if thread:
            attributes["gen_ai.conversation.id"] = thread[:_MOST_THREAD]
        tracer = trace.get_tracer("checkpointd")
        span = tracer.start_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes)
        context = span.get_span_context()
        if not context.is_valid:
            return None
        traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}"
        tracestate = context.trace_state.to_header()
        return CallSpan(
            trace,
            span,
            f"{traceparent}-{context.trace_flags & 1:02x}",
            tracestate if len(tracestate) <= _MOST_TRACESTATE else "",
        )
    except Exception:
        # Whatever the application has set up, a call does not fail for it.
        return None


def _thread_of(request: Any) -> str:
    """The thread that a request, or an operation of a session, is about, where it is one."""
    if isinstance(request, OpenSessionRequest):
        request = getattr(request, request.WhichOneof("operation") or "cancel")
    for field in ("thread_id", "source_thread_id"):
        if field in request.DESCRIPTOR.fields_by_name:
            return str(getattr(request, field))
    for field in ("put", "list"):
        if field in request.DESCRIPTOR.fields_by_name:
            return str(getattr(request, field).thread_id)
    return ""
