"""Puts with as few bytes as they take."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from .client import Client
from .errors import CheckpointdError, NotCarried
from .messages import OpenSessionRequest
from .value_cache import Extended, Large


def put(client: Client, request: OpenSessionRequest) -> None:
    """Stores a checkpoint. Raises CheckpointdError.

    Of a value that has most of the one before only the rest is sent, where the server's sessions
    carry that.
    """
    cache = client.values
    while values := cache.large(request.put):
        extended = cache.extend(values)
        try:
            answer = client.call(_name(extended), _extending(request, values, extended))
        except NotCarried:
            break
        except CheckpointdError as error:
            if not extended or error.reason != "NOT_STORED":
                raise
            cache.forget(values)
        else:
            cache.remember(values, answer.put_extending.transaction_id)
            return
    client.call("put", request)


async def aput(client: Client, request: OpenSessionRequest) -> None:
    """As `put`. Cancelled, the checkpoint is stored all the same."""
    cache = client.values
    while values := cache.large(request.put):
        extended = cache.extend(values)
        try:
            answer = await client.acall(_name(extended), _extending(request, values, extended))
        except NotCarried:
            break
        except CheckpointdError as error:
            if not extended or error.reason != "NOT_STORED":
                raise
            cache.forget(values)
        except asyncio.CancelledError:
            # Nobody would hear that it was not stored, and send the whole.
            client.post("put", request)
            raise
        else:
            cache.remember(values, answer.put_extending.transaction_id)
            return
    await client.acall("put", request)


def _name(extended: Sequence[Extended]) -> str:
    """The operation, as the server's greeting lists it."""
    # Others take what is kept for the value's beginning.
    is_moved = any(kept.offset or kept.head for _, _, _, kept in extended)
    return "put_extending.offset" if is_moved else "put_extending"


def _extending(
    request: OpenSessionRequest, values: Sequence[Large], extended: Sequence[Extended]
) -> OpenSessionRequest:
    told = OpenSessionRequest()
    put = told.put_extending.put
    # Not even copied are the values of which only a part is sent.
    blobs = request.put.blobs
    for value in values:
        blobs[value.blob_index].value.data = b""
    put.CopyFrom(request.put)
    rests = {it.value.blob_index: it.rest for it in extended}
    for value in values:
        blobs[value.blob_index].value.data = value.data
        put.blobs[value.blob_index].value.data = rests.get(value.blob_index, value.data)
    for value, version, transaction_id, kept in extended:
        told.put_extending.prefixes.add(
            blob_index=value.blob_index,
            version=version,
            transaction_id=transaction_id,
            offset=kept.offset,
            head_length=kept.head,
            length=kept.length,
        )
    return told
