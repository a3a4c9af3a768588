"""LangGraph's checkpointer over the checkpointd service.

``ConnectSaver("http://127.0.0.1:8080")`` is a checkpointer for ``compile(checkpointer=...)``.
"""

from .encryption import Encryption, EncryptionError, Key, KeySource, keyring
from .errors import CheckpointdError
from .names import LEASE_TOKEN
from .recover import arecover_threads, recover_threads
from .recovery import Recovered, RecoverySummary
from .retry import Retry
from .saver import ConnectSaver
from .thread_reasons import ThreadError, ThreadInterrupt
from .thread_values import ThreadFilter
from .threads import Claim, Lease, Pruned, Thread, ThreadCounts, Threads

__all__ = [
    "LEASE_TOKEN",
    "CheckpointdError",
    "Claim",
    "ConnectSaver",
    "Encryption",
    "EncryptionError",
    "Key",
    "KeySource",
    "Lease",
    "Pruned",
    "Recovered",
    "RecoverySummary",
    "Retry",
    "Thread",
    "ThreadCounts",
    "ThreadError",
    "ThreadFilter",
    "ThreadInterrupt",
    "Threads",
    "arecover_threads",
    "keyring",
    "recover_threads",
]
