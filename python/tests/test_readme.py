"""The README's example, as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def test_example_runs(service, thread):
    text = Path(__file__).parents[1].joinpath("README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    code = code.replace("http://127.0.0.1:8080", service.url).replace('"readme"', f'"{thread}"')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("{'answer': 'forty-two'}\n", ""), done
