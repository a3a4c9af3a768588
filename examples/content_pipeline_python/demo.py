"""The demo: one campaign goes through the pipeline in five processes, one of which is killed.

And then into its own past. Needs a service: the one of CHECKPOINTD_URL, or on port 8080 of this
machine. Exit code 0: all of it was so. Leaves no thread behind.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

from brief import APPROVE, REVISE, WHAT_IF, Decision, create_brief
from graph import GRAPH, State, create_pipeline
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from checkpointd import ConnectSaver

HANGING = "crust"
"""The scene that hangs when worker 3 is killed."""

held = 0


def expect_equal(what: str, found: object, expected: object) -> None:
    """Says so if it is, and ends the demo if it is not."""
    global held
    if found != expected:
        raise SystemExit(f"   ✗ “{what}” does not hold:\nfound    {found}\nexpected {expected}")
    held += 1
    print(f"   ✓ {what}")


class Stage:
    """What the chapters share: a saver of this process, and workers in theirs, on one thread."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.thread = f"hearth-mini-python-{uuid4().hex[:8]}"
        self.config: Any = {"configurable": {"thread_id": self.thread}}
        self.saver = ConnectSaver(url, graph=GRAPH)
        self.pipeline = create_pipeline(self.saver)
        self.journal = folder / "journal.jsonl"
        self.result = folder / "result.pickle"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A worker process."""
        command = [sys.executable, str(Path(__file__).with_name("worker.py")), *arguments]
        where = ["--url", self.url, "--thread", self.thread]
        files = ["--journal", str(self.journal), "--result", str(self.result)]
        return subprocess.Popen(
            [*command, *where, *files],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, name: str, *arguments: str) -> tuple[State, list[Any]]:
        """Runs a worker to its end; returns the state, which is here what it was there."""
        worker = self.start(*arguments)
        _, errors = worker.communicate(timeout=120)
        if worker.returncode:
            raise SystemExit(f"{name} ended with code {worker.returncode}:\n{errors}")
        remembered, waits = pickle.loads(self.result.read_bytes())
        values = self.pipeline.get_state(self.config).values
        expect_equal(f"this process reads the state that {name} had in memory", values, remembered)
        return values, waits

    def steps(self, worker: int | None = None) -> list[tuple[str, str]]:
        """What the journal says: steps and events, of all or of one process."""
        lines = [json.loads(it) for it in self.journal.read_text().splitlines()]
        return [(step, event) for pid, step, event in lines if worker in (None, pid)]


def pause_for_human(stage: Stage) -> None:
    """Chapter 1."""
    print("\n1. Worker 1 drafts until a human has to decide, and exits")
    state, waits = stage.finish("worker 1", "start")
    scores = [it["score"] for it in state["critiques"]]
    expect_equal("the critique sent two drafts back and let the third pass", scores, [40, 75, 100])
    question = {
        "question": "Does this campaign go out?",
        "headline": state["draft"]["headline"],
        "score": 100,
        "opens_with": "The cold kitchen",
    }
    expect_equal("the thread waits for the human, with its question", waits, [question])
    thread = stage.saver.threads.get(stage.thread)
    expect_equal("and says so in the list", thread and thread.status, "interrupted")


def revise_in_another_process(stage: Stage) -> None:
    """Chapter 2."""
    print("\n2. Worker 2, another process, brings the answer: revise")
    print(f"   {REVISE['by']}: “{REVISE['note']}”")
    state, _ = stage.finish("worker 2", "resume", json.dumps(REVISE))
    opens = state["draft"]["scenes"][0]["id"]
    expect_equal("the film now opens with her scene", opens, REVISE["lead_with"])
    expect_equal("one decision is on record", state["decisions"], [REVISE])


def kill_in_the_middle(stage: Stage, scenes: int) -> None:
    """Chapter 3."""
    print("\n3. Worker 3 brings the approval and is killed in the middle of a step")
    print(f"   {APPROVE['by']}: “{APPROVE['note']}”")
    worker = stage.start("resume", json.dumps(APPROVE), "--hang-at", HANGING)
    stored: set[str] = set()
    until = time.monotonic() + 60
    while len(stored) < scenes - 1 and worker.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
        found = stage.saver.get_tuple(stage.config)
        writes = (found and found.pending_writes) or []
        stored = {task for task, channel, _ in writes if channel == "visuals"}
    print(f"   the service holds the writes of {len(stored)} scenes: SIGKILL to {worker.pid}")
    worker.kill()
    _, errors = worker.communicate(timeout=60)
    expect_equal("worker 3 was killed, and said nothing", (worker.returncode, errors), (-9, ""))
    steps = stage.steps(worker.pid)
    done = [step for step, event in steps if event == "done" and step.startswith("visual")]
    expect_equal(
        f"{scenes - 1} scenes were done and stored, “{HANGING}” was begun only",
        (len(stored), len(done), (f"visual_prompt of {HANGING}", "start") in steps),
        (scenes - 1, scenes - 1, True),
    )


def finish_what_is_left(stage: Stage, reference: State) -> State:
    """Chapter 4."""
    print("\n4. Worker 4 recovers what was left, under a lease")
    before = len(stage.steps())
    state, _ = stage.finish("worker 4", "recover")
    ran = [step for step, event in stage.steps()[before:] if event == "start"]
    expected = [f"visual_prompt of {HANGING}", "analyst"]
    expect_equal("only the interrupted scene ran again, then the analyst", ran, expected)
    done = Counter(step.split()[0] for step, event in stage.steps() if event == "done")
    expected_times = {"strategist": 4, "critique": 4, "approval": 2, "analyst": 1}
    expected_times["visual_prompt"] = len(reference["visuals"])
    expect_equal("no node did the same work twice", dict(done), expected_times)
    expect_equal("the end equals that of a run in memory, never interrupted", state, reference)
    return state


def fork_the_past(stage: Stage, finished: State, reference: State) -> None:
    """Chapter 5."""
    print("\n5. Back to the first question: what if sales had approved draft 3?")
    print(f"   {WHAT_IF['by']}: “{WHAT_IF['note']}”")
    end = stage.pipeline.get_state(stage.config)
    fork = stage.pipeline.update_state(
        first_approval(stage.pipeline, stage.config), {"decisions": [WHAT_IF]}, "approval"
    )
    # On an event loop, with the same saver. (Not where a node waits for a human: before Python 3.11
    # LangGraph's interrupt() does not work there.)
    past = fork["configurable"]["checkpoint_id"]
    state, _ = stage.finish("worker 5", "continue", past, "--async")
    expect_equal("the fork holds its own decision only", state["decisions"], [WHAT_IF])
    expect_equal("its end equals that of the same fork in memory", state, reference)
    original = stage.pipeline.get_state(end.config).values
    expect_equal("the original branch is what it was, value for value", original, finished)
    for name, it in (("original", original), ("fork", state)):
        print(f"   {name}: {it['report']['summary']} ({it['report']['approved_by']})")


def look_back(stage: Stage, finished: State, reference: list[Any]) -> None:
    """Chapter 6."""
    print("\n6. The history, and what the values are")
    history = list(stage.saver.list(stage.config))
    steps = [(it.metadata["source"], it.metadata["step"]) for it in history]
    expect_equal(f"{len(history)} checkpoints, the same steps as in memory", steps, reference)
    kinds = {
        "a time": type(finished["draft"]["schedule"]["newsletter"]).__name__,
        "a set": type(finished["draft"]["repaired"]).__name__,
        "bytes": type(finished["visuals"]["crust"]["cache_key"]).__name__,
    }
    expected = {"a time": "datetime", "a set": "set", "bytes": "bytes"}
    expect_equal("times, sets and bytes are what they were", kinds, expected)
    stage.saver.delete_thread(stage.thread)
    expect_equal("the thread is deleted", list(stage.saver.list(stage.config)), [])


def run_uninterrupted() -> tuple[State, State, list[Any]]:
    """The run that the others are compared with: one process, in memory.

    How each branch ends, and where each checkpoint comes from, newest first.
    """
    saver = InMemorySaver()
    pipeline = create_pipeline(saver)
    config: Any = {"configurable": {"thread_id": "reference"}}
    pipeline.invoke({"brief": create_brief()}, config)
    answers: list[Decision] = [REVISE, APPROVE]
    for each in answers:
        pipeline.invoke(Command(resume=each), config)
    original = pipeline.get_state(config).values
    past = first_approval(pipeline, config)
    pipeline.invoke(None, pipeline.update_state(past, {"decisions": [WHAT_IF]}, "approval"))
    history = [(it.metadata["source"], it.metadata["step"]) for it in saver.list(config)]
    return original, pipeline.get_state(config).values, history


def first_approval(pipeline: Any, config: Any) -> Any:
    """The config of the oldest checkpoint of a thread that waits for an approval."""
    waiting = [it for it in pipeline.get_state_history(config) if "approval" in it.next]
    return waiting[-1].config


def main() -> None:
    """Tells the story."""
    url = os.environ.get("CHECKPOINTD_URL") or "http://127.0.0.1:8080"
    with tempfile.TemporaryDirectory(prefix="checkpointd-demo-") as folder:
        stage = Stage(url, Path(folder))
        print("Launching the Hearth Mini, a bread oven: a content pipeline on checkpointd")
        print(f"service {url}, thread {stage.thread}")
        original, fork, history = run_uninterrupted()
        try:
            pause_for_human(stage)
            revise_in_another_process(stage)
            kill_in_the_middle(stage, len(create_brief()["scenes"]))
            finished = finish_what_is_left(stage, original)
            fork_the_past(stage, finished, fork)
            look_back(stage, finished, history)
        finally:
            # A service that is not ours must not keep our thread, whatever happened.
            stage.saver.delete_thread(stage.thread)
            stage.saver.close()
    print(f"\nThe end: {held} checks, all hold.")


if __name__ == "__main__":
    main()
