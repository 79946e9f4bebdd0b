"""Checkpoints: a directory that is either whole and proven so, or refused with the reason.

A checkpoint holds ``model.safetensors``, ``vocabulary.json`` and ``manifest.json``, ``tolerances.json`` where it was
learnt from sessions as they were, and ``replay.safetensors``, a sample of these sessions for what is learnt later. The
format's version is 4; without a sample it is 3 with tolerances and 2 without, which stay what they were. The manifest
names the SHA-256 of the others and of itself, so one flipped byte anywhere is found; nothing is unpickled.

`save` replaces an older checkpoint as a whole (`detector.directories`): killed at any moment, it leaves the old one or
the new one.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from detector.directories import place_of, replace_directory
from detector.errors import CheckpointError
from detector.history import MOST_KEPT, Adaptation
from detector.model.model import DetectorModel, ModelConfig
from detector.quality.fingerprint import Fingerprint
from detector.reading import ReadingRecord
from detector.scoring.calibration import Calibration
from detector.scoring.count_profile import Bounds, CountProfile
from detector.scoring.judge import Judge
from detector.scoring.pace import Pace
from detector.scoring.verdict_weights import VerdictWeights
from detector.text.vocabulary import VOCABULARY_FILE, Vocabulary
from detector.training import replay as samples
from detector.training.data import TrainingSessions
from detector.training.replay import REPLAY_FILE

FORMAT: Final = "logmamba.checkpoint"
VERSIONS: Final = (2, 3, 4)

MODEL_FILE: Final = "model.safetensors"
MANIFEST_FILE: Final = "manifest.json"
_WITHOUT_TOLERANCES = "it was trained with labels, on sessions vouched for as normal, or by an older version"
# Beside the model's weights; the last is there only where the table does not hold all vectors.
_VECTORS, _WEIGHTS, _SEEN = (f"count_profile.{name}" for name in ("vectors", "weights", "seen"))
_BOUNDS = tuple(f"count_profile.{name}" for name in Bounds._fields)
# Likewise, where the sessions had times that can be depended on, and where there were verdicts on sessions.
_PAUSES, _BURSTS = "pace.pauses", "pace.bursts"
_VERDICTS = tuple(f"verdicts.{name}" for name in ("features", "weights"))
TOLERANCES_FILE: Final = "tolerances.json"
FILES = (MODEL_FILE, VOCABULARY_FILE, MANIFEST_FILE)
_OTHER_FILES = (TOLERANCES_FILE, REPLAY_FILE)
EXPECTED_WARNINGS: Final = "normals.warning.later"
"""Name of `TrainingRecord.expected_warnings` among the metrics."""

File = Literal["model.safetensors", "vocabulary.json", "tolerances.json", "replay.safetensors"]


@dataclass(frozen=True)
class TrainingRecord:
    """Where a checkpoint comes from.

    Attributes:
        fingerprint: ``sha256:<hex>`` of the training sessions, their labels and counts.
        seed: the seed the training started from.
        mode: whether labels took part; without them, whether all sessions were vouched for as normal.
        sessions: number of sessions, repeated ones counted each time.
        anomalous: how many of them are labelled anomalous.
        events: number of events in them.
        metrics: figures of the validation part, by name.
        score_shares: share of the validation sessions in each bin of `detector.scoring.score_histogram`, by their
            final scores, those that were set aside among them; None in a checkpoint from before it had such a record.
        sketch: of the training and the validation sessions (`detector.quality.session_sketch`); None where their keys
            were not known, and likewise.
    """

    fingerprint: str
    seed: int
    mode: Literal["labelled", "normals_only", "as_they_come"]
    sessions: int
    anomalous: int
    events: int
    metrics: dict[str, float]
    score_shares: list[float] | None = None
    sketch: list[int] | None = None

    @property
    def expected_warnings(self) -> float | None:
        """Share of normal sessions of another time that are warnings by the training; None where it does not say."""
        return self.metrics.get(EXPECTED_WARNINGS)


class Manifest(BaseModel):
    """``manifest.json`` without its own hash.

    `reading` says how the sessions of raw lines were formed; it is None for parsed ones, and in a checkpoint from
    before there was such a record. `fingerprint` is what drift is told by; None where the training had too few sessions
    or not in their order, and likewise. `history` has the adaptations since the training, the latest last.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["logmamba.checkpoint"]
    version: Literal[2, 3, 4]
    library: str
    model: ModelConfig
    calibration: Calibration
    training: TrainingRecord
    reading: ReadingRecord | None = None
    fingerprint: Fingerprint | None = None
    history: tuple[Adaptation, ...] = ()
    files: dict[File, str]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read whole and checked.

    Attributes:
        digest: ``sha256:<hex>`` of the bytes of ``manifest.json``; it identifies the checkpoint.
        manifest: what the manifest says.
        vocabulary: the templates.
        weights: parameters and buffers of the model, by name, on the CPU.
        profile: of the counts in normal sessions.
        judge: tolerances and verdicts; None where it learnt from labels or from normal sessions.
        pace: limits of pauses and bursts; None where there are none.
        verdict_weights: what verdicts on single sessions add to scores; None where there were none.
        replay: sessions that stand for those it learnt from (`detector.training.replay`); None in an older checkpoint.
    """

    digest: str
    manifest: Manifest
    vocabulary: Vocabulary
    weights: Mapping[str, Tensor]
    profile: CountProfile
    judge: Judge | None = None
    pace: Pace | None = None
    verdict_weights: VerdictWeights | None = None
    replay: TrainingSessions | None = None

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
    judge: Judge | None = None,
    pace: Pace | None = None,
    fingerprint: Fingerprint | None = None,
    verdict_weights: VerdictWeights | None = None,
    replay: TrainingSessions | None = None,
    history: Sequence[Adaptation] = (),
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
    if len(profile.seen):
        weights[_SEEN] = torch.from_numpy(profile.seen.view(np.int64))
    if profile.bounds is not None:
        weights |= dict(zip(_BOUNDS, map(torch.from_numpy, profile.bounds), strict=True))
    if pace:
        weights[_PAUSES], weights[_BURSTS] = map(torch.from_numpy, (pace.pauses, pace.bursts))
    if verdict_weights is not None:
        weights |= {name: torch.from_numpy(getattr(verdict_weights, name.split(".")[1])) for name in _VERDICTS}
    contents: dict[File, bytes] = {
        MODEL_FILE: safetensors.torch.save(weights),
        VOCABULARY_FILE: vocabulary.to_json(),
        **({} if judge is None else {TOLERANCES_FILE: judge.to_json()}),
        **({} if replay is None else {REPLAY_FILE: samples.to_bytes(replay)}),
    }
    manifest = Manifest(
        format=FORMAT,
        version=4 if replay is not None else 2 if judge is None else 3,
        library=importlib.metadata.version("logmamba"),
        model=model.config,
        calibration=calibration,
        training=training,
        reading=reading,
        fingerprint=fingerprint,
        history=tuple(history[-MOST_KEPT:]),
        files={name: _sha256(data) for name, data in contents.items()},
    )
    return _write(directory, manifest, contents)


def save_verdicts(directory: Path, judge: Judge) -> str:
    """Replace what a checkpoint says of tolerances and verdicts; all else stays.

    Returns:
        The digest of the checkpoint as it is now.

    Raises:
        CheckpointError: there is no whole checkpoint that learnt from sessions as they were, or it cannot be written.
    """
    if TOLERANCES_FILE not in load(directory).manifest.files:
        raise CheckpointError(f"{directory} has no {TOLERANCES_FILE}: {_WITHOUT_TOLERANCES}")
    return _write_with(directory, TOLERANCES_FILE, judge.to_json(), directory)


def save_vocabulary(directory: Path, vocabulary: Vocabulary, output: Path) -> str:
    """Write a checkpoint that knows templates beyond those it was trained with; all else is that of `directory`.

    Args:
        directory: of the checkpoint.
        vocabulary: that only adds to its own.
        output: where the new one goes; it may be `directory`.

    Returns:
        The digest of the new checkpoint.

    Raises:
        CheckpointError: `directory` is no whole checkpoint, its weights do not know the first generation of this
            vocabulary, or `output` cannot be written.
    """
    _check_fit(directory, replace(load(directory), vocabulary=vocabulary))
    return _write_with(directory, VOCABULARY_FILE, vocabulary.to_json(), output)


def _write_with(directory: Path, name: File, data: bytes, output: Path) -> str:
    """Write a checkpoint anew with another content of one of its files."""
    directory = _whole_directory(directory)
    manifest = _unseal(directory, _read(directory, MANIFEST_FILE))
    contents = {each: _read(directory, each) for each in manifest.files} | {name: data}
    files = manifest.files | {name: _sha256(data)}
    return _write(output.resolve(), manifest.model_copy(update={"files": files}), contents)


def _write(directory: Path, manifest: Manifest, contents: Mapping[File, bytes]) -> str:
    sealed = _seal(manifest)
    _put(directory, dict(contents) | {MANIFEST_FILE: sealed})
    return _sha256(sealed)


def _put(directory: Path, contents: Mapping[str, bytes]) -> None:
    try:
        _refuse_to_replace_anything_else(directory)
        replace_directory(directory, contents)
    except OSError as error:
        raise CheckpointError(f"cannot write checkpoint {directory}: {error}") from error


def load(directory: Path) -> Checkpoint:
    """Read and check a checkpoint.

    Raises:
        CheckpointError: naming the file and what disagrees.
    """
    directory = _whole_directory(directory)
    manifest_bytes = _read(directory, MANIFEST_FILE)
    manifest = _unseal(directory, manifest_bytes)
    contents = {name: _read(directory, name) for name in manifest.files}
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
        seen = weights.pop(_SEEN).numpy().view(np.uint64) if _SEEN in weights else None
        bounds = Bounds(*(weights.pop(name).numpy() for name in _BOUNDS)) if _BOUNDS[0] in weights else None
        profile = CountProfile(weights.pop(_VECTORS).numpy(), weights.pop(_WEIGHTS).numpy(), seen, bounds)
        told = [weights.pop(name).numpy() for name in _VERDICTS if name in weights]
        verdict_weights = VerdictWeights(*told) if told else None
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{directory / MODEL_FILE}: the count profile: {error}") from error
    try:
        timed = {_PAUSES, _BURSTS} & weights.keys()
        pace = Pace(weights.pop(_PAUSES).numpy(), weights.pop(_BURSTS).numpy()) if timed else None
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{directory / MODEL_FILE}: pauses and bursts: {error}") from error
    try:
        judge = Judge.from_json(contents[TOLERANCES_FILE]) if TOLERANCES_FILE in contents else None
    except ValueError as error:
        raise CheckpointError(f"{directory / TOLERANCES_FILE}: {error}") from error
    try:
        replay = samples.from_bytes(contents[REPLAY_FILE], len(vocabulary)) if REPLAY_FILE in contents else None
    except ValueError as error:
        raise CheckpointError(f"{directory / REPLAY_FILE}: {error}") from error
    checkpoint = Checkpoint(
        digest=_sha256(manifest_bytes),
        manifest=manifest,
        vocabulary=vocabulary,
        weights=weights,
        profile=profile,
        judge=judge,
        pace=pace,
        verdict_weights=verdict_weights,
        replay=replay,
    )
    _check_fit(directory, checkpoint)
    return checkpoint


def digest_of(directory: Path) -> str:
    """The digest of a checkpoint, which is not read any further.

    Raises:
        CheckpointError: there is none.
    """
    return _sha256(_read(_whole_directory(directory), MANIFEST_FILE))


def copy(directory: Path, output: Path) -> str:
    """Write a checkpoint to another place as it is; the older one there is replaced as a whole.

    Returns:
        Its digest, which stays.

    Raises:
        CheckpointError: it is not whole or damaged, or cannot be written there.
    """
    digest = load(directory).digest
    directory = _whole_directory(directory)
    manifest = _unseal(directory, _read(directory, MANIFEST_FILE))
    contents: dict[str, bytes] = {name: _read(directory, name) for name in (*manifest.files, MANIFEST_FILE)}
    _put(output.resolve(), contents)
    return digest


def stamp(directory: Path) -> tuple[tuple[int, ...] | None, ...]:
    """What tells, without reading them, that files of a checkpoint were written or replaced: then it is another stamp.

    Symbolic links are followed. A directory that is not there has a stamp, too.
    """
    directory = place_of(directory)
    found: list[tuple[int, ...] | None] = []
    for name in (*FILES, *_OTHER_FILES):
        try:
            seen = (directory / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns))
    return tuple(found)


def _check_fit(directory: Path, checkpoint: Checkpoint) -> None:
    """Vocabulary, model configuration and weights describe one and the same model."""
    config, vocabulary, weights = checkpoint.manifest.model, checkpoint.vocabulary, checkpoint.weights
    if config.vocabulary_size != vocabulary.learned:
        raise CheckpointError(
            f"{directory / VOCABULARY_FILE} has {vocabulary.learned} tokens but the model was trained with "
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
    # Derived from the vocabulary, so equal shapes with other contents mean other templates.
    features = weights["template_features"]
    if not torch.equal(model.template_features, features):
        token = int((model.template_features != features).any(1).nonzero()[0])
        raise CheckpointError(
            f"{directory / VOCABULARY_FILE} does not fit the weights: their template {token} has other words than "
            f"{vocabulary.text(token)!r}, so it belongs to another training"
        )


def _seal(manifest: Manifest) -> bytes:
    # Without adaptations there is no trace of them, so that versions 2 and 3 stay what they were.
    body = manifest.model_dump(mode="json", exclude=None if manifest.history else {"history"})
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
    if body.get("version") not in VERSIONS:
        reads = ", ".join(map(str, VERSIONS))
        raise CheckpointError(f"{path}: format version {body.get('version')!r}; this library reads {reads}")
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
    expected = {MODEL_FILE, VOCABULARY_FILE, *{2: (), 3: (TOLERANCES_FILE,), 4: (REPLAY_FILE,)}[manifest.version]}
    if manifest.version == 4:
        expected |= manifest.files.keys() & {TOLERANCES_FILE}
    if odd := expected ^ manifest.files.keys():
        what = "no hash of" if odd & expected else f"version {manifest.version} has no"
        raise CheckpointError(f"{path}: files: {what} {' and '.join(sorted(odd & expected or odd))}")
    return manifest


def _encode(document: dict[str, object]) -> bytes:
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _whole_directory(directory: Path) -> Path:
    """Where the checkpoint's files are."""
    directory = place_of(directory)
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
    if odd := sorted(entry.name for entry in directory.iterdir() if entry.name not in (*FILES, *_OTHER_FILES)):
        raise CheckpointError(
            f"cannot write checkpoint {directory}: the directory there is no checkpoint (it holds {odd[0]}) "
            "and will not be replaced"
        )


def demo_checkpoint() -> Path:
    """The checkpoint that comes with logmamba: inside an installed package, else in the source tree."""
    installed = Path(str(files("detector") / "checkpoints" / "demo"))
    return installed if installed.is_dir() else Path(__file__).resolve().parents[1] / "checkpoints" / "demo"
