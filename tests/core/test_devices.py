import platform
import subprocess
import sys

import pytest
import torch

from biofound.core import devices
from biofound.core.devices import resolve_device, resolve_precision
from biofound.errors import SettingsError

CPU = torch.device("cpu")


def test_cuda_without_cuda_is_refused_not_replaced(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="--device cuda: this machine offers no CUDA device"):
        resolve_device("cuda")
    assert resolve_device("auto") == CPU


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_computes_in_bf16_where_it_has_the_instructions(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16, "avx2": True})
    assert resolve_precision("auto", CPU) == expected
    assert resolve_precision("fp32", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(SettingsError, match="fp16 needs a GPU"):
        resolve_precision("fp16", CPU)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_freed_memory_is_kept_so_that_the_next_step_need_not_fetch_it():
    code = """
import resource, sys
from biofound.core.devices import keep_freed_memory
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
from biofound.core.devices import keep_freed_memory, return_freed_memory
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
    monkeypatch.setattr(devices.sys, "platform", "darwin")
    assert devices.keep_freed_memory() is False
    assert devices.return_freed_memory() is False
