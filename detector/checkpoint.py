"""Checkpoints: a directory that is either whole and proven so, or refused with the reason.

A checkpoint holds ``model.safetensors``, ``vocabulary.json`` and ``manifest.json``. The manifest names the
SHA-256 of the other two and of itself, so one flipped byte anywhere is found; nothing is unpickled.

`save` writes beside the final place, syncs every file and the directory, moves an older checkpoint aside to
``.<name>.previous``, renames the new one into its place and removes the old one. Killed at any moment, it leaves the
old checkpoint or the new one: between the two renames only ``.<name>.previous`` is there, and `load` then reads that.
A ``.<name>.<random>.new`` that a killed save leaves is read by nothing and may be removed.
"""

import hashlib
import importlib.metadata
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from detector.errors import CheckpointError
from detector.model.model import DetectorModel, ModelConfig
from detector.reading import ReadingRecord
from detector.scoring.calibration import Calibration
from detector.scoring.count_profile import CountProfile
from detector.text.vocabulary import Vocabulary

FORMAT: Final = "logmamba.checkpoint"
VERSION: Final = 2

MODEL_FILE: Final = "model.safetensors"
VOCABULARY_FILE: Final = "vocabulary.json"
MANIFEST_FILE: Final = "manifest.json"
_VECTORS, _WEIGHTS = "count_profile.vectors", "count_profile.weights"  # beside the model's weights
FILES = (MODEL_FILE, VOCABULARY_FILE, MANIFEST_FILE)


@dataclass(frozen=True)
class TrainingRecord:
    """Where a checkpoint comes from.

    Attributes:
        fingerprint: ``sha256:<hex>`` of the training sessions, their labels and counts.
        seed: the seed the training started from.
        mode: whether labels took part.
        sessions: number of sessions, repeated ones counted each time.
        anomalous: how many of them are labelled anomalous.
        events: number of events in them.
        metrics: figures of the validation part, by name.
    """

    fingerprint: str
    seed: int
    mode: Literal["labelled", "normals_only"]
    sessions: int
    anomalous: int
    events: int
    metrics: dict[str, float]


class Manifest(BaseModel):
    """``manifest.json`` without its own hash.

    `reading` says how the sessions of raw lines were formed; it is None for parsed ones, and in a checkpoint from
    before there was such a record.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["logmamba.checkpoint"]
    version: Literal[2]
    library: str
    model: ModelConfig
    calibration: Calibration
    training: TrainingRecord
    reading: ReadingRecord | None = None
    files: dict[Literal["model.safetensors", "vocabulary.json"], str]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read whole and checked.

    Attributes:
        digest: ``sha256:<hex>`` of the bytes of ``manifest.json``; it identifies the checkpoint.
        manifest: what the manifest says.
        vocabulary: the templates.
        weights: parameters and buffers of the model, by name, on the CPU.
        profile: of the counts in normal sessions.
    """

    digest: str
    manifest: Manifest
    vocabulary: Vocabulary
    weights: Mapping[str, Tensor]
    profile: CountProfile

    def build_model(self) -> DetectorModel:
        """A new model with these weights, in evaluation mode, float32, on the CPU."""
        model = DetectorModel(self.manifest.model, torch.from_numpy(self.vocabulary.template_features()))
        model.load_state_dict(self.weights)
        return model.eval()


def save(
    directory: Path,
    *,
    model: DetectorModel,
    vocabulary: Vocabulary,
    profile: CountProfile,
    calibration: Calibration,
    training: TrainingRecord,
    reading: ReadingRecord | None = None,
) -> str:
    """Write a checkpoint at `directory`, replacing an older checkpoint there as a whole.

    Returns:
        The digest of the new checkpoint.

    Raises:
        CheckpointError: `directory` holds something that is no checkpoint, which stays, or the checkpoint
            cannot be written, and then an older one stays.
    """
    directory = directory.resolve()
    weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    weights[_VECTORS], weights[_WEIGHTS] = map(torch.from_numpy, (profile.vectors, profile.weights))
    contents = {
        MODEL_FILE: safetensors.torch.save(weights),
        VOCABULARY_FILE: vocabulary.to_json(),
    }
    manifest = Manifest(
        format=FORMAT,
        version=VERSION,
        library=importlib.metadata.version("logmamba"),
        model=model.config,
        calibration=calibration,
        training=training,
        reading=reading,
        files={
            MODEL_FILE: _sha256(contents[MODEL_FILE]),
            VOCABULARY_FILE: _sha256(contents[VOCABULARY_FILE]),
        },
    )
    contents[MANIFEST_FILE] = _seal(manifest)
    try:
        _refuse_to_replace_anything_else(directory)
        _write_and_rename(directory, contents)
    except OSError as error:
        raise CheckpointError(f"cannot write checkpoint {directory}: {error}") from error
    return _sha256(contents[MANIFEST_FILE])


def load(directory: Path) -> Checkpoint:
    """Read and check a checkpoint.

    Raises:
        CheckpointError: naming the file and what disagrees.
    """
    directory = _whole_directory(directory)
    manifest_bytes = _read(directory, MANIFEST_FILE)
    manifest = _unseal(directory, manifest_bytes)
    contents = {name: _read(directory, name) for name in (MODEL_FILE, VOCABULARY_FILE)}
    for name, expected in manifest.files.items():
        if (actual := _sha256(contents[name])) != expected:
            raise CheckpointError(
                f"{directory / name} is {actual} but {MANIFEST_FILE} was written for {expected}: "
                "it is damaged or belongs to another training"
            )
    try:
        vocabulary = Vocabulary.from_json(contents[VOCABULARY_FILE])
    except ValueError as error:
        raise CheckpointError(f"{directory / VOCABULARY_FILE}: {error}") from error
    try:
        weights = safetensors.torch.load(contents[MODEL_FILE])
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{directory / MODEL_FILE}: {error}") from error
    try:
        profile = CountProfile(*(weights.pop(name).numpy() for name in (_VECTORS, _WEIGHTS)))
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{directory / MODEL_FILE}: the count profile: {error}") from error
    checkpoint = Checkpoint(_sha256(manifest_bytes), manifest, vocabulary, weights, profile)
    _check_fit(directory, checkpoint)
    return checkpoint


def _check_fit(directory: Path, checkpoint: Checkpoint) -> None:
    """Vocabulary, model configuration and weights describe one and the same model."""
    config, vocabulary, weights = checkpoint.manifest.model, checkpoint.vocabulary, checkpoint.weights
    if config.vocabulary_size != len(vocabulary):
        raise CheckpointError(
            f"{directory / VOCABULARY_FILE} has {len(vocabulary)} tokens but the model was trained with "
            f"{config.vocabulary_size}: it belongs to another training"
        )
    try:
        model = DetectorModel(config, torch.from_numpy(vocabulary.template_features()))
    except ValueError as error:
        raise CheckpointError(f"{directory / MANIFEST_FILE}: model: {error}") from error
    expected = model.state_dict()
    if odd := sorted(expected.keys() ^ weights.keys()):
        where = "is missing from" if odd[0] in expected else "is unknown in"
        raise CheckpointError(f"{directory / MODEL_FILE}: {odd[0]} {where} the weights ({len(odd)} such names)")
    for name, tensor in expected.items():
        found = weights[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise CheckpointError(
                f"{directory / MODEL_FILE}: {name} is {found.dtype} {tuple(found.shape)} but {MANIFEST_FILE} "
                f"describes {tensor.dtype} {tuple(tensor.shape)}"
            )
    # Buffers are derived from the vocabulary, so equal shapes with other contents mean other templates.
    for name, _ in model.named_buffers():
        if name in expected and not torch.equal(expected[name], weights[name]):
            raise CheckpointError(
                f"{directory / VOCABULARY_FILE} does not fit the weights: their {name} come from other "
                "templates, so it belongs to another training"
            )


def _seal(manifest: Manifest) -> bytes:
    body = manifest.model_dump(mode="json")
    return _encode({**body, "sha256": _sha256(_encode(body))})


def _unseal(directory: Path, data: bytes) -> Manifest:
    """The manifest in `data`, which must be, byte for byte, what `_seal` writes."""
    path = directory / MANIFEST_FILE
    try:
        body = json.loads(data)
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not the manifest of a checkpoint: its format is not {FORMAT!r}")
    if body.get("version") != VERSION:
        raise CheckpointError(f"{path}: format version {body.get('version')!r}; this library reads {VERSION}")
    says = body.pop("sha256", None)
    try:
        actual = _sha256(_encode(body))
        intact = says == actual and _encode({**body, "sha256": says}) == data
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not intact:
        raise CheckpointError(f"{path} is damaged: its contents are {actual} but it says {says}")
    try:
        manifest = Manifest.model_validate_json(_encode(body))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{path}: {place}: {first['msg']}") from error
    if absent := {MODEL_FILE, VOCABULARY_FILE} - manifest.files.keys():
        raise CheckpointError(f"{path}: files: no hash of {' and '.join(sorted(absent))}")
    return manifest


def _encode(document: dict[str, object]) -> bytes:
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _previous(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.previous")


def _whole_directory(directory: Path) -> Path:
    """`directory`, or what `save` had moved aside when it was killed between its two renames."""
    directory = directory.resolve()
    if not directory.exists() and _previous(directory).is_dir():
        directory = _previous(directory)
    if not directory.exists():
        raise CheckpointError(f"no checkpoint at {directory}: no such directory")
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory; a checkpoint is a directory of {', '.join(FILES)}")
    if absent := [name for name in FILES if not (directory / name).exists()]:
        raise CheckpointError(f"{directory} is not a whole checkpoint: {' and '.join(absent)} missing")
    return directory


def _read(directory: Path, name: str) -> bytes:
    try:
        return (directory / name).read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {directory / name}: {error.strerror}") from error


def _refuse_to_replace_anything_else(directory: Path) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise CheckpointError(f"cannot write checkpoint {directory}: a file of that name is there")
    if odd := sorted(entry.name for entry in directory.iterdir() if entry.name not in FILES):
        raise CheckpointError(
            f"cannot write checkpoint {directory}: the directory there is no checkpoint (it holds {odd[0]}) "
            "and will not be replaced"
        )


def _write_and_rename(directory: Path, contents: Mapping[str, bytes]) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}.new")
    previous = _previous(directory)
    staging.mkdir()
    try:
        for name, data in contents.items():
            with (staging / name).open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        sync_directory(staging)
        if directory.exists():
            # A save that was killed before its last step has left its predecessor; the one in place is newer.
            shutil.rmtree(previous, ignore_errors=True)
            directory.rename(previous)
        try:
            staging.rename(directory)
        except OSError:
            if previous.exists():
                previous.rename(directory)
            raise
        sync_directory(directory.parent)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def sync_directory(directory: Path) -> None:
    """Put on the disk which names a directory holds."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def demo_checkpoint() -> Path:
    """The checkpoint that comes with logmamba: inside an installed package, else in the source tree."""
    installed = Path(str(files("detector") / "checkpoints" / "demo"))
    return installed if installed.is_dir() else Path(__file__).resolve().parents[1] / "checkpoints" / "demo"
