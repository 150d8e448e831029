"""What every method, metric and config must keep: a file added under `configs/` is tested the day it is added."""

import dataclasses
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from conftest import make_batch, make_classifier, tiny_network
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from camexp import config
from camexp.methods.base import Method
from camexp.metrics import METRICS, Explained, Metric
from camexp.models.classifier import CONFIDENCES, Classifier
from camexp.models.preprocess import NORMALISATIONS, Preprocess
from camexp.pairs import Pairs

CHEAP = {"masks": 12, "m": 5, "steps": 5, "samples": 5, "iterations": 5, "sobol_samples": 5, "permutations": 5}
"""Values for parameters that make a method expensive, where a method has them."""

TOLERANCE = 1e-5
"""Of two ways to compute a map, relative to the map's largest value."""


def names(group: str) -> list[str]:
    """Every file of a config group."""
    return sorted(path.stem for path in (config.CONFIGS / group).glob("*.yaml"))


every_method = pytest.mark.parametrize("name", names("method"))
every_metric = pytest.mark.parametrize("name", names("metric"))


@cache
def composed(*overrides: str) -> DictConfig:
    return config.compose_config(list(overrides))


@cache
def method_named(name: str) -> Method:
    """The method as configured, with cheap parameters."""
    method: Any = config.make_method(composed(f"method={name}"))
    fields = {field.name for field in dataclasses.fields(method)}
    return dataclasses.replace(method, **{key: value for key, value in CHEAP.items() if key in fields})


def metric_named(name: str) -> Metric:
    return config.make_metrics(composed(f"+metric@metrics.under_test={name}"))["under_test"]


def some(pairs: Pairs, rows: list[int]) -> Pairs:
    """Those pairs over the same images."""
    assert pairs.masks is not None
    return Pairs(pairs.image[rows], pairs.target[rows], pairs.image_ids, pairs.masks[rows])


def assert_same(maps: Tensor, expected: Tensor) -> None:
    """Equal up to `TOLERANCE` of each expected map's largest value."""
    extent = expected.abs().amax((1, 2), keepdim=True)
    difference = ((maps - expected).abs() / extent.where(extent > 0, 1.0)).max().item()
    assert difference <= TOLERANCE


# ------------------------------------------------------------------------------------------- methods: the maps


@every_method
def test_config_carries_the_name_of_its_file(name: str) -> None:
    assert composed(f"method={name}").method.name == name


@every_method
def test_method_is_a_frozen_dataclass(name: str) -> None:
    method: Any = method_named(name)
    assert dataclasses.is_dataclass(method)
    assert type(method).__dataclass_params__.frozen
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.anything = 1


@every_method
def test_maps_have_shape_type_and_finite_values(name: str) -> None:
    images, pairs = make_batch()
    maps = method_named(name)(make_classifier(), images, pairs)
    assert maps.shape == (len(pairs), 16, 16)
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert not maps.requires_grad


@every_method
@pytest.mark.parametrize(("height", "width"), [(12, 20), (20, 12)])
def test_images_need_not_be_square(name: str, height: int, width: int) -> None:
    images, pairs = make_batch(height=height, width=width)
    maps = method_named(name)(make_classifier(), images, pairs)
    assert maps.shape == (len(pairs), height, width)
    assert maps.isfinite().all()


@every_method
def test_batch_equals_one_by_one(name: str) -> None:
    images, pairs = make_batch()
    assert pairs.masks is not None
    method, classifier = method_named(name), make_classifier()
    maps = method(classifier, images, pairs)
    for p, (image, image_id, target) in enumerate(pairs):
        alone = Pairs(torch.tensor([0]), torch.tensor([target]), (image_id,), pairs.masks[p : p + 1])
        assert_same(maps[p : p + 1], method(classifier, images[image : image + 1], alone))


@every_method
@pytest.mark.parametrize("forward_batch", [1, 2])
def test_maps_do_not_depend_on_forward_batch(name: str, forward_batch: int) -> None:
    images, pairs = make_batch()
    method = method_named(name)
    maps = method(make_classifier(forward_batch=forward_batch), images, pairs)
    assert_same(maps, method(make_classifier(forward_batch=32), images, pairs))


@every_method
def test_maps_do_not_depend_on_the_other_classes(name: str) -> None:
    images, pairs = make_batch()
    method, classifier = method_named(name), make_classifier()
    maps = method(classifier, images, pairs)
    rows = [5, 0, 3]  # and in another order
    assert_same(maps[rows], method(classifier, images, some(pairs, rows)))


@every_method
def test_maps_do_not_depend_on_the_order_of_the_images(name: str) -> None:
    images, pairs = make_batch()
    method, classifier = method_named(name), make_classifier()
    ids = tuple(reversed(pairs.image_ids))
    turned = Pairs(len(ids) - 1 - pairs.image, pairs.target, ids, pairs.masks)
    assert_same(method(classifier, images.flip(0), turned), method(classifier, images, pairs))


@every_method
def test_maps_repeat_whatever_the_global_generator_does(name: str) -> None:
    images, pairs = make_batch()
    method, classifier = method_named(name), make_classifier()
    torch.manual_seed(1)
    first = method(classifier, images, pairs)
    torch.manual_seed(2)
    assert torch.equal(method(classifier, images, pairs), first)


@every_method
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_images_give_finite_maps(name: str, value: float) -> None:
    images, pairs = make_batch()
    maps = method_named(name)(make_classifier(), torch.full_like(images, value), pairs)
    assert maps.isfinite().all()


@every_method
def test_a_network_of_zeros_gives_finite_maps(name: str) -> None:
    network = tiny_network()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    images, pairs = make_batch()
    maps = method_named(name)(make_classifier(network), images, pairs)
    assert maps.shape == (len(pairs), 16, 16)
    assert maps.isfinite().all()


@every_method
def test_a_saturated_network_gives_finite_maps(name: str) -> None:
    network = tiny_network()
    with torch.no_grad():
        network[7].weight.mul_(1e4)
    images, pairs = make_batch()
    assert method_named(name)(make_classifier(network), images, pairs).isfinite().all()


# ----------------------------------------------------------------------------- methods: what they leave behind


def state(network: nn.Module) -> dict[str, Any]:
    """All of a network that a method could disturb, except the values of its parameters."""
    found: dict[str, Any] = {"grad": torch.is_grad_enabled()}
    for path, module in network.named_modules():
        hooks = [len(value) for key, value in vars(module).items() if key.endswith("_hooks") and value is not None]
        found[path] = (type(module), module.training, getattr(module, "inplace", None), hooks)
    for path, parameter in network.named_parameters():
        found[f"{path} (parameter)"] = (parameter.requires_grad, parameter.grad)
    return found


class Fuse(RuntimeError):
    """Blown inside a network's forward."""


@contextmanager
def fused(module: nn.Module, calls: float) -> Iterator[list[int]]:
    """Let `module` run `calls` times and then raise; yields the batch sizes of its calls."""
    forward: Callable[[Tensor], Tensor] = module.forward
    seen: list[int] = []

    def burn(x: Tensor) -> Tensor:
        if len(seen) >= calls:
            raise Fuse
        seen.append(len(x))
        return forward(x)

    module.forward = burn
    try:
        yield seen
    finally:
        del module.forward


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@every_method
def test_nothing_is_kept_from_call_to_call(name: str) -> None:
    classifier, (images, pairs) = make_classifier(), make_batch(2, 12, 12)
    method = method_named(name)
    method(classifier, images, pairs)
    before = tensors_alive()
    for _ in range(3 if "iterations" in vars(method) else 50):
        method(classifier, images, pairs)
    assert tensors_alive() == before


@every_method
def test_network_and_inputs_are_left_as_they_were(name: str) -> None:
    images, pairs = make_batch()
    classifier = make_classifier()
    before, values = state(classifier.network), [v.clone() for v in classifier.network.state_dict().values()]
    image, target, copy = pairs.image.clone(), pairs.target.clone(), images.clone()
    method_named(name)(classifier, images, pairs)
    assert state(classifier.network) == before
    assert all(torch.equal(a, b) for a, b in zip(classifier.network.state_dict().values(), values, strict=True))
    assert torch.equal(images, copy)
    assert not images.requires_grad
    assert torch.equal(pairs.image, image)
    assert torch.equal(pairs.target, target)


@every_method
@pytest.mark.parametrize("layer", ["1", "3", "7"])  # before and after the CAM layer
def test_network_is_left_as_it_was_after_an_exception(name: str, layer: str) -> None:
    images, pairs = make_batch()
    method = method_named(name)

    def new() -> tuple[Classifier, nn.Module, dict[str, Any]]:
        classifier = make_classifier(forward_batch=2)  # a first look at the network, too, may break
        return classifier, classifier.network.get_submodule(layer), state(classifier.network)

    classifier, module, _ = new()
    with fused(module, float("inf")) as seen:
        method(classifier, images, pairs)
    for calls in {0, 1, 2, len(seen) // 2, len(seen) - 1} & set(range(len(seen))):  # none for the controls
        classifier, module, before = new()
        with fused(module, calls), pytest.raises(Fuse):
            method(classifier, images, pairs)
        assert state(classifier.network) == before


@every_method
def test_no_pass_is_larger_than_forward_batch(name: str) -> None:
    images, pairs = make_batch()
    classifier = make_classifier(forward_batch=3)
    with fused(classifier.network.get_submodule("0"), float("inf")) as seen:
        method_named(name)(classifier, images, pairs)
    assert all(size <= 3 for size in seen)


# ---------------------------------------------------------------------------------------------------- metrics


def explained(classifier: Classifier, images: Tensor, pairs: Pairs, maps: Tensor) -> Explained:
    return Explained(classifier, images, pairs, maps, classifier.scores(images)[pairs.image, pairs.target])


def evaluate(
    name: str, maps: Tensor | None = None, masks: Tensor | None = None, rows: list[int] | None = None
) -> Tensor:
    """The metric's values (P,) on the shared batch, with random maps and the batch's masks unless given."""
    images, pairs = make_batch(height=12, width=20)
    assert pairs.masks is not None
    if maps is None:
        maps = torch.rand(len(pairs), 12, 20, generator=torch.Generator().manual_seed(3))
    pairs = Pairs(pairs.image, pairs.target, pairs.image_ids, pairs.masks if masks is None else masks)
    rows = list(range(len(pairs))) if rows is None else rows
    return metric_named(name)(explained(make_classifier(), images, some(pairs, rows), maps[rows]))


def assert_defined(name: str, values: Tensor, count: int) -> None:
    assert values.shape == (count,)
    assert values.isfinite().all()
    if metric_named(name).unit == "%":
        assert ((values >= 0) & (values <= 1)).all()


@every_metric
def test_metric_declares_name_unit_and_direction(name: str) -> None:
    metric = metric_named(name)
    assert metric.name == name
    assert METRICS[name] is type(metric)
    assert isinstance(metric.unit, str)
    assert isinstance(metric.higher_is_better, bool)
    assert type(metric).__dataclass_params__.frozen


def test_every_metric_has_a_config() -> None:
    assert sorted(METRICS) == names("metric")


@every_metric
def test_metric_gives_one_fraction_per_pair(name: str) -> None:
    assert_defined(name, evaluate(name), 6)


@every_metric
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_metric_of_constant_maps_is_defined(name: str, value: float) -> None:
    assert_defined(name, evaluate(name, maps=torch.full((6, 12, 20), value)), 6)


@every_metric
@pytest.mark.parametrize("full", [False, True])
def test_metric_of_empty_and_full_masks_is_defined(name: str, full: bool) -> None:
    assert_defined(name, evaluate(name, masks=torch.full((6, 12, 20), full)), 6)


@every_metric
def test_metric_of_a_batch_equals_one_by_one(name: str) -> None:
    together = evaluate(name)
    alone = torch.cat([evaluate(name, rows=[p]) for p in range(6)])
    assert torch.allclose(together, alone, rtol=0, atol=1e-6)


@every_metric
def test_metric_does_not_change_what_it_measures(name: str) -> None:
    images, pairs = make_batch()
    assert pairs.masks is not None
    maps = torch.rand(len(pairs), 16, 16, generator=torch.Generator().manual_seed(3))
    copies = images.clone(), maps.clone(), pairs.masks.clone()
    classifier = make_classifier()
    before = state(classifier.network)
    metric_named(name)(explained(classifier, images, pairs, maps))
    assert all(torch.equal(a, b) for a, b in zip((images, maps, pairs.masks), copies, strict=True))
    assert state(classifier.network) == before


# ------------------------------------------------------------------------------------------------ other configs


@pytest.mark.parametrize("name", names("model"))
def test_model_config_composes_and_its_layers_exist(name: str) -> None:
    cfg = composed(f"model={name}", "model.width=0.0625", "model.checkpoint=random", "device=cpu")
    assert cfg.model.name == name
    assert cfg.model.preprocess in NORMALISATIONS
    classifier, _ = config.make_classifier(cfg, num_classes=3)
    features = classifier.activations(torch.zeros(1, 3, 64, 64), classifier.layer_names("sise"))
    sides = [feature.shape[2] for feature in features]
    assert sides == sorted(sides, reverse=True)  # from shallow to deep
    assert len(set(sides)) == 5
    assert classifier.cam_layer in classifier.layer_names("sise")


@pytest.mark.parametrize("name", names("protocol"))
def test_protocol_config_composes(name: str) -> None:
    protocol = composed(f"protocol={name}").protocol
    assert protocol.score in CONFIDENCES
    assert protocol.fill in ("fed_zero", "black_pixel")
    Preprocess("imagenet", protocol.size, protocol.resize)


@pytest.mark.parametrize("name", names("dataset"))
def test_dataset_config_composes(name: str) -> None:
    dataset = OmegaConf.to_container(composed(f"dataset={name}"), resolve=True)["dataset"]
    assert dataset["name"] == name
    assert callable(get_object(dataset["_target_"]))
    assert dataset["root"]


@pytest.mark.parametrize("name", names("dataset_model"))
def test_dataset_model_config_belongs_to_its_combination(name: str) -> None:
    dataset, model = name.rsplit("_", 1)
    cfg = composed(f"dataset={dataset}", f"model={model}")
    file = config.CONFIGS / "dataset_model" / f"{name}.yaml"
    values = OmegaConf.to_container(OmegaConf.load(file))
    assert file.read_text().startswith("# @package model\n")
    assert len(values) > 0
    chosen = OmegaConf.to_container(cfg.model)
    other = OmegaConf.to_container(composed(f"model={model}", "dataset=voc").model)
    assert {key: chosen[key] for key in values} == values
    assert {key: other.get(key) for key in values} != values


@pytest.mark.parametrize("group", ["method", "metric", "model", "protocol", "dataset", "dataset_model"])
def test_config_group_is_found(group: str) -> None:
    """Without files the tests above would be skipped in silence."""
    assert names(group)
