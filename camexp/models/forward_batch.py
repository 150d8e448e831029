"""How many images one forward pass may take, found by trying one."""

import torch
from torch import Tensor, nn

ON_CPU = 16
GRAPH_ON_CPU = 960 << 20
"""Most images per pass on the CPU, and most bytes of their graph: beyond these a pass only takes more memory."""

LARGEST = 512
PROBE = 8

OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "allocate memory",
    "alloc_failed",
    "could not create a primitive",
)
"""What CUDA, PyTorch on Windows and on Linux, CUDA's libraries and oneDNN say."""


def largest_batch(network: nn.Module, device: torch.device, size: int) -> int:
    """Images per pass with a graph recorded, a power of two.

    On a GPU as many as fit into half of the free memory, up to 512; on the CPU, where many gain nothing, up to 16
    whose graph takes less than 1 GB: 16 for the ResNets and 8 for VGG16.

    Parameters
    ----------
    network: on `device`, images (N,3,size,size) -> logits.
    """
    if device.type != "cuda":
        image = torch.zeros(1, 3, size, size, device=device)
        return _power_of_two(GRAPH_ON_CPU / max(1, graph_bytes(network, image)), ON_CPU)
    per_image = None
    try:
        per_image = _bytes_per_image(network, device, size, PROBE)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    if per_image is None:  # out of the handler, which keeps what the pass had in memory
        torch.cuda.empty_cache()
        per_image = _bytes_per_image(network, device, size, 1)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return _power_of_two(free / 2 / per_image, LARGEST)


def _bytes_per_image(network: nn.Module, device: torch.device, size: int, images: int) -> float:
    """What a forward and a backward pass take of a GPU's memory."""
    batch = torch.zeros(images, 3, size, size, device=device, requires_grad=True)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with torch.enable_grad():
        network(batch).sum().backward()
    return (torch.cuda.max_memory_allocated(device) - before) / images


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in the words of PyTorch, of CUDA or of its libraries."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(words in said for words in OUT_OF_MEMORY)


def _power_of_two(fitting: float, most: int) -> int:
    """The largest power of two, from 1 up to `most`, that is not above `fitting`."""
    return min(most, 1 << (max(1, int(fitting)).bit_length() - 1))


def graph_bytes(network: nn.Module, images: Tensor) -> int:
    """What a forward pass keeps for the way back to its images, in bytes, beside parameters and buffers."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.enable_grad():
        graph = network(images.detach().requires_grad_())  # while it lives no memory is used twice
    for constant in (*network.parameters(), *network.buffers()):
        kept.pop(constant.untyped_storage().data_ptr(), None)
    del graph
    return sum(kept.values())
