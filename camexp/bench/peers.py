"""Which library has which method, and the passes that each makes. None of them is changed."""

import math
from collections.abc import Callable

from camexp.bench import libraries as lib
from camexp.bench.peer import Asked, Peer
from camexp.bench.watch import Course
from camexp.bench.work import windows


def _per_pair(rows: Callable[[Asked], float]) -> Callable[[Asked], Course]:
    """All pairs go through the network together."""
    return lambda asked: Course(rows(asked) * asked.shape.pairs)


def _one_by_one(before: int) -> Callable[[Asked], Course]:
    """Pair by pair: some plain passes, then one per channel."""
    return lambda asked: Course(before + asked.channels, before, asked.shape.pairs)


def _one_layer(asked: Asked) -> Course:
    """One pass for all classes of an image."""
    return Course(asked.shape.images)


def _smooth(asked: Asked) -> Course:
    """One plain pass, then the noisy ones for each class."""
    images, classes = asked.shape.images, asked.shape.classes
    return Course(images * (1 + classes * asked.method.samples), min(images, asked.batch))


def _score_cam(asked: Asked) -> Course:
    """One plain pass; then for each class another one, and the masks of all images."""
    images, classes = asked.shape.images, asked.shape.classes
    return Course(images * (1 + classes * (1 + asked.channels)), 2 * min(images, asked.batch))


def _deeplift_calls(asked: Asked) -> Course:
    """captum hands the network image and reference together, so that a call looks like one row."""
    return Course(math.ceil(asked.shape.pairs / asked.batch))


def _twice(asked: Asked) -> Course:
    """Grad-CAM and guided backpropagation in turn."""
    return Course(2 * asked.shape.pairs, least=2 * min(asked.batch, asked.shape.pairs))


ONE = _per_pair(lambda asked: 1)

PEERS: dict[str, tuple[Peer, ...]] = {
    "cam": (Peer("torchcam", lib.torchcam_without_gradient("CAM", fc_layer=lib.linear_layer), _one_layer),),
    "gradcam": (
        Peer("grad-cam", lib.grad_cam("GradCAM"), ONE),
        Peer("torchcam", lib.torchcam("GradCAM"), _one_layer),
        Peer("captum", lib.captum(lib.layer_gradcam), ONE, lib.out_of_place),
    ),
    "gradcam_pp": (
        Peer("grad-cam", lib.grad_cam("GradCAMPlusPlus"), ONE),
        Peer("torchcam", lib.torchcam("GradCAMpp"), _one_layer),
    ),
    "xgradcam": (
        Peer("grad-cam", lib.grad_cam("XGradCAM"), ONE),
        Peer("torchcam", lib.torchcam("XGradCAM"), _one_layer),
    ),
    "layercam": (
        Peer("grad-cam", lib.grad_cam("LayerCAM"), ONE),
        Peer("torchcam", lib.torchcam("LayerCAM"), _one_layer),
    ),
    "hirescam": (Peer("grad-cam", lib.grad_cam("HiResCAM"), ONE),),
    "counterfactual_gradcam": (Peer("grad-cam", lib.grad_cam("GradCAM", sign=-1.0), ONE),),
    "smooth_gradcam_pp": (
        Peer(
            "torchcam",
            lib.torchcam(
                "SmoothGradCAMpp",
                shared=False,
                num_samples=lambda case: case.method.samples,
                std=lambda case: case.method.sigma,
            ),
            _smooth,
        ),
    ),
    "ablationcam": (Peer("grad-cam", lib.grad_cam_ablation, _one_by_one(2)),),
    "scorecam": (
        Peer("grad-cam", lib.grad_cam("ScoreCAM", at_once=1), _one_by_one(1)),
        Peer("torchcam", lib.torchcam_without_gradient("ScoreCAM", batch_size=lambda case: case.batch), _score_cam),
    ),
    "fullgrad": (Peer("grad-cam", lib.grad_cam_fullgrad, ONE),),
    "gradient": (Peer("captum", lib.captum(lib.saliency), ONE),),
    "smoothgrad": (Peer("captum", lib.captum(lib.smoothgrad), _per_pair(lambda asked: asked.method.samples)),),
    "integrated_gradients": (
        Peer("captum", lib.captum(lib.integrated_gradients), _per_pair(lambda asked: asked.method.steps)),
    ),
    "deeplift": (Peer("captum", lib.captum(lib.deeplift), _deeplift_calls, lib.separate_relus),),
    "guided_backprop": (
        Peer("grad-cam", lib.grad_cam_guided, ONE, lib.out_of_place),  # it leaves other ReLUs there than it found
        Peer("captum", lib.captum(lib.guided_backprop), ONE, lib.out_of_place),
    ),
    "guided_gradcam": (Peer("captum", lib.captum(lib.guided_gradcam), _twice, lib.out_of_place),),
    "occlusion": (
        Peer("captum", lib.captum(lib.occlusion), _per_pair(lambda asked: 1 + windows(asked.method, asked.shape))),
    ),
}
"""Peers by method. None of the three libraries has the others."""
