"""One worker: a process of its own that takes one thread of the pipeline one run further.

    python worker.py start                       begin the thread with the demo's brief
    python worker.py resume '{"verdict": ...}'   answer the human's interrupt
    python worker.py continue [checkpoint_id]    go on where the thread, or a fork of it, stands
    python worker.py recover                     finish what a worker that was killed left of it

Prints where the thread stands then. Exit code 0: the run ended, or waits for a human.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pickle
import threading
from pathlib import Path
from typing import Any

from brief import create_brief
from graph import GRAPH, create_pipeline
from langgraph.types import Command

from checkpointd import ConnectSaver, recover_threads


def main() -> None:
    """Does what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("command", choices=("start", "resume", "continue", "recover"))
    parser.add_argument("argument", nargs="?")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="of the service")
    parser.add_argument("--thread", default="launch")
    parser.add_argument("--async", action="store_true", dest="is_async", help="by ainvoke")
    parser.add_argument("--hang-at", help="a scene, whose visual prompt then never answers")
    parser.add_argument("--journal", type=Path, help="to which each execution of a node is added")
    parser.add_argument("--result", type=Path, help="where the state in memory goes, pickled")
    options = parser.parse_args()

    def record(step: str, event: str) -> None:
        if options.journal:
            # One write, which a SIGKILL cannot lose.
            line = json.dumps([os.getpid(), step, event]) + "\n"
            with options.journal.open("a") as file:
                file.write(line)

    def before_scene(scene: str) -> None:
        if scene == options.hang_at:
            threading.Event().wait()

    saver = ConnectSaver(options.url, graph=GRAPH)
    pipeline = create_pipeline(saver, record, before_scene)
    config: Any = {"configurable": {"thread_id": options.thread}}
    if options.command == "recover":
        # As a recovery worker does for all threads of the graph, here for one. No grace: the demo
        # knows that the worker before is dead.
        summary = recover_threads(saver, pipeline, prefix=options.thread, grace=0)
        if summary.resumed != 1:
            raise SystemExit(f"nothing was recovered: {summary}")
        state = pipeline.get_state(config).values
    else:
        given: Any = None
        if options.command == "start":
            given = {"brief": create_brief()}
        elif options.command == "resume":
            given = Command(resume=json.loads(options.argument))
        elif options.argument:
            config["configurable"]["checkpoint_id"] = options.argument
        if options.is_async:
            state = asyncio.run(pipeline.ainvoke(given, config))
        else:
            state = pipeline.invoke(given, config)
    waits = [it.value for it in state.pop("__interrupt__", ())]
    if options.result:
        options.result.write_bytes(pickle.dumps((state, waits)))
    print(waits[0] if waits else state["report"]["summary"])


if __name__ == "__main__":
    main()
