"""The example of examples/content_pipeline_python, against this run's service."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[2] / "examples/content_pipeline_python/demo.py"


def test_demo_tells_its_story_and_leaves_nothing(service, saver):
    done = subprocess.run(
        [sys.executable, str(DEMO)],
        env={**os.environ, "CHECKPOINTD_URL": service.url},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert "The end: 20 checks, all hold." in done.stdout
    assert list(saver.threads.list(prefix="hearth-mini-python-")) == []
