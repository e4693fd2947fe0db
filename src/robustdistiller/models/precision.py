"""Mixed precision that is right on the machine at hand."""

from __future__ import annotations

import contextlib
import logging

import torch
from torch import nn

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_precision(wanted: str, device: torch.device, module: nn.Module | None = None) -> str:
    """fp32, bf16 or fp16 for `wanted` in {auto, fp32, bf16, fp16} on `device`, for the encoder `module`.

    Auto is bf16 where the hardware multiplies it (GPUs from Ampere, CPUs with AMX or AVX512-BF16), fp16 on older GPUs, else
    fp32. On a CPU a WavLM stays in fp32, which is four times faster there than bf16, and so does an encoder with fewer than 16
    channels per group in an even position convolution, for which oneDNN's AMX kernel returns wrong numbers.
    """
    if wanted == "fp32":
        return "fp32"
    if device.type == "cpu":
        if wanted == "fp16" or (wanted == "auto" and not _cpu_has_bf16()) or _cpu_needs_fp32(module):
            return "fp32"
        return "bf16"
    if wanted == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        return "fp32"
    return wanted


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """The autocast context of `precision`; nothing for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def _cpu_has_bf16() -> bool:
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def _cpu_needs_fp32(module: nn.Module | None) -> bool:
    if module is None:
        return False
    for part in module.modules():
        config = getattr(part, "config", None)
        if getattr(config, "model_type", "") == "wavlm":
            return True
        if isinstance(part, nn.Conv1d) and part.groups > 1 and part.kernel_size[0] % 2 == 0:
            return part.in_channels // part.groups < 16
    return False
