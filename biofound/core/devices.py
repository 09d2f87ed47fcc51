"""Device and precision settings of this machine."""

from typing import Literal

import torch

from biofound.errors import SettingsError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
AUTOCAST_DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: Device) -> torch.device:
    """The device to use; `auto` takes a GPU where there is one.

    Raises:
        SettingsError: when CUDA is asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        build = f"torch {torch.__version__}"
        raise SettingsError(
            f"--device cuda: this machine offers no CUDA device to {build}; use --device cpu or auto"
        )
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """The precision of matrix products; `auto` takes bf16 where the hardware multiplies faster in it.

    On a CPU this asks for the instructions rather than timing them: a timing could come out
    differently in the next run, and with it the losses.

    Raises:
        SettingsError: when fp16 is asked for on a CPU, where autocast gains nothing from it.
    """
    if precision == "fp16" and device.type == "cpu":
        raise SettingsError("--precision fp16 needs a GPU; on a CPU use bf16 or fp32")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if cpu_gains_by_bf16() else "fp32"


def cpu_gains_by_bf16() -> bool:
    """Whether this CPU multiplies faster in bf16: by AMX-BF16, Arm's BF16, or AVX512-BF16 but not Intel's.

    Intel's processors with AVX512-BF16 have AMX too, unless a virtual machine hides it. Without it their
    products of bf16 take twice as long as those of fp32 (docs/benchmarks.md).
    """
    has = torch.cpu.get_capabilities()
    by_avx = has.get("avx512_bf16", False) and not str(has.get("cpu_name")).startswith("Intel")
    return by_avx or any(has.get(name, False) for name in ("amx_bf16", "bf16"))
