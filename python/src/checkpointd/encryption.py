"""How a saver encrypts what it stores: ``pip install "checkpointd[encryption]"``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from .names import check_name

SEAL_KEY = "checkpointd_seal"
"""The key of a checkpoint's JSON that holds its seal, as base64."""


class EncryptionError(Exception):
    """Stored data was not read, and nothing of it has been handed on.

    Attributes:
        reason: ``"KEY_UNKNOWN"``: the keys have none of that id. ``"NOT_AUTHENTIC"``: it was
            altered or is of another place, or the key of that id is another one. ``"PLAINTEXT"``:
            it is not encrypted, and ``accept_plaintext`` is off. ``"COPIED"``: it was stored as
            another thread, and ``accept_copies`` does not allow it. ``"WITHHELD"``: what it says
            belongs to it was not told. ``"ENCRYPTED"``: it is encrypted, and the saver has no
            ``encryption``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[1])


class Key(NamedTuple):
    """A key of 32 bytes, and the id that is kept with what it encrypts.

    The id is not secret and has at most 1024 bytes: a name, or the key itself as a KMS wrapped it.
    """

    id: str
    key: bytes

    def __repr__(self) -> str:
        return f"Key({self.id!r})"


class KeySource(Protocol):
    """Where a saver gets its keys.

    Either answer may be awaitable, as a KMS needs it, where only the asynchronous methods are used
    (``ainvoke``). What these raise the saver's call raises.
    """

    def current(self) -> Key | Awaitable[Key]:
        """What new values are encrypted with. Asked at each call: it is to remember its answer."""

    def by_id(self, id: str) -> bytes | Awaitable[bytes | None] | None:
        """The key of that id, None if there is none. Asked once for each id, and remembered."""


@dataclass(frozen=True)
class _Keyring:
    _current: str
    _keys: dict[str, bytes] = field(repr=False)

    def current(self) -> Key:
        return Key(self._current, self._keys[self._current])

    def by_id(self, id: str) -> bytes | None:
        return self._keys.get(id)


def keyring(current: str, keys: Mapping[str, bytes]) -> KeySource:
    """Keys that are at hand, each of 32 bytes.

    New values are encrypted with that of the id `current`, and those of the others are read. Raises
    TypeError or ValueError naming the key.
    """
    known = {id: check_key(id, key) for id, key in keys.items()}
    if current not in known:
        raise ValueError(f"keyring: there is no key {current!r} among {sorted(known)}")
    return _Keyring(current, known)


@dataclass(frozen=True)
class Encryption:
    """How a saver encrypts what it stores, and what it reads: ``ConnectSaver(url, encryption=…)``.

    Attributes:
        keys: `keyring`, or a `KeySource` of your own before a KMS.
        accept_plaintext: Reads what is not encrypted as well, which whoever can write to the
            database may have put there. For the time of a migration.
        accept_copies: Whether a thread that was stored under the name ``old`` may be read as
            ``new``: True, or ``accept_copies(old, new)``. Whoever can write to the database can
            give a thread any name, and have an agent tell it to whom that name belongs.
    """

    keys: KeySource
    accept_plaintext: bool = False
    accept_copies: bool | Callable[[str, str], bool] = False


def check_key(id: str, key: object) -> bytes:
    """The key's bytes. Raises TypeError or ValueError naming it."""
    if not isinstance(id, str) or not 1 <= len(id.encode("utf-8", "replace")) <= 1024:
        raise ValueError("the id of an encryption key must be a text of 1 to 1024 bytes")
    check_name("the id of an encryption key", id)
    if not isinstance(key, (bytes, bytearray)) or len(key) != 32:
        raise ValueError(f"the encryption key {id!r} must be of 32 bytes")
    return bytes(key)
