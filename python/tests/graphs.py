"""Graphs of each kind that stores in a way of its own, and what is done with each."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, Send, interrupt


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]
    count: int
    text: str
    ratio: float
    flag: bool
    nothing: None
    item: Any


def node(name: str, **more: Any) -> Any:
    return lambda state: {"log": [name], **more}


def sends() -> StateGraph:
    graph = StateGraph(State)
    graph.add_node("plan", node("plan", count=3, text="größer 🎉", ratio=0.5, flag=True))
    graph.add_node("work", lambda state: {"log": [f"work {state['item']}"]})
    graph.add_node("end", node("end", nothing=None))
    graph.add_edge(START, "plan")
    graph.add_conditional_edges(
        "plan", lambda state: [Send("work", {"item": n}) for n in range(12)]
    )
    graph.add_edge("work", "end")
    return graph


def join() -> StateGraph:
    graph = StateGraph(State)
    for name in "abcd":
        graph.add_node(name, node(name, **({"item": {"by": [name]}} if name == "a" else {})))
    graph.add_edge(START, "a")
    graph.add_edge(START, "b")
    graph.add_edge("b", "c")
    graph.add_edge(["a", "c"], "d")
    return graph


def defer() -> StateGraph:
    graph = StateGraph(State)
    for name in "abc":
        graph.add_node(name, node(name))
    graph.add_node("last", node("last"), defer=True)
    graph.add_edge(START, "a")
    graph.add_edge("a", "b")
    graph.add_edge("a", "last")
    graph.add_edge("b", "c")
    graph.add_edge("c", "last")
    graph.add_edge("last", END)
    return graph


def subgraph() -> StateGraph:
    inner = StateGraph(State)
    inner.add_node("ask", lambda state: {"log": [f"answer {interrupt({'question': 1})}"]})
    inner.add_node("after", node("after"))
    inner.add_edge(START, "ask")
    inner.add_edge("ask", "after")
    graph = StateGraph(State)
    graph.add_node("before", node("before", count=1))
    graph.add_node("inner", inner.compile())
    graph.add_node("beside", node("beside"))
    graph.add_edge(START, "before")
    graph.add_edge("before", "inner")
    graph.add_edge("before", "beside")
    return graph


failures: set[str] = set()


def failing() -> StateGraph:
    def fail(state: State) -> Any:
        if state["text"] not in failures:
            failures.add(state["text"])
            raise ValueError("the first time")
        return {"log": ["went well"]}

    graph = StateGraph(State)
    graph.add_node("fine", node("fine"))
    graph.add_node("fails", fail)
    graph.add_node("end", node("end"))
    graph.add_edge(START, "fine")
    graph.add_edge(START, "fails")
    graph.add_edge("fails", "end")
    return graph


class Chat(TypedDict):
    messages: Annotated[list[Any], add_messages]


def chat() -> StateGraph:
    def say(state: Chat) -> Any:
        call = {"name": "add", "args": {"a": 1}, "id": "c1"}
        count = len(state["messages"])
        return {"messages": [AIMessage("hm", id=f"ai{count}", tool_calls=[call])]}

    def tool(state: Chat) -> Any:
        return {
            "messages": [ToolMessage("2", tool_call_id="c1", id=f"tool{len(state['messages'])}")]
        }

    graph = StateGraph(Chat)
    graph.add_node("say", say)
    graph.add_node("tool", tool)
    graph.add_edge(START, "say")
    graph.add_edge("say", "tool")
    return graph


class Growing(TypedDict):
    items: Annotated[
        list[Any],
        DeltaChannel(
            lambda state, writes: [*state, *(it for write in writes for it in write)],
            list,
            snapshot_frequency=3,
        ),
    ]


def delta() -> StateGraph:
    graph = StateGraph(Growing)
    for at in range(5):
        graph.add_node(f"n{at}", lambda state, at=at: {"items": [at, {"deep": [at]}]})
        graph.add_edge(START if at == 0 else f"n{at - 1}", f"n{at}")
    return graph


def first(name: str) -> Any:
    """What a run of the graph begins with."""
    if name == "chat":
        return {"messages": [HumanMessage("hello", id="h1")]}
    if name == "delta":
        return {"items": ["in"]}
    return {"log": ["in"], "text": name}


def then(name: str, at: int) -> Any:
    """What the run after it goes on with."""
    if name == "subgraph" and at == 0:
        return Command(resume={"yes": True})
    if name == "failing" and at == 0:
        return None
    if name == "chat":
        return {"messages": [HumanMessage(f"and {at}", id=f"h{at + 2}")]}
    if name == "delta":
        return {"items": [f"more {at}"]}
    return {"log": [f"more {at}"]}


KINDS = {it.__name__: it for it in (sends, join, defer, subgraph, failing, chat, delta)}

# The node as which a fork goes on.
BEGINS = {
    "sends": "plan",
    "join": "a",
    "defer": "a",
    "subgraph": "before",
    "failing": "fails",
    "chat": "say",
    "delta": "n0",
}
