"""Channel versions."""

from __future__ import annotations

import random


def next_version(current: str | int | float | None) -> str:
    """The version after `current`, as LangGraph's PostgresSaver makes it.

    Greater than it, and different on every call, so that the branches of a fork keep apart.
    """
    if current is None:
        whole = 0
    elif isinstance(current, (int, float)):
        whole = int(current)
    else:
        whole = int(current.split(".")[0])
    return f"{whole + 1:032}.{random.random():016}"
