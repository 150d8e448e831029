"""Batch norms folded into the convolutions before them: the same function in evaluation mode, with less work."""

from torch import fx, nn


def fold_batch_norms(network: nn.Module, biased: bool = False) -> int:
    """Fold every batch norm that alone follows a convolution, in place; returns how many were folded.

    Convolutions with a bias of their own are left as they are unless `biased`: FullGrad has a term for each bias, and
    two that become one are another map.

    The convolution takes over scale and shift, gamma / sqrt(var + eps) and beta - mean gamma / sqrt(var + eps), and
    the batch norm becomes an identity of the same name, so that layers keep their paths and outputs. The network
    must be in evaluation mode. One that cannot be traced symbolically is left as it is.
    """
    modules = dict(network.named_modules())
    try:
        graph = fx.Tracer().trace(network)
    except Exception:  # tracing runs the network's own code on proxies and may raise anything
        return 0
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    folded = 0
    for node in graph.nodes:
        before = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if node.op != "call_module" or before is None or before.op != "call_module":
            continue
        convolution, norm = modules[before.target], modules[node.target]
        if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
            continue
        alone = len(before.users) == 1 and calls.count(before.target) == calls.count(node.target) == 1
        if alone and (biased or convolution.bias is None):
            network.set_submodule(str(before.target), nn.utils.fuse_conv_bn_eval(convolution, norm))
            network.set_submodule(str(node.target), nn.Identity())
            folded += 1
    return folded
