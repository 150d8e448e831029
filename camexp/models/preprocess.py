"""What a network is fed: resizing, scaling and centring of images, and the same resizing for masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms

from camexp.datasets.base import Sample
from camexp.errors import CamexpError

RESAMPLING = "Pillow, bilinear"
"""How images are resized, with antialiasing: in whole numbers, the same on every processor. PyTorch's way rounds
differently with its versions and the processor, every sixth value by one grey level."""


@dataclass(frozen=True)
class Normalisation:
    """Fed value = (value in [0,1] * scale - mean) / std, per RGB channel."""

    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


NORMALISATIONS = {
    "imagenet": Normalisation(1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "caffe": Normalisation(255.0, (123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
}
"""By the name that `model.preprocess` gives."""


@dataclass(frozen=True)
class Preprocess:
    """Turns decoded images and masks into what the network is fed, (3,h,w) and (P,h,w).

    Parameters
    ----------
    normalisation: a name of `NORMALISATIONS`.
    size: side in pixels.
    resize: "squash" to size x size; "shorter_side" keeps the aspect and brings the shorter side to `size`.
    centring: "model" subtracts the normalisation's mean; "none" does not, as IG-CAM's released notebook.

    Raises
    ------
    CamexpError: for an unknown name, or a size below 1.
    """

    normalisation: str = "imagenet"
    size: int = 224
    resize: str = "squash"
    centring: str = "model"

    def __post_init__(self) -> None:
        if self.normalisation not in NORMALISATIONS:
            raise CamexpError(f"unknown model.preprocess {self.normalisation!r}; one of {', '.join(NORMALISATIONS)}")
        if self.resize not in ("squash", "shorter_side"):
            raise CamexpError(f"protocol.resize must be squash or shorter_side, not {self.resize!r}")
        if self.centring not in ("model", "none"):
            raise CamexpError(f"protocol.centring must be model or none, not {self.centring!r}")
        if not isinstance(self.size, int) or self.size < 1:
            raise CamexpError(f"protocol.size must be a number of pixels from 1 on, not {self.size!r}")

    @property
    def applied(self) -> Normalisation:
        """The normalisation, with a mean of zero when the input is not centred."""
        norm = NORMALISATIONS[self.normalisation]
        return norm if self.centring == "model" else replace(norm, mean=(0.0, 0.0, 0.0))

    def shape(self, width: int, height: int) -> tuple[int, int]:
        """(h,w) of the fed image for an image of width x height."""
        if self.resize == "squash":
            return self.size, self.size
        scale = self.size / min(width, height)
        return round(height * scale), round(width * scale)

    def image(self, image: Image.Image) -> Tensor:
        """RGB image, resized as `RESAMPLING` says, as float32 (3,h,w), normalised."""
        norm, (height, width) = self.applied, self.shape(image.width, image.height)
        pixels = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
        scaled = torch.from_numpy(pixels).permute(2, 0, 1).float() * (norm.scale / 255)
        return transforms.normalize(scaled, list(norm.mean), list(norm.std))

    def black(self) -> Tensor:
        """The fed value (3,1,1) of a black pixel; zero only when no mean is subtracted."""
        norm = self.applied
        return (-torch.tensor(norm.mean) / torch.tensor(norm.std)).view(3, 1, 1)

    def masks(self, masks: Sequence[np.ndarray], width: int, height: int) -> Tensor:
        """Masks (H,W) as (P,h,w) bool: a pixel is set when its centre lies in the object.

        An object so thin that it falls between the centres keeps the pixels that it covers most.
        """
        shape = self.shape(width, height)
        if not masks:
            return torch.zeros(0, *shape, dtype=torch.bool)
        full = torch.from_numpy(np.stack(masks))[:, None].float()
        resized = F.interpolate(full, shape, mode="nearest-exact")[:, 0] > 0.5
        for index in torch.nonzero(~resized.flatten(1).any(1)).flatten().tolist():
            coverage = F.interpolate(full[index : index + 1], shape, mode="area")[0, 0]
            resized[index] = coverage == coverage.max()
        return resized


@dataclass(frozen=True)
class Fed:
    """A sample as the network is fed it.

    Attributes
    ----------
    image: (3,h,w) float32; None when unreadable.
    masks: (P,h,w) bool.
    size: (W,H) of the decoded image, before it was resized.
    """

    sample: Sample
    image: Tensor | None
    masks: Tensor
    size: tuple[int, int] = (0, 0)


def feed(sample: Sample, preprocess: Preprocess) -> Fed:
    """Apply `preprocess` to a decoded sample; the decoded image is let go."""
    decoded = sample.image
    if decoded is None:
        return Fed(sample, None, torch.zeros(0))
    masks = preprocess.masks(sample.masks, decoded.width, decoded.height)
    bare = Sample(sample.image_id, None, sample.targets, (), sample.failures)
    return Fed(bare, preprocess.image(decoded), masks, decoded.size)
