"""LangGraph's checkpointer over the checkpointd service."""

from __future__ import annotations

import asyncio
import inspect
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from typing_extensions import Self

from . import codec, extending
from .address import Address, Tls
from .client import Client
from .credential import Credential, Token
from .encryption import Encryption
from .errors import CheckpointdError, NotCarried
from .lease_watch import Watches
from .listing import Listing
from .messages import (
    CopyThreadRequest,
    DeleteRunsRequest,
    DeleteThreadRequest,
    GetChannelHistoryRequest,
    GetChannelHistoryResponse,
    GetTupleRequest,
    ListRequest,
    ListResponse,
    OpenSessionRequest,
    PruneThreadsRequest,
    PruneThreadsResponse,
)
from .names import check_name, configurable, optional, required
from .retry import Retry
from .threads import Threads
from .versions import next_version

if TYPE_CHECKING:
    from .sealing import Sealing, Steps


class ConnectSaver(BaseCheckpointSaver[str]):
    """Keeps a LangGraph agent's checkpoints in a checkpointd service.

    ``graph = builder.compile(checkpointer=ConnectSaver("http://127.0.0.1:8080"))``

    One class for ``invoke`` and ``ainvoke``: it opens nothing when it is made and needs no event
    loop, and may be used from any number of threads and event loops, after a fork, and pickled (by
    its URL and options). ``close()`` and ``aclose()`` are optional.

    Every method raises TypeError or ValueError naming what it was given that cannot be stored, and
    otherwise `CheckpointdError`, with its code and reason. Every call has a deadline and is
    repeated while the service cannot be reached; ``copy_thread``, the only one that is not
    idempotent, only where the service certainly did not begin it. A cancelled ``await`` of a read
    gives the read up; what ``aput`` and ``aput_writes`` were asked to store is stored all the same.

    Attributes:
        threads: The calls about threads as a whole: list, claim, copy, prune (see `Threads`).
        graph: The graph's name, if it was given one.
    """

    def __init__(
        self,
        url: str,
        *,
        serde: SerializerProtocol | None = None,
        headers: Mapping[str, str] | None = None,
        token: Token | None = None,
        timeout: float = 30,
        retry: Retry | None = None,
        graph: str | None = None,
        ca: str | None = None,
        cert: str | None = None,
        key: str | None = None,
        verify: bool = True,
        tls: ssl.SSLContext | None = None,
        max_request_bytes: int = 64 * 1024 * 1024,
        value_cache_bytes: int = 32 * 1024 * 1024,
        encryption: Encryption | None = None,
    ) -> None:
        """Makes a saver, without connecting. Raises TypeError or ValueError naming the option.

        Args:
            url: Where the service is: http: or https:, with a path prefix if need be; or unix: and
                the path of a socket.
            serde: Encodes channel values and writes. LangGraph's JsonPlusSerializer unless given.
            headers: Sent with every call.
            token: An API key or a token, sent with every call as ``authorization: Bearer ...``; or
                a function that gives one, for tokens that end. It is asked when the first call or
                session begins, and anew when a session is to be followed by another and when the
                service answers "unauthenticated", whereupon the call is tried once more. An error
                that it raises is the call's. An asynchronous function serves the asynchronous
                methods only, any other serves all (on an event loop in a thread of its own); it is
                pickled with the saver, so for that it has to be one of a module.
            timeout: How long a call may take, retries included, in seconds. For a list: how long it
                may take until the next tuple is there.
            retry: How calls that found no server are repeated.
            graph: The name of the graph whose checkpoints these are, kept with each of them
                (``checkpointd_graph`` in the metadata that is stored, not in the metadata that is
                read). A name of your own, which stays the same from one version of the graph to the
                next.
            ca: A file of authorities to trust, for https:, in the place of the system's.
            cert: A file with the certificate to show to the service, and those between it and its
                authority. Files that are replaced are read anew.
            key: The file with its key.
            verify: False trusts any certificate: only for tests.
            tls: In the place of these four. A saver with one cannot be pickled.
            max_request_bytes: The largest request, as encoded. The service's default is 64 MiB too:
                raise both.
            value_cache_bytes: How many bytes of the values that were put last are remembered, so
                that of one that has most of the one before, such as the messages of a conversation,
                only the rest is sent. 0 sends all whole.
            encryption: Encrypts what the graph stores, with keys that the service and its database
                never see, and reads nothing else: see docs/security.md for what stays readable.
                What cannot be trusted is an `EncryptionError`. Remembers as many bytes of values as
                `value_cache_bytes` once more.
        """
        super().__init__(serde=serde)
        if not timeout > 0:
            raise ValueError(f"timeout must be a number of seconds above 0, not {timeout!r}")
        if not value_cache_bytes >= 0:
            raise ValueError(
                f"value_cache_bytes must be a number from 0, not {value_cache_bytes!r}"
            )
        if graph is not None and not check_name("graph", graph):
            raise ValueError("graph must be a name, a text that is not empty")
        self.graph = graph
        self._options: dict[str, Any] = {
            "headers": dict(headers) if headers is not None else None,
            "token": token,
            "timeout": timeout,
            "retry": retry,
            "graph": graph,
            "ca": ca,
            "cert": cert,
            "key": key,
            "verify": verify,
            "tls": tls,
            "max_request_bytes": max_request_bytes,
            "value_cache_bytes": value_cache_bytes,
            "encryption": encryption,
        }
        self._sealing = _sealing(encryption, value_cache_bytes)
        self._url = url
        self._client = Client(
            Address(url, Tls(ca, cert, key, verify, tls)),
            Credential(headers, token),
            timeout,
            retry or Retry(),
            max_request_bytes,
            value_cache_bytes,
        )
        self.threads = Threads(self._client)
        self._watches = Watches()

    def __copy__(self) -> Self:
        """A saver on the same connections: what `with_allowlist` makes."""
        clone = object.__new__(type(self))
        clone.__dict__.update(self.__dict__)
        return clone

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        return (_unpickle, (type(self), self._url, self._options, _pickled_serde(self.serde)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def close(self) -> None:
        """Ends the saver and its copies: new calls fail, those under way finish. Idempotent."""
        self._client.close()

    async def aclose(self) -> None:
        """As `close`, and waits for the calls that are under way in this event loop."""
        await self._client.aclose()

    def setup(self) -> None:
        """Does nothing: the service sets up its database itself."""

    async def asetup(self) -> None:
        """Does nothing: the service sets up its database itself."""

    def get_next_version(self, current: str | None, channel: None = None) -> str:
        """A version greater than `current` and different on every call, as PostgresSaver's."""
        return next_version(current)

    # Checkpoints.

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that the config names, or the latest of its thread and namespace."""
        request = codec.get_tuple_request(config)
        answer = self._client.call("get_tuple", request).get_tuple
        if not answer.HasField("tuple"):
            return None
        stored = answer.tuple
        if self._sealing:
            stored = self._drive(self._sealing.open_tuple(stored, _asked(request.get_tuple)))
        return codec.from_tuple(self.serde, stored, config["configurable"]["thread_id"])

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that the config names, or the latest of its thread and namespace."""
        request = codec.get_tuple_request(config)
        answer = (await self._client.acall("get_tuple", request)).get_tuple
        if not answer.HasField("tuple"):
            return None
        stored = answer.tuple
        if self._sealing:
            stored = await self._adrive(self._sealing.open_tuple(stored, _asked(request.get_tuple)))
        return codec.from_tuple(self.serde, stored, config["configurable"]["thread_id"])

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Stores the checkpoint after the one that the config names, all or nothing.

        Returns when it is durable, with the config that names it.
        """
        made = codec.put_request(
            self.serde, config, checkpoint, metadata, new_versions, self.graph, bool(self._sealing)
        )
        if self._sealing:
            self._drive(self._sealing.seal_put(self.serde, made, checkpoint["channel_versions"]))
        try:
            extending.put(self._client, made.request, made.large)
        except CheckpointdError as error:
            self._watches.failed(config, error)
            raise
        if self._watches:
            self._watches.stored(config, checkpoint["id"])
        return codec.next_config(config, checkpoint)

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Stores the checkpoint after the one that the config names, all or nothing.

        Returns when it is durable, with the config that names it.
        """
        made = codec.put_request(
            self.serde, config, checkpoint, metadata, new_versions, self.graph, bool(self._sealing)
        )
        if self._sealing:
            await self._adrive(
                self._sealing.seal_put(self.serde, made, checkpoint["channel_versions"]),
                lambda: self._client.post("put", extending.whole(made.request, made.large)),
            )
        try:
            await extending.aput(self._client, made.request, made.large)
        except CheckpointdError as error:
            self._watches.failed(config, error)
            raise
        if self._watches:
            self._watches.stored(config, checkpoint["id"])
        return codec.next_config(config, checkpoint)

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Stores the writes of one task after the checkpoint that the config names.

        All or nothing. Writes stored before are kept, but replaced if all of `writes` go to
        LangGraph's special channels.
        """
        request = codec.put_writes_request(self.serde, config, writes, task_id, task_path)
        if not writes:
            return
        if self._sealing:
            self._drive(self._sealing.seal_writes(request))
        try:
            self._client.call("put_writes", request)
        except CheckpointdError as error:
            self._watches.failed(config, error)
            raise
        if self._watches:
            self._watches.wrote(config, writes)

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Stores the writes of one task after the checkpoint that the config names.

        All or nothing. Writes stored before are kept, but replaced if all of `writes` go to
        LangGraph's special channels.
        """
        request = codec.put_writes_request(self.serde, config, writes, task_id, task_path)
        if not writes:
            return
        if self._sealing:
            await self._adrive(
                self._sealing.seal_writes(request),
                lambda: self._client.post("put_writes", request),
            )
        try:
            await self._client.acall("put_writes", request)
        except CheckpointdError as error:
            self._watches.failed(config, error)
            raise
        if self._watches:
            self._watches.wrote(config, writes)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """The checkpoints that match, newest first, each complete, read as they are asked for.

        All threads, namespaces and checkpoints where the config names none, all of them without a
        limit. A connection that breaks on the way is not noticed.
        """
        listing = Listing(codec.list_request(config, filter, before, limit))
        thread_id = (config or {}).get("configurable", {}).get("thread_id")
        while (request := listing.next_page()) is not None:
            try:
                page = self._client.call("list_page", request).list_page
            except NotCarried:
                break
            for stored in listing.take_page(page):
                yield codec.from_tuple(self.serde, self._opened(stored, listing), thread_id)
        if listing.is_over:
            return
        parts = self._client.stream("List", listing.request, ListResponse, listing.took)
        for part in parts:
            yield codec.from_tuple(self.serde, self._opened(part.tuple, listing), thread_id)
            if listing.is_over:
                return

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """The checkpoints that match, newest first, each complete, read as they are asked for.

        All threads, namespaces and checkpoints where the config names none, all of them without a
        limit. A connection that breaks on the way is not noticed.
        """
        listing = Listing(codec.list_request(config, filter, before, limit))
        thread_id = (config or {}).get("configurable", {}).get("thread_id")
        while (request := listing.next_page()) is not None:
            try:
                page = (await self._client.acall("list_page", request)).list_page
            except NotCarried:
                break
            for stored in listing.take_page(page):
                opened = await self._aopened(stored, listing)
                yield codec.from_tuple(self.serde, opened, thread_id)
        if listing.is_over:
            return
        parts = self._client.astream("List", listing.request, ListResponse, listing.took)
        async for part in parts:
            opened = await self._aopened(part.tuple, listing)
            yield codec.from_tuple(self.serde, opened, thread_id)
            if listing.is_over:
                return

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """For each channel the writes of the checkpoint's ancestors and the value they build on.

        As the base class promises, but walked in the database: one call where the base class makes
        one for each ancestor.
        """
        history = codec.History(self.serde, channels)
        if channels:
            request = _history_request(config, channels)
            add, begin, end = self._history(history, request)
            parts = self._client.stream(
                "GetChannelHistory", request, GetChannelHistoryResponse, lambda _: None, begin
            )
            for part in parts:
                history.add(self._drive(add(part)) if add else part)
            end()
        return history.result()

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """For each channel the writes of the checkpoint's ancestors and the value they build on.

        As the base class promises, but walked in the database: one call where the base class makes
        one for each ancestor.
        """
        history = codec.History(self.serde, channels)
        if channels:
            request = _history_request(config, channels)
            add, begin, end = self._history(history, request)
            parts = self._client.astream(
                "GetChannelHistory", request, GetChannelHistoryResponse, lambda _: None, begin
            )
            async for part in parts:
                history.add(await self._adrive(add(part)) if add else part)
            end()
        return history.result()

    def _history(self, history: codec.History, request: GetChannelHistoryRequest) -> Any:
        """What decrypts a message, if it has to be; what begins anew, and what checks the end."""
        if not self._sealing:
            return None, history.clear, lambda: None
        request.with_seals = True
        opened = self._sealing.history(
            (request.thread_id, request.checkpoint_ns, request.checkpoint_id), request.channels
        )

        def begin() -> None:
            history.clear()
            opened.clear()

        return opened.add, begin, opened.end

    # Encryption: what has to be asked on the way, of the keys or of the service.

    def _drive(self, steps: Steps[Any]) -> Any:
        answer: Any = None
        while True:
            try:
                ask = steps.send(answer)
            except StopIteration as done:
                return done.value
            if isinstance(ask, OpenSessionRequest):
                answer = self._client.call("get_tuple", ask).get_tuple
                continue
            answer = ask()
            if inspect.isawaitable(answer):
                if inspect.iscoroutine(answer):
                    answer.close()
                raise TypeError(
                    "encryption's keys have to be awaited, which only the asynchronous methods "
                    "(ainvoke) can"
                )

    async def _adrive(self, steps: Steps[Any], store: Callable[[], None] | None = None) -> Any:
        """As `_drive`. Cancelled meanwhile, `store` is called all the same when it is through."""
        answer: Any = None
        while True:
            try:
                ask = steps.send(answer)
            except StopIteration as done:
                return done.value
            answer = self._aread(ask) if isinstance(ask, OpenSessionRequest) else ask()
            if not inspect.isawaitable(answer):
                continue
            if store is None:
                answer = await answer
                continue
            waiting = asyncio.ensure_future(answer)
            try:
                answer = await asyncio.shield(waiting)
            except asyncio.CancelledError:
                task = asyncio.ensure_future(self._finish(waiting, steps, store))
                # The loop itself keeps no task alive.
                _finishing.add(task)
                task.add_done_callback(_finishing.discard)
                raise

    async def _finish(
        self, waiting: Awaitable[Any], steps: Steps[Any], store: Callable[[], None]
    ) -> None:
        answer = await waiting
        rest = _after(steps, answer)
        await self._adrive(rest)
        store()

    async def _aread(self, request: OpenSessionRequest) -> Any:
        return (await self._client.acall("get_tuple", request)).get_tuple

    def _opened(self, stored: Any, listing: Listing) -> Any:
        if not self._sealing:
            return stored
        return self._drive(self._sealing.open_tuple(stored, _asked(listing.request)))

    async def _aopened(self, stored: Any, listing: Listing) -> Any:
        if not self._sealing:
            return stored
        return await self._adrive(self._sealing.open_tuple(stored, _asked(listing.request)))

    # Threads.

    def delete_thread(self, thread_id: str) -> None:
        """Deletes everything of the thread, all or nothing. Succeeds if there is nothing."""
        self._client.call("delete_thread", _delete_request(thread_id))

    async def adelete_thread(self, thread_id: str) -> None:
        """Deletes everything of the thread, all or nothing. Succeeds if there is nothing."""
        await self._client.acall("delete_thread", _delete_request(thread_id))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Deletes the checkpoints whose metadata has one of these as ``run_id``, in all threads.

        Fails with "failed_precondition" (STILL_NEEDED), and deletes nothing, if a checkpoint of
        another run rebuilds a delta channel from one of them.
        """
        for request in _delete_runs_requests(run_ids):
            self._client.call("delete_runs", request)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Deletes the checkpoints whose metadata has one of these as ``run_id``, in all threads.

        Fails with "failed_precondition" (STILL_NEEDED), and deletes nothing, if a checkpoint of
        another run rebuilds a delta channel from one of them.
        """
        for request in _delete_runs_requests(run_ids):
            await self._client.acall("delete_runs", request)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copies everything of a thread under another name, all or nothing.

        Fails with "failed_precondition" (TARGET_NOT_EMPTY) if anything is stored there, which a
        second call would meet too: it is repeated only where the service certainly did not begin
        it.
        """
        request = _copy_request(source_thread_id, target_thread_id)
        self._client.call("copy_thread", request, idempotent=False)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copies everything of a thread under another name, all or nothing.

        Fails with "failed_precondition" (TARGET_NOT_EMPTY) if anything is stored there, which a
        second call would meet too: it is repeated only where the service certainly did not begin
        it.
        """
        request = _copy_request(source_thread_id, target_thread_id)
        await self._client.acall("copy_thread", request, idempotent=False)

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Removes all but the latest checkpoint of each namespace, or everything ("delete").

        What a checkpoint that stays needs, such as the ancestors from which it rebuilds a delta
        channel, stays too.
        """
        for request in _prune_requests(thread_ids, strategy):
            for _ in self._client.stream(
                "PruneThreads", request, PruneThreadsResponse, _after_thread(request)
            ):
                pass

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Removes all but the latest checkpoint of each namespace, or everything ("delete").

        What a checkpoint that stays needs, such as the ancestors from which it rebuilds a delta
        channel, stays too.
        """
        for request in _prune_requests(thread_ids, strategy):
            async for _ in self._client.astream(
                "PruneThreads", request, PruneThreadsResponse, _after_thread(request)
            ):
                pass


# What was cancelled and is to be stored all the same.
_finishing: set[asyncio.Future[None]] = set()


def _sealing(encryption: Encryption | None, memory_bytes: int) -> Sealing | None:
    if encryption is None:
        return None
    try:
        from .sealing import Sealing
    except ImportError as error:
        raise ImportError(
            'encryption needs the package cryptography: pip install "checkpointd[encryption]"'
        ) from error
    return Sealing(encryption, memory_bytes)


def _after(steps: Steps[Any], answer: object) -> Steps[Any]:
    """The rest of the steps, the next of which waits for the answer."""
    try:
        ask = steps.send(answer)
    except StopIteration as done:
        return done.value
    while True:
        try:
            ask = steps.send((yield ask))
        except StopIteration as done:
            return done.value


def _asked(request: GetTupleRequest | ListRequest) -> tuple[str | None, str | None, str]:
    """Which checkpoint was asked for, as far as it was said."""
    if isinstance(request, GetTupleRequest):
        return request.thread_id, request.checkpoint_ns, request.checkpoint_id
    return (
        request.thread_id if request.HasField("thread_id") else None,
        request.checkpoint_ns if request.HasField("checkpoint_ns") else None,
        request.checkpoint_id,
    )


def _history_request(config: RunnableConfig, channels: Sequence[str]) -> GetChannelHistoryRequest:
    keys = configurable("get_delta_channel_history", config)
    return GetChannelHistoryRequest(
        thread_id=required("get_delta_channel_history", keys, "thread_id"),
        checkpoint_ns=optional(keys, "checkpoint_ns"),
        checkpoint_id=optional(keys, "checkpoint_id"),
        channels=list(dict.fromkeys(channels)),
    )


def _delete_request(thread_id: str) -> OpenSessionRequest:
    thread_id = check_name("thread_id", thread_id)
    return OpenSessionRequest(delete_thread=DeleteThreadRequest(thread_id=thread_id))


# As many as one request may name.
_MOST_NAMES = 1000


def _delete_runs_requests(run_ids: Sequence[str]) -> Iterator[OpenSessionRequest]:
    names = _names("run_ids", run_ids)
    for at in range(0, len(names), _MOST_NAMES):
        some = names[at : at + _MOST_NAMES]
        yield OpenSessionRequest(delete_runs=DeleteRunsRequest(run_ids=some))


def _copy_request(source: str, target: str) -> OpenSessionRequest:
    return OpenSessionRequest(
        copy_thread=CopyThreadRequest(
            source_thread_id=check_name("source_thread_id", source),
            target_thread_id=check_name("target_thread_id", target),
        )
    )


def _prune_requests(thread_ids: Sequence[str], strategy: str) -> Iterator[PruneThreadsRequest]:
    names = _names("thread_ids", thread_ids)
    if strategy not in ("keep_latest", "delete"):
        raise ValueError(f'strategy must be "keep_latest" or "delete", not {strategy!r}')
    for at in range(0, len(names), _MOST_NAMES):
        some = names[at : at + _MOST_NAMES]
        if strategy == "delete":
            yield PruneThreadsRequest(thread_ids=some, delete=True)
        else:
            yield PruneThreadsRequest(thread_ids=some, keep_last=1)


def _names(field: str, values: Sequence[str]) -> list[str]:
    if isinstance(values, (str, bytes)):
        # Which would be taken letter by letter.
        raise TypeError(f"{field} must be a sequence of strings, not one string; for one [{field}]")
    return [check_name(f"{field}[{at}]", value) for at, value in enumerate(values)]


def _after_thread(request: PruneThreadsRequest) -> Callable[[PruneThreadsResponse], None]:
    def took(part: PruneThreadsResponse) -> None:
        if part.thread_id:
            request.after_thread_id = part.thread_id

    return took


def _pickled_serde(serde: SerializerProtocol) -> Any:
    # LangGraph's own holds a function that cannot be pickled, which follows from its options.
    if type(serde) is not JsonPlusSerializer or serde._custom_unpack_ext_hook:
        return serde
    return (
        serde.pickle_fallback,
        serde._allowed_json_modules,
        serde._allowed_msgpack_modules,
    )


def _unpickle(
    kind: type[ConnectSaver], url: str, options: dict[str, Any], serde: Any
) -> ConnectSaver:
    if isinstance(serde, tuple):
        serde = JsonPlusSerializer(
            pickle_fallback=serde[0],
            allowed_json_modules=serde[1],
            allowed_msgpack_modules=serde[2],
        )
    return kind(url, serde=serde, **options)
