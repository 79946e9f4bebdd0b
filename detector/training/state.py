"""The state of a training on disk, which a killed one goes on from.

It is one file: the SHA-256 of what follows, a line of JSON (which training this is and how far it is) and a safetensors
archive (the weights as they are, the best so far, the optimiser's moments). A new state takes the place of the old one
in a single rename after it was synced, so whenever the training is killed, one of them is there, whole.

What is drawn at random during training is drawn from the seed and the number of the step, so no generator has a state
that would have to be kept.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
from torch import Tensor

from detector.directories import sync_directory
from detector.errors import TrainingError
from detector.training.options import Stage

_FORMAT = "logmamba.training-state/1"
_START_OVER = "delete it, or train with --restart, to start over"


@dataclass
class Position:
    """How far a training is.

    Attributes:
        stage: what is being trained.
        step: optimiser steps done in this stage.
        tokens: trained on so far in both stages, BOS and EOS included.
        seconds: of training so far, without what a kill undid.
        best_loss: the lowest validation loss of this stage.
        worse: validations since then.
    """

    stage: Stage
    step: int
    tokens: int
    seconds: float
    best_loss: float
    worse: int


@dataclass(frozen=True)
class Saved:
    """What a training goes on from.

    Attributes:
        position: how far it is.
        weights: of the model, by name.
        best_weights: those with the position's `best_loss`, by name.
        moments: the optimiser's tensors of each parameter, by the parameter's number and the tensor's name.
    """

    position: Position
    weights: Mapping[str, Tensor]
    best_weights: Mapping[str, Tensor]
    moments: Mapping[int, Mapping[str, Tensor]]


class TrainingState:
    """The file of a training's state.

    Args:
        path: of the file; its folder is made where there is none.
        identity: all that decides what the training comes to; texts, numbers and mappings of such.
    """

    def __init__(self, path: Path, identity: Mapping[str, object]) -> None:
        self._path = path.resolve()
        self._identity = {"format": _FORMAT, **identity}

    def load(self) -> Saved | None:
        """What was saved last, None if nothing was.

        Raises:
            TrainingError: the file cannot be read, is damaged or is of another training; the message says in what
                they differ.
        """
        try:
            checksum, _, content = self._path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TrainingError(f"cannot read the state of the training {self._path}: {error.strerror}") from error
        if checksum != _checksum(content):
            raise TrainingError(f"{self._path} is damaged or is not the state of a training: {_START_OVER}")
        header, _, archive = content.partition(b"\n")
        document = json.loads(header)
        if differences := "; ".join(_differences(document["identity"], self._identity)):
            raise TrainingError(f"{self._path} is the state of another training ({differences}): {_START_OVER}")
        groups: dict[str, dict[str, Tensor]] = {"weights": {}, "best": {}}
        for name, tensor in safetensors.torch.load(archive).items():
            group, _, key = name.partition("/")
            groups.setdefault(group, {})[key] = tensor
        return Saved(
            position=Position(**document["position"]),
            weights=groups.pop("weights"),
            best_weights=groups.pop("best"),
            moments={int(group): tensors for group, tensors in groups.items()},
        )

    def save(self, saved: Saved) -> None:
        """Replace what was saved before; when this returns, the new state is on the disk.

        Raises:
            TrainingError: the file cannot be written.
        """
        groups = {"weights": saved.weights, "best": saved.best_weights}
        groups |= {str(number): tensors for number, tensors in saved.moments.items()}
        # Copies, as safetensors refuses tensors that share their memory.
        tensors = {
            f"{group}/{key}": tensor.detach().cpu().clone()
            for group, tensors in groups.items()
            for key, tensor in tensors.items()
        }
        document = {"identity": self._identity, "position": asdict(saved.position)}
        content = json.dumps(document).encode() + b"\n" + safetensors.torch.save(tensors)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._unfinished.open("wb") as file:
                file.writelines((_checksum(content), b"\n", content))
                file.flush()
                os.fsync(file.fileno())
            self._unfinished.replace(self._path)
            sync_directory(self._path.parent)
        except OSError as error:
            raise TrainingError(f"cannot write the state of the training {self._path}: {error.strerror}") from error

    def remove(self) -> None:
        """Forget what was saved; the training is over."""
        self._path.unlink(missing_ok=True)
        self._unfinished.unlink(missing_ok=True)

    @property
    def _unfinished(self) -> Path:
        return self._path.with_name(f".{self._path.name}.new")


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _differences(there: Mapping[str, object], now: Mapping[str, object]) -> Iterator[str]:
    """What differs between two identities, each as ``name: value there, value now``."""
    old, new = (dict(_flat(json.loads(json.dumps(identity)))) for identity in (there, now))
    for name in dict.fromkeys((*new, *old)):
        if old.get(name) != new.get(name):
            before, after = (str(values.get(name, "absent"))[:20] for values in (old, new))
            yield f"{name}: {before} there, {after} now"


def _flat(tree: Mapping[str, object], path: str = "") -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield path + name, value
