"""The demo's input: the brief of a product launch, and what humans answer.

Nothing depends on a clock, a random number or a model.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TypedDict


class Scene(TypedDict):
    """One shot of the film: what is seen, what is said over it, and its colour (RGB)."""

    id: str
    title: str
    shot: str
    caption: str
    colour: bytes


class Channel(TypedDict):
    """Where it is published, and how many days before the launch."""

    name: str
    days_before: int
    ratio: str


class Brief(TypedDict):
    """What the team knows before the first draft. `facts`: what copy may state as numbers."""

    product: str
    audience: str
    promise: str
    price: str
    launch_at: datetime
    facts: dict[str, str]
    channels: list[Channel]
    never_say: frozenset[str]
    scenes: list[Scene]


class Decision(TypedDict):
    """What a human answers. `lead_with` is the scene the film shall open with, if any."""

    verdict: str
    by: str
    note: str
    lead_with: str | None


def create_brief() -> Brief:
    """The brief of the Hearth Mini launch; every call returns an equal, separate value."""
    return {
        "product": "Hearth Mini",
        "audience": "weekend bakers in small kitchens",
        "promise": "a bakery crust from any wall socket",
        "price": "349 EUR",
        "launch_at": datetime(2026, 3, 12, 9, tzinfo=timezone.utc),
        "facts": {
            "heat": "290 °C stone in 18 minutes",
            "repair": "every part replaceable with one screwdriver for 10 years",
        },
        "channels": [
            {"name": "newsletter", "days_before": 14, "ratio": "3:2"},
            {"name": "short film", "days_before": 7, "ratio": "9:16"},
            {"name": "landing page", "days_before": 0, "ratio": "16:9"},
        ],
        "never_say": frozenset(("revolutionary", "game-changing", "like your grandmother")),
        "scenes": [
            {"id": name, "title": title, "shot": shot, "caption": caption, "colour": bytes(colour)}
            for name, title, shot, caption, colour in _SCENES
        ],
    }


_SCENES = (
    (
        "cold-kitchen",
        "The cold kitchen",
        "Saturday, 6:40. Grey light on a narrow counter, a bowl of dough under a linen cloth.",
        "Your dough had all night. Your kitchen has 60 centimetres of counter.",
        (0, 62, 79),
    ),
    (
        "stone",
        "The stone",
        "Close on the dial turning to 290; behind the glass the stone goes from grey to ember.",
        "290 °C in 18 minutes. From the socket the kettle uses.",
        (214, 84, 28),
    ),
    (
        "crust",
        "The loaf sings",
        "Macro: the crust cools and crackles, no music, only the sound of the bread.",
        "Listen.",
        (168, 101, 42),
    ),
    (
        "screwdriver",
        "One screwdriver",
        "The back panel comes off with four screws; a hand lays a new heating element in place.",
        "Every part, one screwdriver, ten years.",
        (74, 85, 104),
    ),
)

REVISE: Decision = {
    "verdict": "revise",
    "by": "Marta Lindqvist, brand",
    "note": "The crust is lovely, but nobody else repairs ovens. Open with the screwdriver.",
    "lead_with": "screwdriver",
}
"""The first answer: it sends the campaign back."""

APPROVE: Decision = {
    "verdict": "approve",
    "by": "Marta Lindqvist, brand",
    "note": "This is the one. Go.",
    "lead_with": None,
}
"""The second answer."""

WHAT_IF: Decision = {
    "verdict": "approve",
    "by": "Jonas Weber, sales",
    "note": "Draft 3 was good enough. Ship it as it was.",
    "lead_with": None,
}
"""Another answer to the first question, given in a fork."""
