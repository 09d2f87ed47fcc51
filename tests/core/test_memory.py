import platform
import subprocess
import sys

import pytest

from biofound.core import memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_freed_memory_is_kept_so_that_the_next_step_need_not_fetch_it():
    code = """
import resource, sys
from biofound.core.memory import keep_freed_memory
assert keep_freed_memory()
def use():
    blocks = [bytearray(40_000_000) for _ in range(3)]
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {}
    for kept, program in ((True, code), (False, code.replace("assert keep_freed_memory()", ""))):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        faults[kept] = int(done.stdout)
    assert faults[True] < 0.1 * faults[False]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_kept_memory_can_be_returned():
    code = """
from pathlib import Path
from biofound.core.memory import keep_freed_memory, return_freed_memory
def held():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024
assert keep_freed_memory()
before = held()
blocks, last = [bytearray(40_000_000) for _ in range(5)], bytearray(100)
del blocks
kept = held() - before
assert return_freed_memory()
print(kept, held() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, returned = map(float, done.stdout.split())
    assert kept > 150
    assert returned < 20


def test_where_the_library_has_no_such_setting_nothing_happens(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False
    assert memory.return_freed_memory() is False
