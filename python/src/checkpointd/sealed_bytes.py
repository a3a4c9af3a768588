"""Encrypted values, byte by byte, as docs/security.md has them: AES-256-GCM, whole or in chunks.

What a value is and where it belongs is its additional data, so that it can be read nowhere else.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .encryption import Key

SEALED_TYPE = "aes256gcm"
"""The type of an encrypted value. What the serializer called it is encrypted too."""

IDLE_TYPE = "aes256gcm+idle"
"""The type of an encrypted value of a channel that makes nodes run, at which none has to."""

SEALED_TYPES = (SEALED_TYPE, IDLE_TYPE)

_VERSION = 1
_WHOLE = 0
_CHUNKS = 1

_NONCE_BYTES = 12
_TAG_BYTES = 16
_OVERHEAD = _NONCE_BYTES + _TAG_BYTES
# Lengths say no more than this much: true and false, or null and a short text, look alike.
_PADDED_TO = 32
# The first chunk is small: a list in msgpack has its length there, which changes when it grows.
_HEAD_BYTES = 64
_CHUNK_BYTES = 4 * 1024
# How much of a value's end may change where another is added to a list: brackets, padding.
_END_BYTES = 64

_length = struct.Struct(">I")


class SealingKey(NamedTuple):
    """A thread's key."""

    id: str
    raw: bytes
    cipher: AESGCM


class Header(NamedTuple):
    """What stands before what is encrypted."""

    arrangement: int
    key_id: str
    end: int


class Chunked(NamedTuple):
    """A content that was encrypted in chunks, to be extended."""

    key: SealingKey
    series: bytes
    content: bytes
    sealed: bytes


def fields(*parts: str | bytes) -> bytes:
    """Texts and bytes, each behind its length: no two lists give the same bytes."""
    pieces = []
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        pieces.append(_length.pack(len(data)))
        pieces.append(data)
    return b"".join(pieces)


def read_fields(data: bytes, count: int) -> list[bytes]:
    """So many of them. Raises ValueError if there are fewer."""
    found = []
    at = 0
    for _ in range(count):
        if at + 4 > len(data):
            raise ValueError("fields are missing")
        start = at + 4
        at = start + _length.unpack_from(data, at)[0]
        if at > len(data):
            raise ValueError("fields are missing")
        found.append(data[start:at])
    return found


def thread_key(key: Key, thread: bytes) -> SealingKey:
    """What the values of the thread of this id are encrypted with.

    A key of its own for each: a value of another thread cannot be read at all, and nonces, which
    are random, have to differ within a thread only (2**32 of them are safe).
    """
    info = fields("checkpointd thread key", thread)
    raw = HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(key.key)
    return SealingKey(key.id, raw, AESGCM(raw))


def to_content(kind: str, data: bytes) -> bytes:
    """A value and its serializer's type, as what is encrypted of them."""
    name = kind.encode()
    used = 2 + len(name) + len(data) + 1
    padding = bytes(-used % _PADDED_TO)
    return b"".join((len(name).to_bytes(2, "big"), name, data, b"\x80", padding))


def from_content(content: bytes) -> tuple[str, bytes]:
    """What `to_content` was given."""
    start = 2 + int.from_bytes(content[:2], "big")
    return content[2:start].decode(), content[start : content.rindex(b"\x80")]


def read_header(data: bytes) -> Header | None:
    """The header of an encrypted value or seal; None if it has none that is known here."""
    if len(data) < 4 or data[0] != _VERSION or data[1] > _CHUNKS:
        return None
    end = 4 + int.from_bytes(data[2:4], "big")
    if len(data) < end:
        return None
    try:
        return Header(data[1], data[4:end].decode(), end)
    except UnicodeDecodeError:
        return None


def seal(key: SealingKey, place: bytes, content: bytes) -> bytes:
    """Encrypts a content as a whole. `place` says what it is and where it belongs."""
    header = _header(_WHOLE, key.id)
    return header + _encrypt(key.cipher, fields(header, place), content)


def seal_in_chunks(
    key: SealingKey, place: bytes, series: bytes, content: bytes, before: Chunked | None
) -> Chunked:
    """Encrypts a content in chunks, each with a nonce of its own, and a tag over all of them.

    The tag belongs to `place`. Where `before` is of the same key and series, and the content is
    that one grown, its chunks are taken as they are, so that these bytes need not be sent again.
    Otherwise none is taken: which parts of a value were altered is nobody's business.
    """
    header = _header(_CHUNKS, key.id)
    start = len(header) + _OVERHEAD
    reused = 0
    if (
        before is not None
        and before.key[:2] == key[:2]
        and before.series == series
        and _is_grown(before.content, content)
    ):
        reused = len(before.content) - _END_BYTES
    chunks = []
    tags: list[bytes] = []
    for index, begin, end in _chunks(len(content)):
        if before is not None and index > 0 and end <= reused:
            at = start + begin + index * _OVERHEAD
            chunk = before.sealed[at : at + end - begin + _OVERHEAD]
        else:
            chunk = _encrypt(key.cipher, _chunk_place(series, index), content[begin:end])
        chunks.append(chunk)
        tags += (chunk[:_NONCE_BYTES], chunk[-_TAG_BYTES:])
    over_all = _encrypt(key.cipher, fields(header, place, b"".join(tags)), b"")
    return Chunked(key, series, content, b"".join((header, over_all, *chunks)))


def unseal(key: SealingKey, place: bytes, series: bytes | None, sealed: bytes, at: Header) -> bytes:
    """Decrypts a content. Raises if any of it is not what was encrypted for this place."""
    header = sealed[: at.end]
    if at.arrangement == _WHOLE:
        return _decrypt(key.cipher, fields(header, place), sealed[at.end :])
    if series is None:
        raise ValueError("only channel values are in chunks")
    start = at.end + _OVERHEAD
    chunks: list[bytes] = []
    begin = start
    while begin < len(sealed):
        end = begin + (_CHUNK_BYTES if chunks else _HEAD_BYTES) + _OVERHEAD
        chunks.append(sealed[begin:end])
        begin = end
    # All of them are known to be those of this value before one is decrypted.
    tags = b"".join([it[:_NONCE_BYTES] + it[-_TAG_BYTES:] for it in chunks])
    _decrypt(key.cipher, fields(header, place, tags), sealed[at.end : start])
    return b"".join(
        [_decrypt(key.cipher, _chunk_place(series, i), chunk) for i, chunk in enumerate(chunks)]
    )


def _header(arrangement: int, key_id: str) -> bytes:
    name = key_id.encode()
    return bytes((_VERSION, arrangement)) + len(name).to_bytes(2, "big") + name


def _encrypt(cipher: AESGCM, associated: bytes, text: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, text, associated)


def _decrypt(cipher: AESGCM, associated: bytes, sealed: bytes) -> bytes:
    if len(sealed) < _OVERHEAD:
        raise ValueError("too short")
    return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], associated)


def _chunks(length: int) -> Iterator[tuple[int, int, int]]:
    index = begin = 0
    while begin < length:
        end = min(length, begin + (_CHUNK_BYTES if index else _HEAD_BYTES))
        yield index, begin, end
        index, begin = index + 1, end


def _chunk_place(series: bytes, index: int) -> bytes:
    return fields("chunk", series, _length.pack(index))


def _is_grown(before: bytes, content: bytes) -> bool:
    """Whether nothing of the content before is gone or altered but a few bytes at either end."""
    kept = memoryview(before)[_HEAD_BYTES : len(before) - _END_BYTES]
    return len(content) >= len(before) and content.startswith(kept, _HEAD_BYTES)
