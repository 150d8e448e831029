"""How many images one forward pass may take, found by trying one."""

import torch
from torch import nn

ON_CPU = 16
LARGEST = 512
PROBE = 8


def largest_batch(network: nn.Module, device: torch.device, size: int) -> int:
    """Images per pass that fit into half of the free memory with a graph recorded: a power of two up to 512.

    On the CPU, where more images per pass gain nothing, it is 16.

    Parameters
    ----------
    network: on `device`, images (N,3,size,size) -> logits.
    """
    if device.type != "cuda":
        return ON_CPU
    images = torch.zeros(PROBE, 3, size, size, device=device, requires_grad=True)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with torch.enable_grad():
        network(images).sum().backward()
    per_image = (torch.cuda.max_memory_allocated(device) - before) / PROBE
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    fitting = max(1, int(free / 2 / per_image))
    return min(LARGEST, 1 << (fitting.bit_length() - 1))
