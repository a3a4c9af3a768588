"""Puts with as few bytes as they take."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from .client import Client
from .errors import CheckpointdError, NotCarried
from .messages import OpenSessionRequest
from .value_cache import Extended


def put(client: Client, request: OpenSessionRequest, large: Mapping[int, bytes]) -> None:
    """Stores a checkpoint, of which the large values are not in the request yet.

    Raises CheckpointdError. Of a value that has most of the one before only the rest is sent,
    where the server's sessions carry that.
    """
    cache = client.values
    values = cache.worthwhile(request.put, large)
    while values:
        extended = cache.extend(values)
        try:
            answer = client.call(_name(extended), _extending(request, large, extended))
        except NotCarried:
            break
        except CheckpointdError as error:
            if not extended or error.reason != "NOT_STORED":
                raise
            cache.forget(values)
        else:
            cache.remember(values, answer.put_extending.transaction_id)
            return
    client.call("put", whole(request, large))


async def aput(client: Client, request: OpenSessionRequest, large: Mapping[int, bytes]) -> None:
    """As `put`. Cancelled, the checkpoint is stored all the same."""
    cache = client.values
    values = cache.worthwhile(request.put, large)
    while values:
        extended = cache.extend(values)
        try:
            answer = await client.acall(_name(extended), _extending(request, large, extended))
        except NotCarried:
            break
        except CheckpointdError as error:
            if not extended or error.reason != "NOT_STORED":
                raise
            cache.forget(values)
        except asyncio.CancelledError:
            # Nobody would hear that it was not stored, and send the whole.
            client.post("put", whole(request, large))
            raise
        else:
            cache.remember(values, answer.put_extending.transaction_id)
            return
    await client.acall("put", whole(request, large))


def _name(extended: Sequence[Extended]) -> str:
    """The operation, as the server's greeting lists it."""
    # Others take what is kept for the value's beginning.
    is_moved = any(kept.offset or kept.head for _, _, _, kept in extended)
    return "put_extending.offset" if is_moved else "put_extending"


def _extending(
    request: OpenSessionRequest, large: Mapping[int, bytes], extended: Sequence[Extended]
) -> OpenSessionRequest:
    told = OpenSessionRequest()
    put = told.put_extending.put
    put.CopyFrom(request.put)
    rests = {it.value.blob_index: it.rest for it in extended}
    for index, data in large.items():
        put.blobs[index].value.data = rests.get(index, data)
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


def whole(request: OpenSessionRequest, large: Mapping[int, bytes]) -> OpenSessionRequest:
    """The request with its large values."""
    for index, data in large.items():
        request.put.blobs[index].value.data = data
    return request
