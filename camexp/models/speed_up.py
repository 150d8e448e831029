"""What makes a network faster on a CPU, put into its modules and taken out again."""

from torch import nn

from camexp.models.fuse import Fused, fuse_activations
from camexp.models.linear import LinearProduct, speed_up_linear
from camexp.models.pack import PackedProduct, pack_convolutions


def speed_up(
    network: nn.Module, packed_weights: bool, winograd: bool, fused_activations: bool, onednn_linear: bool
) -> None:
    """Put in what is asked for; parameters as of `Classifier`."""
    if onednn_linear:
        speed_up_linear(network)
    if packed_weights and pack_convolutions(network, winograd) and fused_activations:
        fuse_activations(network)


def as_it_was(network: nn.Module) -> None:
    """Take out what `speed_up` put into a network."""
    for module in network.modules():
        for name, kinds in (("forward", (Fused, LinearProduct)), ("_conv_forward", PackedProduct)):
            if isinstance(vars(module).get(name), kinds):
                del vars(module)[name]
