"""Whether a thread is of a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.types import TASKS

from .threads import Thread

INPUT = "__start__"


def needs_checkpoint(graph: Any, thread: Thread) -> bool:
    """Whether `find_foreign` has to see the thread's checkpoint."""
    if getattr(graph, "nodes", None) is None or _unknown_nodes(graph, thread):
        return False
    # What was sent to which node is only in the values.
    return thread.graph is None or TASKS in thread.pending_nodes


def find_foreign(graph: Any, thread: Thread, saved: CheckpointTuple | None) -> Exception | None:
    """What the thread's checkpoint names and the graph does not have; None if it may run it.

    LangGraph would run such a thread without a word: it takes no notice of nodes that it does not
    know, consumes what was for them, and marks the thread completed.

    Of a thread with the graph's name the nodes that wait count, and nothing else: it may have run
    nodes that later versions of the graph lack. Of one without a name everything counts.
    """
    if getattr(graph, "nodes", None) is None:
        return None
    unknown = _unknown_nodes(graph, thread)
    if saved is not None:
        unknown += _unknown_values(graph, thread, saved)
    if not unknown:
        return None
    named = "" if thread.graph is not None else ", and the thread carries no graph's name"
    return LookupError(
        f"thread {thread.thread_id!r} was left alone: the graph does not know "
        f"{', '.join(dict.fromkeys(unknown))}{named}"
    )


def _unknown_nodes(graph: Any, thread: Thread) -> list[str]:
    waiting = (it for it in thread.pending_nodes if it not in (TASKS, INPUT))
    return _missing("node", waiting, graph.nodes)


def _unknown_values(graph: Any, thread: Thread, saved: CheckpointTuple) -> list[str]:
    checkpoint, values = saved.checkpoint, saved.checkpoint["channel_values"]
    sent = _sent_to(values.get(TASKS))
    for _, channel, value in saved.pending_writes or ():
        if channel == TASKS:
            sent += _sent_to([value])
    unknown = _missing("node", sent, graph.nodes)
    if thread.graph is not None:
        return unknown
    channels = getattr(graph, "channels", None) or {}
    seen = (it for it in checkpoint["versions_seen"] if not it.startswith("__"))
    unknown += _missing("node", seen, graph.nodes)
    unknown += _missing("channel", checkpoint["channel_versions"], channels)
    if INPUT in thread.pending_nodes:
        names = _input_names(values.get(INPUT))
        if names is None or INPUT not in graph.nodes:
            unknown.append("its input")
        else:
            unknown += _missing("channel", names, channels)
    if not thread.pending_nodes:
        unknown.append("what waits in it")
    return unknown


def _missing(kind: str, names: Iterable[str], known: Mapping[str, Any]) -> list[str]:
    return [f'{kind} "{name}"' for name in names if name not in known]


def _input_names(value: Any) -> Iterable[str] | None:
    """What an input that waits sets; None if nobody can say."""
    if isinstance(value, Mapping):
        return [str(name) for name in value]
    # A dataclass, or a model of pydantic's.
    for names in ("__dataclass_fields__", "model_fields"):
        if isinstance(fields := getattr(type(value), names, None), Mapping):
            return list(fields)
    return None


def _sent_to(sends: Any) -> list[str]:
    """The nodes that LangGraph's sends are for."""
    if not isinstance(sends, (list, tuple)):
        return []
    nodes = (getattr(it, "node", None) for it in sends)
    return [it for it in nodes if isinstance(it, str)]
