"""Lists of checkpoints: where they go on, and what a tuple has from the one before it."""

from __future__ import annotations

from collections.abc import Iterator

from .errors import CheckpointdError
from .messages import (
    ChannelBlob,
    CheckpointTuple,
    ListPageRequest,
    ListPageResponse,
    ListRequest,
    ListResponse,
    OpenSessionRequest,
)


class Listing:
    """One list, read page by page on a session or as a stream.

    `request` is kept where it goes on: behind the last tuple that came.
    """

    def __init__(self, request: ListRequest) -> None:
        self.request = request
        self._blobs: dict[str, ChannelBlob] = {}
        self._max_tuples = 0
        self._last_json = ""
        self._is_complete = False

    @property
    def is_over(self) -> bool:
        """Whether nothing is to come."""
        return self._is_complete or (self.request.HasField("limit") and self.request.limit <= 0)

    def next_page(self) -> OpenSessionRequest | None:
        """What asks for the next page; None if there is none."""
        if self.is_over:
            return None
        page = ListPageRequest(
            list=self.request,
            max_tuples=self._max_tuples,
            after_checkpoint_json=self._last_json,
        )
        return OpenSessionRequest(list_page=page)

    def take_page(self, page: ListPageResponse) -> Iterator[CheckpointTuple]:
        """The page's tuples, complete."""
        self._max_tuples = page.next_max_tuples
        self._is_complete = page.next_max_tuples == 0
        for stored in page.tuples:
            self._take(stored)
            yield stored

    def took(self, part: ListResponse) -> None:
        """Takes a tuple of the stream, which is complete then."""
        self._take(part.tuple)

    def _take(self, stored: CheckpointTuple) -> None:
        if not stored.HasField("key"):
            raise CheckpointdError("internal", "the service sent a list entry without a key")
        self.request.after.CopyFrom(stored.key)
        if self.request.HasField("limit"):
            self.request.limit -= 1
        for channel in stored.unchanged_channels:
            if channel in self._blobs:
                stored.blobs.append(self._blobs[channel])
        self._blobs = {blob.channel: blob for blob in stored.blobs}
        self._last_json = stored.checkpoint_json
