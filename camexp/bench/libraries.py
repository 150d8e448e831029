"""Adapters: how grad-cam, torchcam and captum are called, each as its documentation says that it is fastest.

Where a library takes a batch it gets one, where it can use one forward for several classes it does, and where it has a
setting for rows per pass it is set. Libraries are imported when they are needed.
"""

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from camexp.bench.peer import Case

# ---------------------------------------------------------------------------------------------- grad-cam


def grad_cam(name: str, sign: float = 1.0, at_once: int | None = None, **settings: Any) -> Callable[[Case], Tensor]:
    """The class of that name, a batch of targets per call; `sign` -1 explains the negated logit."""

    def explain(case: Case) -> Tensor:
        library = importlib.import_module("pytorch_grad_cam")

        def maps(inputs: Tensor, classes: Tensor) -> Tensor:
            targets = [lambda logits, c=c: sign * logits[..., c] for c in classes.tolist()]
            return torch.from_numpy(cam(inputs.clone(), targets))

        with _quiet(), getattr(library, name)(case.network, [case.module], **settings) as cam:
            cam.batch_size = case.batch  # of masked or ablated rows, where there are any
            return case.by_pair(maps, at_once)

    return explain


def grad_cam_ablation(case: Case) -> Tensor:
    before = case.module
    try:
        return grad_cam("AblationCAM", at_once=1)(case)
    finally:
        case.network.set_submodule(case.layer, before)  # a call that was ended early leaves its own there


def grad_cam_fullgrad(case: Case) -> Tensor:
    library = importlib.import_module("pytorch_grad_cam")
    with library.FullGrad(case.network, []) as cam:

        def maps(inputs: Tensor, classes: Tensor) -> Tensor:
            return torch.from_numpy(cam(inputs.clone(), [lambda y, c=c: y[..., c] for c in classes.tolist()]))

        return case.by_pair(maps, 1)  # more at once take gigabytes


def grad_cam_guided(case: Case) -> Tensor:
    library = importlib.import_module("pytorch_grad_cam")
    model = library.GuidedBackpropReLUModel(case.network, device=case.images.device)

    def maps(inputs: Tensor, classes: Tensor) -> Tensor:
        return torch.from_numpy(model(inputs.clone(), int(classes))).abs().amax(2)[None]

    return case.by_pair(maps, 1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and warnings that libraries print."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# ---------------------------------------------------------------------------------------------- torchcam


Setting = Callable[[Case], Any]


def linear_layer(case: Case) -> str:
    """Name of the last linear layer."""
    return [name for name, module in case.network.named_modules() if isinstance(module, nn.Linear)][-1]


def torchcam(name: str, shared: bool = True, **settings: Setting) -> Callable[[Case], Tensor]:
    """The class of that name; one forward serves all classes of an image where it can (`shared`)."""

    def explain(case: Case) -> Tensor:
        library = importlib.import_module("torchcam.methods")
        chosen = {name: setting(case) for name, setting in settings.items()}
        parts = zip(case.images.split(case.batch), case.targets.split(case.batch), strict=True)
        with getattr(library, name)(case.network, case.layer, **chosen) as extractor:
            return torch.cat([_torchcam_maps(case, extractor, shared, *part) for part in parts])

    return explain


def _torchcam_maps(case: Case, extractor: Any, shared: bool, images: Tensor, targets: Tensor) -> Tensor:
    maps, last = [], targets.shape[1] - 1
    scores = case.network(images)
    for column, classes in enumerate(targets.T.tolist()):
        if shared:
            maps += extractor(classes, scores, normalized=False, retain_graph=column < last)
        else:
            maps += extractor(classes, scores, normalized=False)
    return case.enlarged(torch.stack(maps, 1).flatten(0, 1).detach())  # (b, C, h, w), image by image


def torchcam_without_gradient(name: str, **settings: Setting) -> Callable[[Case], Tensor]:
    plain = torchcam(name, shared=False, **settings)

    def explain(case: Case) -> Tensor:
        with torch.no_grad():
            return plain(case)

    return explain


# ------------------------------------------------------------------------------------------------ captum


def captum(maps: Callable[[Any, Case, Tensor, Tensor], Tensor]) -> Callable[[Case], Tensor]:
    """`maps(captum.attr, case, inputs, classes)` for as many pairs as a pass takes."""

    def explain(case: Case) -> Tensor:
        attr = importlib.import_module("captum.attr")
        with _quiet():
            return case.by_pair(lambda inputs, classes: maps(attr, case, inputs, classes).detach())

    return explain


def layer_gradcam(attr: Any, case: Case, inputs: Tensor, classes: Tensor) -> Tensor:
    cam = attr.LayerGradCam(case.network, case.module).attribute(inputs, classes, relu_attributions=True)
    return attr.LayerAttribution.interpolate(cam, tuple(inputs.shape[2:]), "bilinear")[:, 0]


def saliency(attr: Any, case: Case, inputs: Tensor, classes: Tensor) -> Tensor:
    return attr.Saliency(case.network).attribute(inputs.clone().requires_grad_(), classes).amax(1)


def smoothgrad(attr: Any, case: Case, inputs: Tensor, classes: Tensor) -> Tensor:
    mean = attr.NoiseTunnel(attr.Saliency(case.network)).attribute(
        inputs,
        nt_type="smoothgrad",
        nt_samples=case.method.samples,
        nt_samples_batch_size=max(1, case.batch // len(inputs)),
        stdevs=case.method.sigma * (inputs.max() - inputs.min()).item(),
        target=classes,
        abs=False,
    )
    return mean.abs().amax(1)


def integrated_gradients(attr: Any, case: Case, inputs: Tensor, classes: Tensor) -> Tensor:
    found = attr.IntegratedGradients(case.network).attribute(
        inputs,
        target=classes,
        n_steps=case.method.steps,
        method="riemann_middle",
        internal_batch_size=max(case.batch, len(inputs)),
    )
    return found.float().abs().sum(1)


def deeplift(attr: Any, case: Case, inputs: Tensor, classes: Tensor) -> Tensor:
    return attr.DeepLift(case.network).attribute(inputs, torch.zeros_like(inputs), target=classes).sum(1)


def guided_backprop(attr: Any, case: Case, inputs: Tensor, classes: Tensor) -> Tensor:
    return attr.GuidedBackprop(case.network).attribute(inputs.clone().requires_grad_(), classes).abs().amax(1)


def guided_gradcam(attr: Any, case: Case, inputs: Tensor, classes: Tensor) -> Tensor:
    guided = attr.GuidedGradCam(case.network, case.module)
    return guided.attribute(inputs.clone().requires_grad_(), classes, interpolate_mode="bilinear").abs().amax(1)


def occlusion(attr: Any, case: Case, inputs: Tensor, classes: Tensor) -> Tensor:
    size, stride = case.method.size, case.method.stride
    found = attr.Occlusion(lambda images: case.network(images).softmax(1)).attribute(
        inputs,
        (3, size, size),
        (3, stride, stride),
        target=classes,
        perturbations_per_eval=max(1, case.batch // len(inputs)),
    )
    return found[:, 0].float()


def separate_relus(network: nn.Module) -> nn.Module:
    """The network with a ReLU of its own, and not in place, wherever it uses one: captum asks for that."""
    traced = fx.symbolic_trace(network)
    for node in traced.graph.nodes:
        if node.op == "call_module" and isinstance(traced.get_submodule(str(node.target)), nn.ReLU):
            name = f"{str(node.target).replace('.', '_')}_{node.name}_own"
            traced.add_submodule(name, nn.ReLU())
            node.target = name
    traced.recompile()
    return traced.eval()


def out_of_place(network: nn.Module) -> nn.Module:
    """The network without ReLUs that overwrite their input."""
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return network
