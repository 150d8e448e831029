"""How a command speaks and ends: its exit status, and what it says of a mistake or an interruption."""

import sys
import traceback
from collections.abc import Callable

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from camexp.errors import CamexpError

MISTAKES = (CamexpError, HydraException, OmegaConfBaseException)
"""Errors whose message is for the user, those of a config's options among them."""


def counted(number: int, thing: str) -> str:
    """ "1 pair", "2 pairs"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def run_hydra(entry: Callable[[], None]) -> None:
    """Run a Hydra entry. What Hydra itself finds wrong with an option ends with 2: its own 1 has another meaning."""
    try:
        entry()
    except SystemExit as end:
        sys.exit(2 if isinstance(end.__context__, MISTAKES) else end.code)


def exit_status(command: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Run a command; what it returns, 2 after a mistake or another error, 130 when it was interrupted.

    Of an error that is none of the `MISTAKES`, as in a method's own code, the traceback is printed.

    Parameters
    ----------
    interrupted: what is said after an interruption.
    """
    try:
        return command()
    except MISTAKES as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        return 2
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130
