"""Classifier: the one way in which methods and metrics run a network."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from camexp.errors import CamexpError
from camexp.models.backward import Score, by_class, carried_back, chosen_logit
from camexp.models.forward_batch import out_of_memory
from camexp.models.fuse import fusion_of, watched
from camexp.models.precision import exact_products, products_in_tf32
from camexp.models.speed_up import as_it_was, speed_up
from camexp.pairs import Pairs

T = TypeVar("T")

PRECISIONS = ("fp32", "tf32", "bf16")

CONFIDENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(1),
    "sigmoid": torch.sigmoid,
    "logit": lambda logits: logits,
}


class Classifier:
    """A network in evaluation mode with everything that explaining it needs.

    Parameters
    ----------
    network: images (N,3,H,W) -> logits (N,C). It is taken over: evaluation mode, parameters without
        gradients, in-place activations in passes without a graph only (elsewhere they would overwrite captured ones).
    layers: names of the layers that methods use, by role: "cam" (one module path) and "sise" (several).
    confidence: how logits become the confidence Psi: "softmax", "sigmoid" or "logit".
    fill: (3,1,1) fed value of a masked-out pixel; zeros by default.
    forward_batch: images per forward pass: the one knob for memory; results do not depend on it.
    device: where the network runs.
    precision: of the passes without a graph (those of perturbation methods), save inside `exactly()`: "fp32"; "tf32"
        lets a GPU round the factors of products to 10 bits; "bf16" is bfloat16.
    compiled: run the passes without a graph through torch.compile (with CUDA graphs on a GPU).
    channels_last: memory format of images and weights; otherwise it is PyTorch's default one.
    inference_mode: run the passes without a graph in inference mode; otherwise under no_grad.
    tail_backward: begin graphs at the layer whose gradient is wanted; otherwise at the image, where the backward
        pass then ends as well.
    packed_weights: on a CPU, keep the weights of convolutions in the orders in which passes read them.
    winograd: with packed weights, compute 3 x 3 convolutions of many channels with a quarter of the multiplications.
    fused_activations: with packed weights, let convolutions add and rectify while they write their result.
    onednn_linear: on a CPU, compute large linear layers with the library of the convolutions, not with BLAS, and
        leave out weights that a single row does not need on its way back.

    Raises
    ------
    CamexpError: for an unknown confidence or precision, or a layer that the network lacks.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Mapping[str, str | Sequence[str]],
        confidence: str = "softmax",
        fill: Tensor | None = None,
        forward_batch: int = 32,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        compiled: bool = False,
        channels_last: bool = True,
        inference_mode: bool = True,
        tail_backward: bool = True,
        packed_weights: bool = True,
        winograd: bool = True,
        fused_activations: bool = True,
        onednn_linear: bool = True,
    ):
        if confidence not in CONFIDENCES:
            raise CamexpError(f"protocol.score must be one of {', '.join(CONFIDENCES)}, not {confidence!r}")
        if forward_batch < 1:
            raise CamexpError(f"forward_batch must be at least 1, not {forward_batch}")
        if precision not in PRECISIONS:
            raise CamexpError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
        self.device = torch.device(device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        network = network.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.network: nn.Module = network.eval().requires_grad_(False)
        as_it_was(self.network)  # another classifier may have had it
        if self.device.type == "cpu" and not compiled:
            speed_up(self.network, packed_weights, winograd, fused_activations, onednn_linear)
        self._modules = list(self.network.modules())
        self._activations = [module for module in self._modules if getattr(module, "inplace", False)]
        self._work_in_place(False)
        self._paths = {name for name, _ in self.network.named_modules()}
        self.layers = {role: ((names,) if isinstance(names, str) else tuple(names)) for role, names in layers.items()}
        for names in self.layers.values():
            self._require(names)
        self.confidence_name = confidence
        self.fill = (torch.zeros(3, 1, 1) if fill is None else fill).to(self.device)
        self._fill_is_zero = not bool(self.fill.any())
        self.forward_batch = forward_batch
        self.precision = precision
        self.inference_mode, self.tail_backward = inference_mode, tail_backward
        if self.device.type == "cuda":
            exact_products()
        self._is_known = self._writes_over_images = False  # see `_get_to_know`
        self._compiled = torch.compile(self.network, mode="reduce-overhead", dynamic=False) if compiled else None
        self.on_forward: Callable[[int], None] = lambda images: None  # told of every pass, for progress bars

    def _work_in_place(self, allowed: bool) -> None:
        """Whether activations overwrite their input; they must not while something may look at it later."""
        for module in self._activations:
            module.inplace = allowed  # type: ignore[assignment]

    def _require(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self._paths:
                shown = ", ".join(sorted(p for p in self._paths if p and p.count(".") < 2)[:40])
                raise CamexpError(f"the network has no layer {name!r}; it has {shown}")

    def layer_names(self, layers: str | Sequence[str]) -> tuple[str, ...]:
        """Module paths for the name of a role in the model's config, or the paths themselves."""
        if not isinstance(layers, str):
            return tuple(layers)
        if layers not in self.layers:
            raise CamexpError(
                f"the model's config lists no layers {layers!r}; model.layers has {', '.join(self.layers)}"
            )
        return self.layers[layers]

    @property
    def cam_layer(self) -> str:
        """The layer that CAM methods use unless told otherwise."""
        return self.layer_names("cam")[0]

    # ------------------------------------------------------------------------------------ forward passes

    def confidence(self, logits: Tensor) -> Tensor:
        """Psi of logits (N,C), (N,C)."""
        return CONFIDENCES[self.confidence_name](logits)

    def log_odds(self, logits: Tensor, target: Tensor) -> Tensor:
        """A function (N,) of logits whose gradient is a positive multiple of that of Psi for class `target` (N,).

        d softmax_c = Psi (1 - Psi) d(y_c - log sum_{j != c} exp y_j), and d sigmoid_c = Psi (1 - Psi) dy_c:
        without the factor, which underflows for a saturated network, directions and ratios stay exact.
        """
        chosen = chosen_logit(logits, target)
        if self.confidence_name != "softmax" or logits.shape[1] == 1:
            return chosen
        others = logits.scatter(1, target[:, None], -torch.inf)
        return chosen - others.logsumexp(1)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (N,C) of images (N,3,H,W), `forward_batch` at a time, without a graph."""
        self._get_to_know(images)
        with torch.inference_mode() if self.inference_mode else torch.no_grad():
            chunks = self.in_chunks(lambda rows: self._without_graph(images[rows]), len(images))
        return torch.cat(chunks)  # outside: a graph of the caller's may keep it

    def _without_graph(self, images: Tensor) -> Tensor:
        """Logits (N,C) of one pass at the precision and with the compiled network that were asked for."""
        in_bf16 = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with in_bf16, products_in_tf32(self.precision == "tf32"):
            seen = watched(self._modules)
            if self._compiled is None or seen:  # a compiled network does not look for hooks
                self._work_in_place(not seen)
                try:
                    return self.forward(images).float()
                finally:
                    self._work_in_place(False)
            self.on_forward(len(images))
            missing = self._compiled_size(len(images)) - len(images)
            full = torch.cat([images, images.new_zeros(missing, *images.shape[1:])]) if missing > 0 else images
            return self._compiled(self._fed(full))[: len(images)].float().clone()  # a CUDA graph uses its output again

    def _compiled_size(self, images: int) -> int:
        """Images of a compiled pass that takes so many: one of few sizes, for every other one is compiled anew."""
        size = self.forward_batch
        while size // 8 >= images:
            size //= 8
        return size

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """While the context lasts no pass is rounded or compiled: metrics are measured exactly."""
        chosen = self.precision, self._compiled
        self.precision, self._compiled = "fp32", None
        try:
            yield
        finally:
            self.precision, self._compiled = chosen

    def scores(self, images: Tensor) -> Tensor:
        """Confidence Psi (N,C) of images (N,3,H,W), `forward_batch` at a time, without a graph."""
        return self.confidence(self.logits(images))

    def masked(self, images: Tensor, masks: Tensor) -> Tensor:
        """Images (N,3,H,W) seen through masks (N,1,H,W) in [0,1]: `fill` where the mask is 0."""
        if not self._fill_is_zero:
            return self.fill + (images - self.fill) * masks
        return images * masks

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N,C) of images (N,3,H,W) in one pass, with a graph where the caller records one."""
        self.on_forward(len(images))
        fed = self._fed(images)
        fusion = fusion_of(self.network)
        if fusion is not None:
            fusion.watch(fed)
        try:
            return self.network(fed)
        except RuntimeError as error:
            if "view size is not compatible" not in str(error) or self.memory_format is not torch.channels_last:
                raise
            reason = "the network calls .view on maps, which are not contiguous in channels-last order"
            raise CamexpError(f"{reason}; let it call .reshape or .flatten, or pass channels_last=false") from error

    def _fed(self, images: Tensor) -> Tensor:
        """Images as the network is given them: on its device, in its layout, and copied if it writes over them."""
        fed = images.to(self.device).contiguous(memory_format=self.memory_format)
        return fed.clone() if self._writes_over_images else fed

    @torch.no_grad()
    def _get_to_know(self, images: Tensor) -> None:
        """Find out with one image, once, whether the network writes over its images.

        Raises
        ------
        CamexpError: for a network that reads what its in-place activations overwrote. Passes without a graph let them
            work in place and the others do not: they would compute two functions.
        """
        if self._is_known or len(images) == 0 or watched(self._modules):
            return
        image, told, logits, overwritten = self._fed(images[:1]), self.on_forward, [], False
        self.on_forward = lambda images: None
        try:
            for in_place in sorted({False, bool(self._activations)}):
                fed = image.clone()
                self._work_in_place(in_place)
                with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                    torch.manual_seed(0)  # for networks that draw numbers
                    logits.append(self.forward(fed))
                overwritten |= not torch.equal(fed, image)
        finally:
            self._work_in_place(False)
            self.on_forward = told
        largest = logits[0].nan_to_num().abs().max().item()
        if not torch.allclose(logits[0], logits[-1], rtol=0, atol=1e-3 * largest, equal_nan=True):
            raise CamexpError(
                "the network reads again what one of its in-place activations has overwritten; write down what is "
                "meant, x = relu(x), with inplace=False"
            )
        self._writes_over_images, self._is_known = overwritten, True

    def in_chunks(self, work: Callable[[slice], T], total: int, times: int = 1) -> list[T]:
        """`work(rows)` for consecutive slices of at most `times * forward_batch` of `total` rows, in order.

        When memory runs out, `forward_batch` is halved for good and the slice tried again.
        """
        results: list[T] = []
        start = 0
        while start < total:
            rows = slice(start, min(start + times * self.forward_batch, total))
            try:
                results.append(work(rows))
                start = rows.stop
            except RuntimeError as error:
                if self.forward_batch == 1 or not out_of_memory(error):
                    raise
                self.forward_batch //= 2
            if start < rows.stop and self.device.type == "cuda":
                torch.cuda.empty_cache()
        return results

    # -------------------------------------------------------------------------- activations and gradients

    def copies_at_once(self, images: int) -> int:
        """Of how many copies of so many images (points of paths, noisy samples) gradients are asked for in one call.

        Enough for several passes, so that the images that have equally many classes fill one.
        """
        return max(1, 4 * self.forward_batch // images)

    @contextmanager
    def hooks(self, layers: Sequence[str], keep: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
        """Pass the output of each layer through `keep(name, output)` while the context lasts."""
        self._require(layers)
        handles = [
            self.network.get_submodule(name).register_forward_hook(
                lambda module, args, output, name=name: keep(name, output)
            )
            for name in dict.fromkeys(layers)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def activations(self, images: Tensor, layers: Sequence[str]) -> list[Tensor]:
        """Outputs (B,K,h,w) of each layer for images (B,3,H,W), without a graph."""

        def work(rows: slice) -> list[Tensor]:
            found: dict[str, Tensor] = {}

            def keep(name: str, output: Tensor) -> Tensor:
                require_maps(name, output, found)
                found[name] = output.clone()  # what follows may change its input in place
                return output

            with self.hooks(layers, keep):
                self.forward(images[rows])
            return of_layers(layers, found)

        return [torch.cat(parts) for parts in zip(*self.in_chunks(work, len(images)), strict=True)]

    def capture(self, images: Tensor, layers: Sequence[str]) -> tuple[list[Tensor], Tensor]:
        """One forward pass with a graph that begins at the first of the layers.

        Before that layer nothing is recorded, so that a backward pass runs only through the tail. Without
        `tail_backward` the graph begins at the image, and a backward pass ends there.

        Parameters
        ----------
        images: (B,3,H,W), in one pass.
        layers: module paths; the graph begins at the one that runs first.

        Returns
        -------
        Activations (B,K,h,w) of each layer, differentiable, and logits (B,C).
        """
        self._get_to_know(images)
        inputs = images if self.tail_backward else images.detach().requires_grad_()
        found: dict[str, Tensor] = {}

        def keep(name: str, output: Tensor) -> Tensor:
            require_maps(name, output, found)
            if not found:
                output = output.detach().requires_grad_() if self.tail_backward else carried_back(output, inputs)
            found[name] = output
            return output.clone()  # what follows may change its input in place

        with self.hooks(layers, keep), torch.enable_grad():
            logits = self.forward(inputs)
        return of_layers(layers, found), logits

    def activations_and_gradients(self, images: Tensor, pairs: Pairs, layer: str) -> tuple[Tensor, Tensor]:
        """Activations A and gradients dy_c/dA of the pairs' logits, both (P,K,h,w), at one layer.

        One forward per image, and one backward through the tail behind the layer per pair.
        """
        (activation,), (gradient,) = self.features_and_gradients(images, pairs, [layer])
        return activation[pairs.image], gradient

    def features_and_gradients(
        self,
        images: Tensor,
        pairs: Pairs,
        layers: Sequence[str],
        score: Score = chosen_logit,
        reduce: Callable[[Tensor], Tensor] = lambda gradient: gradient,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Activations A (B,K,h,w) of each layer, and what `reduce` leaves of the gradients dscore/dA, (P,...).

        One forward per image, and one backward to the first layer per pair. Images without pairs are not run; their
        activations are 0.

        Parameters
        ----------
        score: what is differentiated.
        reduce: gradients (n,K,h,w) of n pairs -> (n,...).
        """
        features: list[Tensor] = []

        def work(image: Tensor, target: Tensor) -> list[Tensor]:
            activations, logits = self.capture(images[image], layers)
            columns = [[reduce(g) for g in found] for found in by_class(logits, target, activations, score)]
            if not features:
                features.extend(a.new_zeros(len(images), *a.shape[1:]) for a in activations)
            for feature, activation in zip(features, activations, strict=True):
                feature[image] = activation.detach()
            return [torch.stack(parts, 1) for parts in zip(*columns, strict=True)]

        gradients = self.of_images(pairs, work)
        return features, gradients

    def input_gradients(self, images: Tensor, pairs: Pairs) -> Tensor:
        """Gradients dy_c/dI (P,3,H,W) of the pairs' logits; one forward per image, one backward per pair."""
        self._get_to_know(images)

        def work(image: Tensor, target: Tensor) -> list[Tensor]:
            inputs = images[image].detach().requires_grad_()
            with torch.enable_grad():
                logits = self.forward(inputs)
            return [torch.stack([gradient for (gradient,) in by_class(logits, target, [inputs])], 1)]

        (gradients,) = self.of_images(pairs, work)
        return gradients

    def of_images(self, pairs: Pairs, work: Callable[[Tensor, Tensor], list[Tensor]]) -> list[Tensor]:
        """`work(image, target)` for some images at a time, whose classes share a forward pass; (P,...) each.

        Images with equally many classes go together, so that none is run backward for a class that it does not ask
        for.

        Parameters
        ----------
        work: indices of n images (n,) and c classes for each (n,c) -> any number of results (n,c,...).
        """
        order, results = [], []
        for image, pair in pairs.by_count():

            def some(rows: slice, image: Tensor = image, target: Tensor = pairs.target[pair]) -> list[Tensor]:
                return [result.flatten(0, 1) for result in work(image[rows], target[rows])]

            results += self.in_chunks(some, len(image))
            order.append(pair.flatten())
        places = torch.cat(order).argsort()
        return [torch.cat(parts)[places] for parts in zip(*results, strict=True)]


def require_maps(name: str, output: object, found: Container[str]) -> None:
    """Raise CamexpError unless a layer puts out channels of maps, and for the first time in a pass.

    Parameters
    ----------
    found: the layers that ran before.
    """
    if name in found:
        raise CamexpError(f"layer {name!r} runs more than once in a pass; choose the module around it")
    if not isinstance(output, Tensor):
        raise CamexpError(f"layer {name!r} puts out a {type(output).__name__}, not a tensor; choose another layer")
    if output.dim() != 4:
        shape = "x".join(map(str, output.shape[1:]))
        raise CamexpError(
            f"layer {name!r} puts out {shape} values per image, not channels of maps; choose another layer"
        )


def of_layers(layers: Sequence[str], found: Mapping[str, Tensor]) -> list[Tensor]:
    """What was found of each layer; raises CamexpError for one that did not run."""
    for name in layers:
        if name not in found:
            raise CamexpError(f"layer {name!r} does not run when the network does; choose another layer")
    return [found[name] for name in layers]
