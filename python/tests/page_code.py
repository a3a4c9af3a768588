"""Makes a thread, or runs code that the page gave, as somebody who pastes it beside a graph.

`page_code.py make URL TOKEN THREAD`, `page_code.py run FILE TOKEN`. An empty token is none.
"""

from __future__ import annotations

import operator
import os
import sys
from pathlib import Path
from typing import Annotated, TypedDict

from langgraph.graph import START, StateGraph
from langgraph.types import interrupt

from checkpointd import ConnectSaver


class State(TypedDict, total=False):
    log: Annotated[list[str], operator.add]


builder = StateGraph(State)
builder.add_node("draft", lambda _: {"log": ["draft"]})
builder.add_node("ask", lambda _: {"log": [interrupt({"question": "Publish?"})]})
builder.add_edge(START, "draft").add_edge("draft", "ask")


def make(url: str, token: str, thread: str) -> None:
    with ConnectSaver(url, token=token or None, graph="page") as saver:
        graph = builder.compile(checkpointer=saver)
        graph.invoke({"log": ["in"]}, {"configurable": {"thread_id": thread}})


def run(file: str, token: str) -> None:
    os.environ["CHECKPOINTD_TOKEN"] = token
    exec(compile(Path(file).read_text(), file, "exec"), {"builder": builder})


if __name__ == "__main__":
    {"make": make, "run": run}[sys.argv[1]](*sys.argv[2:])
