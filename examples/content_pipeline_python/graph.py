"""A content pipeline as teams run it, on LangGraph.

strategist → critique (back to the strategist until the score passes) → approval by a human → one
visual prompt a scene in parallel → analyst. The nodes compute their text from the brief: equal
input gives equal state.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Annotated, Any, TypedDict

from brief import Brief, Decision, Scene
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send, interrupt

GRAPH = "content_pipeline_python"
"""The graph's name: its savers keep it with each checkpoint, and recovery takes no other."""

CRITERIA = {
    "names the audience": 20,
    "claims carry numbers": 20,
    "avoids banned words": 20,
    "headline within 48 characters": 15,
    "price and date in the opening": 15,
    "one call to action": 10,
}
"""What the critique looks at, with the points each is worth: 100 together."""

PASS_SCORE = 85
"""The score from which a draft may be shown to the human."""


class Draft(TypedDict):
    """A draft. `schedule`: when each channel publishes; `repaired`: what critiques made better."""

    revision: int
    headline: str
    opening: str
    scenes: list[Scene]
    schedule: dict[str, datetime]
    repaired: set[str]


class Critique(TypedDict):
    """What a critique gave for what."""

    revision: int
    score: int
    points: dict[str, int]


class VisualPrompt(TypedDict):
    """A picture to be made. `cache_key`: SHA-256 of the prompt; `palette`: two colours."""

    title: str
    prompt: str
    cache_key: bytes
    palette: bytes


class State(TypedDict, total=False):
    """The state of one thread. `storyboard` is a PPM image, one pixel a scene."""

    brief: Brief
    draft: Draft
    critiques: Annotated[list[Critique], operator.add]
    decisions: Annotated[list[Decision], operator.add]
    visuals: Annotated[dict[str, VisualPrompt], operator.or_]
    storyboard: bytes
    report: dict[str, Any]


class SceneInput(TypedDict):
    """What one visual prompt is made of."""

    scene: Scene
    audience: str
    ratio: str


Record = Callable[[str, str], None]


def create_pipeline(
    checkpointer: BaseCheckpointSaver[Any],
    record: Record = lambda step, event: None,
    before_scene: Callable[[str], None] = lambda scene: None,
) -> Any:
    """Compiles the graph. State lives in the thread only, none in the graph.

    Args:
        checkpointer: Any saver.
        record: Told of each execution of a node, when it begins and when it is done.
        before_scene: Called by the visual prompt of a scene before it answers; the demo hangs here.
    """

    # Recording around the node, not in it: an interrupted approval has a start and no done.
    def recorded(name: str, run: Callable[[Any], Any]) -> Any:
        def node(given: Any) -> Any:
            step = f"{name} of {given['scene']['id']}" if "scene" in given else name
            record(step, "start")
            told = run(given)
            record(step, "done")
            return told

        return node

    def draw_scene(given: SceneInput) -> State:
        before_scene(given["scene"]["id"])
        return {"visuals": {given["scene"]["id"]: write_prompt(given)}}

    graph = StateGraph(State)
    graph.add_node("strategist", recorded("strategist", write_draft))
    graph.add_node("critique", recorded("critique", judge_draft))
    graph.add_node("approval", recorded("approval", ask_human))
    graph.add_node("visual_prompt", recorded("visual_prompt", draw_scene))
    graph.add_node("analyst", recorded("analyst", write_report))
    graph.add_edge(START, "strategist")
    graph.add_edge("strategist", "critique")
    graph.add_conditional_edges("critique", after_critique, ["strategist", "approval"])
    graph.add_conditional_edges("approval", after_approval, ["strategist", "visual_prompt"])
    graph.add_edge("visual_prompt", "analyst")
    graph.add_edge("analyst", END)
    return graph.compile(checkpointer=checkpointer)


def after_critique(state: State) -> str:
    """To the human, or back."""
    return "approval" if state["critiques"][-1]["score"] >= PASS_SCORE else "strategist"


def after_approval(state: State) -> str | list[Send]:
    """Back, or one visual prompt for each scene."""
    if state["decisions"][-1]["verdict"] != "approve":
        return "strategist"
    brief = state["brief"]
    ratio = next(it["ratio"] for it in brief["channels"] if it["name"] == "short film")
    more = {"audience": brief["audience"], "ratio": ratio}
    return [Send("visual_prompt", {"scene": it, **more}) for it in state["draft"]["scenes"]]


def ask_human(state: State) -> State:
    """Waits for a decision."""
    draft = state["draft"]
    decision = interrupt(
        {
            "question": "Does this campaign go out?",
            "headline": draft["headline"],
            "score": state["critiques"][-1]["score"],
            "opens_with": draft["scenes"][0]["title"],
        }
    )
    return {"decisions": [decision]}


def write_draft(state: State) -> State:
    """A draft, better by the two costliest findings of the last critique."""
    brief, before = state["brief"], state.get("draft")
    repaired = set(before["repaired"]) if before else set()
    points = state["critiques"][-1]["points"] if state.get("critiques") else {}
    findings = [criterion for criterion, got in points.items() if got == 0]
    repaired.update(sorted(findings, key=lambda it: -CRITERIA[it])[:2])
    wishes = [it["lead_with"] for it in state.get("decisions", []) if it["verdict"] == "revise"]
    wish = wishes[-1] if wishes else None
    praise = "small" if "avoids banned words" in repaired else "revolutionary"
    theme = brief["promise"] if wish is None else "an oven you can mend for ten years"
    headline = f"Meet {brief['product']}, the {praise} oven that gives you {theme}"
    if "headline within 48 characters" in repaired:
        headline = f"{brief['product']}: {theme}"
    opening = [
        f"For {brief['audience']}: {brief['promise']}.",
        f"{brief['facts']['heat']}; {brief['facts']['repair']}.",
    ]
    if "price and date in the opening" in repaired:
        opening.append(f"{brief['price']}, from {brief['launch_at']:%Y-%m-%d}.")
    if "one call to action" in repaired:
        opening.append("Reserve yours.")
    return {
        "draft": {
            "revision": before["revision"] + 1 if before else 1,
            "headline": headline,
            "opening": " ".join(opening),
            "scenes": sorted(brief["scenes"], key=lambda it: it["id"] != wish),
            "schedule": {
                it["name"]: brief["launch_at"] - timedelta(days=it["days_before"])
                for it in brief["channels"]
            },
            "repaired": repaired,
        }
    }


def judge_draft(state: State) -> State:
    """A critique of the draft."""
    brief, draft = state["brief"], state["draft"]
    text = f"{draft['headline']} {draft['opening']}"
    holds = {
        "names the audience": brief["audience"] in text,
        "claims carry numbers": any(fact in text for fact in brief["facts"].values()),
        "avoids banned words": not any(word in text for word in brief["never_say"]),
        "headline within 48 characters": len(draft["headline"]) <= 48,
        "price and date in the opening": brief["price"] in draft["opening"],
        "one call to action": text.count("Reserve yours") == 1,
    }
    points = {it: CRITERIA[it] if holds[it] else 0 for it in CRITERIA}
    score = sum(points.values())
    return {"critiques": [{"revision": draft["revision"], "score": score, "points": points}]}


def write_prompt(given: SceneInput) -> VisualPrompt:
    """What an image service would be asked for."""
    scene = given["scene"]
    lens = "100 mm" if scene["shot"].startswith(("Macro", "Close")) else "35 mm"
    prompt = f"{scene['shot']} Caption: “{scene['caption']}” For {given['audience']}; {lens}."
    return {
        "title": scene["title"],
        "prompt": f"{prompt} {given['ratio']}",
        "cache_key": hashlib.sha256(prompt.encode()).digest(),
        "palette": scene["colour"] + bytes(255 - it for it in scene["colour"]),
    }


def write_report(state: State) -> State:
    """What came of it."""
    draft, visuals = state["draft"], state["visuals"]
    opens = draft["scenes"][0]["title"]
    words = {name: len(visual["prompt"].split()) for name, visual in visuals.items()}
    return {
        "storyboard": f"P6 {len(draft['scenes'])} 1 255\n".encode()
        + b"".join(it["colour"] for it in draft["scenes"]),
        "report": {
            "summary": f"“{draft['headline']}” in {len(visuals)} scenes, opening with {opens}.",
            "approved_by": state["decisions"][-1]["by"],
            "words": words,
            "publish": sorted([at, name] for name, at in draft["schedule"].items()),
        },
    }
