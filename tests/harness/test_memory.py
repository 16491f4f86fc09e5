import subprocess
import sys
from pathlib import Path

import pytest

# What Linux says of the heap, after it was told: "hg" is for huge pages.
SAYS = """
from harness.memory import keep_freed_memory
keep_freed_memory()
lines = open("/proc/self/smaps").read().partition("[heap]")[2].splitlines()
print(next(line for line in lines if line.startswith("VmFlags")))
"""
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not SETTING.is_file(), reason="a system without large pages")
def test_the_heap_is_of_large_pages():
    # in a process of its own, as it lasts
    command = [sys.executable, "-c", SAYS]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "hg" in said.stdout.split()
