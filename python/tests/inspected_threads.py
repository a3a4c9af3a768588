"""Threads for the page at /, made by real graphs: `python inspected_threads.py URL`.

src/server/inspector_python.test.ts runs it and looks at them in a browser.
"""

from __future__ import annotations

import contextlib
import enum
import sys
import uuid
from collections import deque
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import interrupt
from pydantic import BaseModel

from checkpointd import ConnectSaver


class Mood(enum.Enum):
    """An Enum."""

    CALM = "calm"
    CROSS = "cross"


@dataclass
class Trip:
    """A dataclass."""

    city: str
    days: int
    by: list[str] = field(default_factory=list)


class Person(BaseModel):
    """A model of pydantic."""

    name: str
    born: date
    mood: Mood = Mood.CALM


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    trip: Trip
    person: Person
    mood: Mood
    at: datetime
    tags: set[str]
    queue: Any
    raw: bytes
    big: int
    price: Decimal
    span: timedelta
    ident: uuid.UUID
    place: Path
    pair: tuple[int, str]
    by_number: dict[int, str]
    odd: Any
    note: str
    array: Any
    decision: Any


def values() -> dict[str, Any]:
    found: dict[str, Any] = {
        "trip": Trip("Rome", 3, ["train"]),
        "person": Person(name="Ada", born=date(1815, 12, 10)),
        "mood": Mood.CALM,
        "at": datetime(2026, 11, 26, 9, 30, tzinfo=timezone.utc),
        "tags": {"draft"},
        "queue": deque([1, 2]),
        "raw": b"\x00\xff\x10BYTES" * 50,
        "big": 2**62 + 1,
        "price": Decimal("12.50"),
        "span": timedelta(days=1, seconds=2),
        "ident": uuid.UUID(int=7),
        "place": Path("/srv/reports"),
        "pair": (1, "one"),
        "by_number": {1: "one", 2: "two"},
        "note": "Revenue grew by 4 %.",
    }
    try:
        import numpy  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return found
    return {**found, "array": numpy.arange(6, dtype="int32").reshape(2, 3)}


def agent(state: State) -> dict[str, Any]:
    if isinstance(state["messages"][-1], ToolMessage):
        return {"messages": [AIMessage("It rains in Rome.")], **values()}
    call = {"name": "look_up_weather", "args": {"city": "Rome"}, "id": "call_1"}
    content: list[str | dict[str, Any]] = [
        {"type": "reasoning", "reasoning": "I need the weather."},
        {"type": "text", "text": "I look it up."},
    ]
    return {"messages": [AIMessage(content=content, tool_calls=[call])]}


def tools(state: State) -> dict[str, Any]:
    return {"messages": [ToolMessage("no such city", tool_call_id="call_1", status="error")]}


def next_of(state: State) -> str:
    last = state["messages"][-1]
    return "tools" if isinstance(last, AIMessage) and last.tool_calls else "approve"


def approve(state: State) -> dict[str, Any]:
    trip = Trip("Rome", 4, ["train"])
    answer = interrupt({"question": "Book 4 days in Rome?", "trip": trip})
    return {"trip": trip, "tags": {"draft", "approved"}, "decision": answer}


def fail(state: State) -> dict[str, Any]:
    raise ValueError("no train to Rome")


def build(saver: ConnectSaver) -> Any:
    graph = StateGraph(State)
    graph.add_node("agent", agent)
    graph.add_node("tools", tools)
    graph.add_node("approve", approve)
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", next_of, ["tools", "approve"])
    graph.add_edge("tools", "agent")
    return graph.compile(checkpointer=saver)


def main(url: str) -> None:
    saver = ConnectSaver(url)
    config: RunnableConfig = {"configurable": {"thread_id": "python/trip"}}
    graph = build(saver)
    graph.invoke({"messages": [HumanMessage("Is it dry in Rome?")]}, config)
    # The same, asked otherwise: a fork of the first step.
    first = list(graph.get_state_history(config))[-2].config
    graph.invoke({"messages": [HumanMessage("And in Bern?")]}, first)
    failing = StateGraph(State).add_node("fail", fail).add_edge(START, "fail")
    failed: RunnableConfig = {"configurable": {"thread_id": "python/failed"}}
    with contextlib.suppress(ValueError):
        failing.compile(checkpointer=saver).invoke({"note": "on the way"}, failed)
    # What no serializer of the page's reads: Python's pickle.
    pickling = ConnectSaver(url, serde=JsonPlusSerializer(pickle_fallback=True))
    odd = StateGraph(State).add_node("odd", lambda state: {"odd": Unpackable()})
    pickled: RunnableConfig = {"configurable": {"thread_id": "python/pickled"}}
    odd.add_edge(START, "odd").compile(checkpointer=pickling).invoke({"note": "x"}, pickled)
    saver.close()
    pickling.close()


class Unpackable:
    """What msgpack cannot say."""


if __name__ == "__main__":
    main(sys.argv[1])
