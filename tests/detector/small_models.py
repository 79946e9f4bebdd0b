"""Small untrained models and checkpoints, for tests that do not depend on what a model has learnt."""

from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from detector.checkpoint import Checkpoint, TrainingRecord, load, save
from detector.model.model import DetectorModel, ModelConfig
from detector.quality.fingerprint import Fingerprint
from detector.reading import ReadingRecord
from detector.scoring.calibration import Calibration, Combination, Tail
from detector.scoring.count_profile import CountProfile
from detector.scoring.evidence import Evidence
from detector.text.vocabulary import Vocabulary

TEMPLATES = (
    "Receiving block <*> from <*>",
    "PacketResponder <*> for block <*> terminating",
    "Received block <*> of size <*>",
    "Deleting block <*> file <*>",
    "Verification succeeded for <*>",
)
VOCABULARY = Vocabulary(TEMPLATES)
CALIBRATION = Calibration(
    tail=Tail(knots=(0.5, 2.0, 3.5), levels=(0.0, 0.9, 1.7), slope=0.8),
    evidence=Evidence(level=2.3, slope=0.4),
    early=Combination(bias=-3.0, logit_weight=1.1, level_weight=0.7, usual_weight=0.0),
    final=Combination(bias=-2.5, logit_weight=1.7, level_weight=0.9, usual_weight=0.6),
)
# Sessions of up to two of the first three templates are usual, and nothing else.
PROFILE = CountProfile.fit(
    [np.array(events) for events in ([3], [4], [5], [3, 4], [3, 5], [4, 5])], np.array([400, 300, 200, 50, 40, 10])
)
RECORD = TrainingRecord(
    fingerprint="sha256:" + "0" * 64,
    seed=7,
    mode="labelled",
    sessions=1_000,
    anomalous=30,
    events=19_000,
    metrics={"auprc": 0.875},
    score_shares=[0.9, *[0.0] * 18, 0.1],
)


def random_model(vocabulary: Vocabulary = VOCABULARY, *, seed: int = 1, d_model: int = 16) -> DetectorModel:
    """A model whose weights are large enough that surprises and logits differ visibly between events."""
    config = ModelConfig(
        vocabulary_size=len(vocabulary), d_model=d_model, n_layers=2, d_state=16, headdim=16, mimo_rank=2
    )
    with torch.random.fork_rng(devices=[]):  # those of CUDA would stay as they are
        torch.manual_seed(seed)
        model = DetectorModel(config, torch.from_numpy(vocabulary.template_features()))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() >= 2:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def save_random(
    directory: Path,
    vocabulary: Vocabulary = VOCABULARY,
    *,
    seed: int = 1,
    reading: ReadingRecord | None = None,
    fingerprint: Fingerprint | None = None,
) -> str:
    return save(
        directory,
        model=random_model(vocabulary, seed=seed),
        vocabulary=vocabulary,
        profile=PROFILE,
        calibration=CALIBRATION,
        training=RECORD,
        reading=reading,
        fingerprint=fingerprint,
    )


def random_checkpoint(directory: Path, vocabulary: Vocabulary = VOCABULARY, *, seed: int = 1) -> Checkpoint:
    save_random(directory, vocabulary, seed=seed)
    return load(directory)


def encoded(tokens: Sequence[int]) -> bytes:
    """A sequence as the scorer takes it."""
    return array("q", tokens).tobytes()
