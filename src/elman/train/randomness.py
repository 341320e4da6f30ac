"""The state of torch's random generators."""

from __future__ import annotations

from typing import Any

import torch


def random_state() -> dict[str, Any]:
    """Of the CPU's generator and each CUDA device's."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Go on from a saved state; CUDA's only where there are as many devices as there were."""
    torch.set_rng_state(state["cpu"])
    if len(state["cuda"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(state["cuda"])
