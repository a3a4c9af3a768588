"""LangGraph's checkpointer over the checkpointd service.

``ConnectSaver("http://127.0.0.1:8080")`` is a checkpointer for ``compile(checkpointer=...)``.
"""

from .errors import CheckpointdError
from .names import LEASE_TOKEN
from .retry import Retry
from .saver import ConnectSaver

__all__ = ["LEASE_TOKEN", "CheckpointdError", "ConnectSaver", "Retry"]
