"""Values of a config against the types of the parameters that they are for."""

from dataclasses import dataclass
from typing import Any

import pytest
from omegaconf import OmegaConf

from camexp.checks import SMALLEST, SWITCHES, check_options, check_types
from camexp.config import compose_config
from camexp.errors import CamexpError
from camexp.places import CONFIGS


@dataclass
class Parameters:
    count: int = 1
    share: float = 0.5
    on: bool = True
    rule: str = "a"
    seed: int | None = None
    size: int | str = 7
    areas: tuple[float, ...] = (0.1,)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", 3),
        ("share", 0.1),
        ("share", 1),
        ("on", False),
        ("rule", "b"),
        ("seed", None),
        ("seed", 2),
        ("size", 3),
        ("size", "all"),
        ("areas", "anything"),
    ],
)
def test_values_of_the_right_type_pass(name: str, value: Any) -> None:
    check_types(Parameters, {name: value}, "method")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", 2.5, "an integer"),
        ("count", True, "an integer"),
        ("count", None, "an integer"),
        ("share", "0.5", "a number"),
        ("share", False, "a number"),
        ("on", 1, "true or false"),
        ("on", "true", "true or false"),
        ("rule", 3, "a string"),
        ("seed", 1.5, "an integer"),
        ("size", 1.5, "an integer or a string"),
    ],
)
def test_values_of_another_type_are_named(name: str, value: Any, expected: str) -> None:
    with pytest.raises(CamexpError, match=rf"^method\.{name} must be {expected}, not "):
        check_types(Parameters, {name: value}, "method")


def test_parameters_that_do_not_exist_are_refused_with_those_that_do() -> None:
    expected = "method has no parameter 'sahre'; it has count, share, on, rule, seed, size, areas"
    with pytest.raises(CamexpError, match=expected):
        check_types(Parameters, {"_target_": "a.b", "sahre": 0.1}, "method")


def test_what_is_no_dataclass_is_let_through() -> None:
    class Own:
        def __init__(self, count: int):
            self.count = count

    check_types(Own, {"count": "many"}, "method")
    check_types(len, {"count": "many"}, "method")


@pytest.mark.parametrize("name", SMALLEST)
def test_options_of_a_run_are_whole_numbers(name: str) -> None:
    cfg = compose_config([])
    check_options(cfg)
    for wrong in (1.5, "x", True):
        OmegaConf.update(cfg, name, wrong)
        with pytest.raises(CamexpError, match=rf"^{name} must be an integer, not {wrong!r}$"):
            check_options(cfg)
    OmegaConf.update(cfg, name, 3)
    check_options(cfg)
    smallest = SMALLEST[name]
    if smallest is not None:
        OmegaConf.update(cfg, name, smallest)
        check_options(cfg)
        OmegaConf.update(cfg, name, smallest - 1)
        with pytest.raises(CamexpError, match=rf"^{name} must be at least {smallest}, not {smallest - 1}$"):
            check_options(cfg)


def test_every_switch_of_the_config_is_checked() -> None:
    cfg = compose_config([])
    found = [name for name in cfg if type(cfg[name]) is bool] + [
        f"runtime.{n}" for n, v in cfg.runtime.items() if type(v) is bool
    ]
    assert sorted(SWITCHES) == sorted(found)
    for name in SWITCHES:
        cfg = compose_config([])
        OmegaConf.update(cfg, name, "no")
        with pytest.raises(CamexpError, match=rf"^{name} must be true or false, not 'no'$"):
            check_options(cfg)


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("+protocl.score=sigmoid", "there is no option protocl; did you mean protocol"),
        ("+protocol.scor=sigmoid", "there is no option protocol.scor; did you mean protocol.score"),
        ("+runtime.trial=1", "there is no option runtime.trial; did you mean runtime.trials"),
        ("+model.widht=2", "there is no option model.widht; did you mean model.width"),
        ("+zzz=1", "there is no option zzz$"),
    ],
)
def test_options_that_do_not_exist_are_refused_however_they_come_in(added: str, said: str) -> None:
    with pytest.raises(CamexpError, match=said):
        check_options(compose_config([added]))


@pytest.mark.parametrize("group", ["model", "protocol", "dataset", "method"])
def test_every_config_has_known_options_only(group: str) -> None:
    for file in (CONFIGS / group).glob("*.yaml"):
        check_options(compose_config([f"{group}={file.stem}"]))
