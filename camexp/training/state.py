"""The file from which an interrupted training goes on, replaced as a whole or not at all."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from camexp.errors import CamexpError
from camexp.files import write_atomically
from camexp.records import differing


class ResumeFile:
    """Where a run's state lies while it is not finished.

    Parameters
    ----------
    path: the file.
    settings: everything that the weights depend on; a state of other settings is refused.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path, self.settings = path, settings

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the state by a newer one."""
        buffer = io.BytesIO()
        torch.save({"settings": json.dumps(self.settings), "state": dict(state)}, buffer)
        write_atomically(self.path, buffer.getbuffer())

    def load(self, overwrite: bool = False) -> dict[str, Any] | None:
        """The last saved state, or None when there is none.

        Parameters
        ----------
        overwrite: pass over a state that is unreadable or of other settings.

        Raises
        ------
        CamexpError: for such a state otherwise.
        """
        if not self.path.exists():
            return None
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            settings, state = json.loads(content["settings"]), content["state"]
        except Exception as error:  # torch raises many types for a corrupt file
            if overwrite:
                return None
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CamexpError(
                f"cannot read the interrupted training {self.path.absolute()}: {reason}\n"
                "Delete the file or pass overwrite=true to start anew."
            ) from error
        fields = differing(settings, dict(self.settings))
        if fields and not overwrite:
            raise CamexpError(
                f"{self.path} holds an interrupted training of other settings; they differ in\n  "
                + "\n  ".join(fields)
                + "\nGive them again to go on, choose another output=, or pass overwrite=true to start anew."
            )
        return state if not fields else None

    def remove(self) -> None:
        """Forget the state of a run that is finished."""
        self.path.unlink(missing_ok=True)
