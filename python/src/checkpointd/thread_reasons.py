"""Why a thread does not go on: what its tasks asked, and the errors they ended with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .codec import get_tuple_request
from .encryption import EncryptionError
from .messages import PendingWrite, Value
from .messages import Thread as StoredThread

if TYPE_CHECKING:
    from .saver import ConnectSaver
    from .sealing import Steps

_CHANNELS = ("__interrupt__", "__error__")


@dataclass(frozen=True)
class ThreadInterrupt:
    """A question, as LangGraph's `Interrupt` has it.

    Attributes:
        value: What was given to ``interrupt()``.
        id: What answers it: ``Command(resume={id: answer})``.
        task_id: The task that asks.
        name: The node that the task ran, where the saver that stored it tells one.
        unread: Why `value` is not here, and None then: it is larger than 65536 bytes (`get_tuple`
            reads it whole), or this saver cannot decode or decrypt it.
    """

    value: Any
    id: str | None
    task_id: str
    name: str | None
    unread: str | None = None


@dataclass(frozen=True)
class ThreadError:
    """An error that a task ended with.

    Attributes:
        error: As LangGraph stored it: of Python its representation, of JavaScript a dict with
            ``name`` and ``message``.
        task_id: The task.
        name: The node that the task ran, where the saver that stored it tells one.
        unread: Why `error` is not here, and None then, as `ThreadInterrupt.unread`.
    """

    error: Any
    task_id: str
    name: str | None
    unread: str | None = None


Reasons = tuple[list[ThreadInterrupt], list[ThreadError]]


def read_reasons(saver: ConnectSaver, stored: StoredThread) -> Steps[Reasons]:
    """The reasons that the service tells, decoded as the saver decodes other values.

    Encrypted ones are read with the seal of their checkpoint, which tells whose they are.
    """

    def decode(value: Value) -> Any:
        if value.type.startswith("aes256gcm"):
            raise ValueError("it is encrypted: give the saver its encryption")
        return saver.serde.loads_typed((value.type, value.data))

    if not saver._sealing or not stored.reasons:
        return _to_reasons(stored.reasons, decode)
    place = (stored.thread_id, "", stored.checkpoint_id)
    names = ("thread_id", "checkpoint_ns", "checkpoint_id")
    answer = yield get_tuple_request({"configurable": dict(zip(names, place, strict=True))})
    if not answer.HasField("tuple"):
        return [], []
    try:
        opened = yield from saver._sealing.open_tuple(answer.tuple, place)
    except EncryptionError as error:
        refused = error

        def refuse(_: Value) -> Any:
            raise refused

        return _to_reasons(stored.reasons, refuse)
    writes = [it for it in opened.pending_writes if it.channel in _CHANNELS]
    return _to_reasons(writes, decode)


def _to_reasons(writes: Sequence[PendingWrite], decode: Callable[[Value], Any]) -> Reasons:
    interrupts: list[ThreadInterrupt] = []
    errors: list[ThreadError] = []
    for write in writes:
        decoded = unread = None
        # The service leaves out what is larger; none of these is empty otherwise.
        if write.value.type in ("json", "msgpack") and not write.value.data:
            unread = "it is larger than 65536 bytes"
        else:
            try:
                decoded = decode(write.value)
            except Exception as error:  # Whatever a serde raises.
                unread = str(error) or type(error).__name__
        found = re.fullmatch(r"~__pregel_pull, (.+)", write.task_path, re.DOTALL)
        name = found[1] if found else None
        if write.channel == "__error__":
            errors.append(ThreadError(decoded, write.task_id, name, unread))
            continue
        # LangGraph stores what a task asks as a list.
        all_asked = decoded if isinstance(decoded, (list, tuple)) else (decoded,)
        interrupts.extend(
            ThreadInterrupt(*_value_and_id(it), write.task_id, name, unread) for it in all_asked
        )
    return interrupts, errors


def _value_and_id(asked: Any) -> tuple[Any, str | None]:
    """Of LangGraph's Interrupt, or of what JavaScript's stores, which is a dict."""
    if isinstance(asked, dict) and "value" in asked:
        id = asked.get("id")
        return asked["value"], id if isinstance(id, str) else None
    if hasattr(asked, "value") and hasattr(asked, "id"):
        return asked.value, asked.id
    return asked, None
