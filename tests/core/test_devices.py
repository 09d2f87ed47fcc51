import pytest
import torch

from biofound.core.devices import resolve_device, resolve_precision
from biofound.errors import SettingsError

CPU = torch.device("cpu")


def test_cuda_without_cuda_is_refused_not_replaced(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="--device cuda: this machine offers no CUDA device"):
        resolve_device("cuda")
    assert resolve_device("auto") == CPU


AVX, AMX = {"avx512_bf16": True}, {"avx512_bf16": True, "amx_bf16": True}


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({"cpu_name": "AMD EPYC", **AVX}, "bf16"),
        ({"cpu_name": "Intel Xeon", **AMX}, "bf16"),
        ({"cpu_name": "Intel Xeon", **AVX}, "fp32"),  # half as many products at a time
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False}, "fp32"),
        ({"bf16": True}, "bf16"),
        ({}, "fp32"),
    ],
)
def test_a_cpu_computes_in_bf16_where_that_is_faster(monkeypatch, has, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, **has})
    assert resolve_precision("auto", CPU) == expected
    assert resolve_precision("fp32", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(SettingsError, match="fp16 needs a GPU"):
        resolve_precision("fp16", CPU)
