"""The detector's scorer, made from the settings."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from detector.errors import CheckpointError, DeviceError
from worker.errors import RunError
from worker.settings.document import Settings

if TYPE_CHECKING:
    from detector.scoring.scorer import Scorer


def load_scorer(settings: Settings) -> Scorer:
    """Load the checkpoint of the settings onto their device.

    Raises:
        RunError: naming the setting, when the checkpoint is refused or the device is not there.
    """
    # PyTorch takes seconds to import; only what scores waits for it.
    from detector.scoring.scorer import Scorer

    model = settings.model
    try:
        return Scorer.load(
            model.checkpoint,
            device=model.device,
            precision=model.precision,
            kernels=model.kernels,
            batch_tokens=model.batch_tokens,
            cache_size=model.score_cache,
        )
    except CheckpointError as error:
        raise RunError(f"model.checkpoint: {error}") from error
    except DeviceError as error:
        raise RunError(f"model: {error}") from error


def demo_checkpoint() -> Path:
    """The checkpoint that comes with logmamba: inside an installed package, else in the source tree."""
    installed = Path(str(files("detector") / "checkpoints" / "demo"))
    return installed if installed.is_dir() else Path(__file__).resolve().parents[2] / "checkpoints" / "demo"
