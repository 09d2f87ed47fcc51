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


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_computes_in_bf16_where_it_has_the_instructions(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16, "avx2": True})
    assert resolve_precision("auto", CPU) == expected
    assert resolve_precision("fp32", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(SettingsError, match="fp16 needs a GPU"):
        resolve_precision("fp16", CPU)
