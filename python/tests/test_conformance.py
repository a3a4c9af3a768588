"""LangGraph's conformance suite: every capability, both APIs, nothing skipped."""

from __future__ import annotations

import pytest
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import ALL_CAPABILITIES

from checkpointd import ConnectSaver


class Synchronous(ConnectSaver):
    """Answers the suite's asynchronous calls with the synchronous methods, in the running loop."""

    async def aget_tuple(self, *args, **kwargs):
        return self.get_tuple(*args, **kwargs)

    async def alist(self, *args, **kwargs):
        for each in self.list(*args, **kwargs):
            yield each

    async def aput(self, *args, **kwargs):
        return self.put(*args, **kwargs)

    async def aput_writes(self, *args, **kwargs):
        return self.put_writes(*args, **kwargs)

    async def aget_delta_channel_history(self, *args, **kwargs):
        return self.get_delta_channel_history(*args, **kwargs)

    async def adelete_thread(self, *args, **kwargs):
        return self.delete_thread(*args, **kwargs)

    async def adelete_for_runs(self, *args, **kwargs):
        return self.delete_for_runs(*args, **kwargs)

    async def acopy_thread(self, *args, **kwargs):
        return self.copy_thread(*args, **kwargs)

    async def aprune(self, *args, **kwargs):
        return self.prune(*args, **kwargs)


@pytest.mark.parametrize("kind", [ConnectSaver, Synchronous])
async def test_conforms(kind, service):
    @checkpointer_test(name=kind.__name__)
    async def made():
        async with kind(service.url) as saver:
            yield saver

    report = await validate(made)
    report.print_report()
    assert set(report.results) == {it.value for it in ALL_CAPABILITIES}
    for capability, result in report.results.items():
        assert result.detected and result.passed, (capability, result.failures)
        assert result.tests_passed > 0 and not result.tests_skipped
