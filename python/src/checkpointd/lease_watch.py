"""What is stored under the leases of threads that are recovered, and whether they are lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import WRITES_IDX_MAP

from .errors import CheckpointdError
from .names import LEASE_TOKEN


class Watch:
    """One lease, from the claim to the end of the run."""

    def __init__(self, checkpoint_id: str) -> None:
        self._checkpoint_id = checkpoint_id
        self._on_lost: Callable[[], object] | None = None
        # Whether the thread got anywhere.
        self.has_moved = False
        # Why the lease is not held any more.
        self.lost: Exception | None = None

    def lose(self, error: Exception) -> None:
        """Tells that the lease is lost. Any thread may; only the first time counts."""
        if self.lost is None:
            self.lost = error
            if self._on_lost is not None:
                self._on_lost()

    def on_lost(self, call: Callable[[], object]) -> None:
        """Has it called, at once if the lease is lost already."""
        self._on_lost = call
        if self.lost is not None:
            call()

    def stored(self, checkpoint_id: str) -> None:
        """Takes note of a checkpoint that was stored."""
        if checkpoint_id != self._checkpoint_id:
            self.has_moved = True


class Watches(dict[str, Watch]):
    """The watches of a saver and its copies, by the leases' tokens."""

    def failed(self, config: RunnableConfig, error: CheckpointdError) -> None:
        """Something could not be stored."""
        watch = self and self._of(config)
        if watch and error.reason == "LEASE_LOST":
            watch.lose(error)

    def stored(self, config: RunnableConfig, checkpoint_id: str) -> None:
        """A checkpoint was stored."""
        if watch := self._of(config):
            watch.stored(checkpoint_id)

    def wrote(self, config: RunnableConfig, writes: Sequence[tuple[str, Any]]) -> None:
        """Writes of a task were stored."""
        # Those to special channels tell how a task stands, not that it got anywhere.
        watch = self._of(config)
        if watch and any(channel not in WRITES_IDX_MAP for channel, _ in writes):
            watch.has_moved = True

    def _of(self, config: RunnableConfig) -> Watch | None:
        return self.get(config["configurable"].get(LEASE_TOKEN, ""))
