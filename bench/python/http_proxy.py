"""The baseline in the middle: a FastAPI service, values as base64 in JSON, one INSERT for each row.

Written as a careful team would: a pool, prepared statements, connections kept alive.
`python http_proxy.py DSN` prints where it listens.
"""

from __future__ import annotations

import socket
import sys
from base64 import b64decode, b64encode
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel

pool = AsyncConnectionPool(
    sys.argv[1],
    min_size=10,
    max_size=10,
    open=False,
    kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row},
)


class Key(BaseModel):
    thread_id: str
    checkpoint_ns: str = ""
    checkpoint_id: str | None = None


class Stored(BaseModel):
    """A blob or a write; its data as base64."""

    channel: str
    version: str = ""
    idx: int = 0
    type: str
    data: str


class Put(Key):
    parent_checkpoint_id: str | None = None
    checkpoint: dict[str, Any]
    metadata: dict[str, Any]
    blobs: list[Stored]


class PutWrites(Key):
    task_id: str
    task_path: str
    writes: list[Stored]


@asynccontextmanager
async def lifespan(_: FastAPI) -> Any:
    await pool.open(wait=True)
    yield
    await pool.close()


app = FastAPI(lifespan=lifespan)


@app.post("/checkpoints/put")
async def put(body: Put) -> None:
    async with pool.connection() as connection, connection.transaction():
        for blob in body.blobs:
            await connection.execute(
                """INSERT INTO checkpoint_blobs VALUES (%s, %s, %s, %s, %s, %s)
                   ON CONFLICT DO NOTHING""",
                (
                    body.thread_id,
                    body.checkpoint_ns,
                    blob.channel,
                    blob.version,
                    blob.type,
                    b64decode(blob.data),
                ),
            )
        await connection.execute(
            """INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id,
                 parent_checkpoint_id, checkpoint, metadata) VALUES (%s, %s, %s, %s, %s, %s)
               ON CONFLICT (thread_id, checkpoint_ns, checkpoint_id)
               DO UPDATE SET checkpoint = EXCLUDED.checkpoint, metadata = EXCLUDED.metadata""",
            (
                body.thread_id,
                body.checkpoint_ns,
                body.checkpoint_id,
                body.parent_checkpoint_id,
                Jsonb(body.checkpoint),
                Jsonb(body.metadata),
            ),
        )


@app.post("/checkpoints/put-writes")
async def put_writes(body: PutWrites) -> None:
    async with pool.connection() as connection, connection.transaction():
        for write in body.writes:
            await connection.execute(
                """INSERT INTO checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id,
                     task_path, idx, channel, type, blob)
                   VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING""",
                (
                    body.thread_id,
                    body.checkpoint_ns,
                    body.checkpoint_id,
                    body.task_id,
                    body.task_path,
                    write.idx,
                    write.channel,
                    write.type,
                    b64decode(write.data),
                ),
            )


@app.post("/checkpoints/get-tuple")
async def get_tuple(key: Key) -> dict[str, Any] | None:
    async with pool.connection() as connection:
        found = await connection.execute(
            """SELECT checkpoint_id, parent_checkpoint_id, checkpoint, metadata FROM checkpoints
               WHERE thread_id = %s AND checkpoint_ns = %s AND checkpoint_id = coalesce(%s,
                 (SELECT max(checkpoint_id) FROM checkpoints
                  WHERE thread_id = %s AND checkpoint_ns = %s))""",
            (key.thread_id, key.checkpoint_ns, key.checkpoint_id, key.thread_id, key.checkpoint_ns),
        )
        row = await found.fetchone()
        if row is None:
            return None
        versions = row["checkpoint"]["channel_versions"]
        blobs = await connection.execute(
            """SELECT channel, type, blob FROM checkpoint_blobs
               WHERE thread_id = %s AND checkpoint_ns = %s
                 AND (channel, version) IN (SELECT * FROM unnest(%s::text[], %s::text[]))""",
            (key.thread_id, key.checkpoint_ns, list(versions), list(versions.values())),
        )
        row["blobs"] = [shown(blob) for blob in await blobs.fetchall() if blob["type"] != "empty"]
        writes = await connection.execute(
            """SELECT task_id, channel, type, blob FROM checkpoint_writes
               WHERE thread_id = %s AND checkpoint_ns = %s AND checkpoint_id = %s
               ORDER BY task_path, task_id, idx""",
            (key.thread_id, key.checkpoint_ns, row["checkpoint_id"]),
        )
        row["writes"] = [shown(write) for write in await writes.fetchall()]
        return row


def shown(row: Any) -> Any:
    return {**row, "blob": b64encode(row["blob"]).decode()}


if __name__ == "__main__":
    # asyncio sets TCP_NODELAY only where the protocol is named.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    print(f"listens on http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listening])
