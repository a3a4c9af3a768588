"""Checks of the names that a caller hands in, and how they are read out of a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEASE_TOKEN = "__checkpointd_lease"
"""The key of ``configurable`` that carries a lease's token: what a run stores under it is refused
once the lease is lost. LangGraph hands it on to subgraphs and keeps it out of the metadata."""

GRAPH_KEY = "checkpointd_graph"
"""The key of the stored metadata that holds the name of the graph a checkpoint is of."""


def check_name(field: str, value: object) -> str:
    """The value as text, if the service can keep it unaltered.

    Raises TypeError, naming the field, for anything but a string or an int (which becomes its
    decimal text), and ValueError for text with a NUL or a lone surrogate.
    """
    if not isinstance(value, str):
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        more = "" if value is None else "; give its text, which str(...) makes of most"
        raise TypeError(f"{field} must be a string, not {type(value).__name__}{more}")
    if "\0" in value:
        raise ValueError(f"{field} must not contain a NUL character")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{field} must not contain a lone surrogate") from None
    # A str-enum is sent as its value.
    return value if type(value) is str else str.__str__(value)


def configurable(method: str, config: Any) -> Mapping[str, Any]:
    """What the config says about a checkpoint. Raises ValueError if it says nothing."""
    keys = config.get("configurable") if config else None
    if keys is None:
        raise ValueError(f'{method}: the config has no "configurable"')
    return keys  # type: ignore[no-any-return]


def required(method: str, keys: Mapping[str, Any], key: str) -> str:
    """The key's value as text. Raises ValueError naming the key if it is absent."""
    value = keys.get(key)
    if value is None or value == "":
        raise ValueError(f'{method}: the config\'s "configurable" has no "{key}"')
    return check_name(f"configurable.{key}", value)


def optional(keys: Mapping[str, Any], key: str) -> str:
    """The key's value as text, empty if it is absent."""
    value = keys.get(key)
    if value is None or value == "":
        return ""
    return check_name(f"configurable.{key}", value)
