"""In which precision networks are trained: bfloat16 where the hardware multiplies it. Scores never use it."""

import torch


def training(device: torch.device) -> torch.autocast:
    """A context in which a training step may run; does nothing where bfloat16 would be emulated."""
    able = torch.cpu.get_capabilities()
    fast = device.type == "cuda" or bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)
