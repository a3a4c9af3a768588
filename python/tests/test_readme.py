"""The Python of README.md, docs/ and python/README.md, as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "python/README.md"]
SCRIPTS = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}-{at}")
    for page in PAGES
    for at, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]
# What a script prints, by a word that is in no other.
PRINTED = {
    "interrupt(": "^{'answer': 'forty-two'}\n$",
    '"thread_id": "python"': "HumanMessage.*Hi.*HumanMessage.*Hello!",
    "keyring": r"^{'diagnosis': \"nobody's business\"}\n$",
    "recover_threads": r"RecoverySummary\(resumed=0, failed=0, stuck=0, lost=0, stopped=0, ",
    "keep_last": "^(readme interrupted .*\n)?$",
}


def test_pages_have_the_scripts_that_are_told_to_be_there():
    for word in PRINTED:
        assert len([it for it in SCRIPTS if word in it.values[0]]) == 1, word
    assert len(SCRIPTS) == len(PRINTED)


@pytest.mark.parametrize("code", SCRIPTS)
def test_script_runs(code, service, saver):
    said = next(text for word, text in PRINTED.items() if word in code)
    code = code.replace("http://127.0.0.1:8080", service.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(said, done.stdout, re.DOTALL), done.stdout
    for thread in ("readme", "python"):
        saver.delete_thread(thread)
