"""LSTM baselines in the shapes of two published detectors, in PyTorch, with the product's data, budget and seeds.

- Normals only, the shape of DeepLog (Du et al. 2017): an LSTM of two layers predicts the next event; a session is an
  alert where one of its events is not among the nine likeliest.
- Labelled, the shape of LogRobust (Zhang et al. 2019): a bidirectional LSTM of two layers with attention over a
  session's events, whose vectors are of the text of their templates; a session is an alert from probability 0.5 on.

Neither is a copy: the first sees a session from its start on, and not ten events of it; the second learns the vectors
of words instead of having them from a corpus, beside a vector for each event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.accuracy.detectors import Outcome, training_sessions
from benchmarks.accuracy.protocols import Protocol
from benchmarks.accuracy.tasks import Floats, Integers, Part, Task
from detector.model.inference import batches
from detector.text.vocabulary import BOS, UNK, Vocabulary
from detector.text.word_hashes import TEXT_BUCKETS
from detector.training.options import Stage, TrainingOptions
from detector.training.train import TrainingSessions
from detector.training.trainer import balanced_weights

HIDDEN, LAYERS = 64, 2
LIKELIEST = 9


class NextEvent(nn.Module):
    """Logits of the next event after each; tokens are (n, longest), BOS first."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.events = nn.Embedding(len(vocabulary), HIDDEN)
        self.lstm = nn.LSTM(HIDDEN, HIDDEN, LAYERS, batch_first=True)
        self.head = nn.Linear(HIDDEN, len(vocabulary))

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, longest) to (n, longest, vocabulary)."""
        logits: Tensor = self.head(self.lstm(self.events(tokens))[0])
        return logits


class Classifier(nn.Module):
    """Logit of a whole session; tokens are (n, longest), BOS first, and after the last event."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.register_buffer("features", torch.from_numpy(vocabulary.template_features()))
        self.events = nn.Embedding(len(vocabulary), HIDDEN)
        self.words = nn.EmbeddingBag(TEXT_BUCKETS, HIDDEN, mode="mean", padding_idx=0)
        self.lstm = nn.LSTM(HIDDEN, HIDDEN, LAYERS, batch_first=True, bidirectional=True)
        self.attention = nn.Linear(2 * HIDDEN, 1)
        self.head = nn.Linear(2 * HIDDEN, 1)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """(n, longest) and how many of each row are there, (n,), to (n,)."""
        vectors = functional.embedding(tokens, self.events.weight + self.words(self.features))
        packed = nn.utils.rnn.pack_padded_sequence(vectors, lengths, batch_first=True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        there = torch.arange(states.shape[1]) < lengths[:, None]
        weights = self.attention(torch.tanh(states)).squeeze(2).masked_fill(~there, -torch.inf).softmax(1)
        logits: Tensor = self.head((weights[:, :, None] * states).sum(1)).squeeze(1)
        return logits


@dataclass(frozen=True)
class LstmNextEvent:
    """Learns what normal sessions do next."""

    name: str = "lstm-next-event"
    device: str = "cpu"
    options: TrainingOptions = field(default_factory=TrainingOptions)

    def fits(self, protocol: Protocol) -> bool:
        """Where all that is learnt from is normal."""
        return not protocol.labelled and not protocol.as_they_come

    def run(self, task: Task, seed: int) -> Outcome:
        """A score is how many events were likelier than the least expected one, and how unlikely that was."""
        training, held_out = (training_sessions(part).distinct() for part in (task.training, task.validation))
        model = _made(NextEvent, task.vocabulary, seed)

        def losses(sessions: TrainingSessions, rows: Integers) -> tuple[Tensor, Tensor]:
            tokens, lengths = _padded([sessions.sequences[row] for row in rows])
            logits = model(tokens[:, :-1])
            nats = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
            there = torch.arange(tokens.shape[1] - 1) < lengths[:, None] - 1
            weights = torch.from_numpy(sessions.counts[rows]).float()
            return (nats.view(there.shape) * there).sum(1) * weights, (lengths - 1) * weights

        _learn(model, losses, training, held_out, "next_token", seed, self.options)

        def scores(part: Part) -> Floats:
            found = np.empty(len(part))
            for rows in _batches(part.tokens, self.options.batch_tokens):
                tokens, lengths = _padded([part.tokens[row] for row in rows])
                log_p = model(tokens[:, :-1]).log_softmax(2)
                own = log_p.gather(2, tokens[:, 1:, None])
                there = torch.arange(tokens.shape[1] - 1) < lengths[:, None] - 1
                ranks = (log_p > own).sum(2) + (1 - own.squeeze(2).exp())
                found[rows] = ranks.masked_fill(~there, 0).amax(1).numpy()
            return found

        with torch.inference_mode():
            return Outcome(scores(task.validation), scores(task.test), {"fixed": float(LIKELIEST)}, early={})


@dataclass(frozen=True)
class LstmClassifier:
    """Learns to tell sessions of both labels apart."""

    name: str = "lstm-classifier"
    device: str = "cpu"
    options: TrainingOptions = field(default_factory=TrainingOptions)

    def fits(self, protocol: Protocol) -> bool:
        """Where labels may be learnt from."""
        return protocol.labelled

    def run(self, task: Task, seed: int) -> Outcome:
        """Both labels weigh the same, and equal sessions as the root of their number, as in the product's training."""
        training, held_out = (training_sessions(part).distinct() for part in (task.training, task.validation))
        model = _made(Classifier, task.vocabulary, seed)

        def losses(sessions: TrainingSessions, rows: Integers) -> tuple[Tensor, Tensor]:
            weights = torch.from_numpy(balanced_weights(sessions)[rows]).float()
            labels = torch.from_numpy(sessions.labels[rows] == 1).float()
            logits = model(*_padded([sessions.sequences[row] for row in rows]))
            nats = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
            return nats * weights, torch.ones_like(weights)

        _learn(model, losses, training, held_out, "classifier", seed, self.options)

        def scores(part: Part) -> Floats:
            found = np.empty(len(part))
            for rows in _batches(part.tokens, self.options.batch_tokens):
                found[rows] = model(*_padded([part.tokens[row] for row in rows])).double().sigmoid().numpy()
            return found

        with torch.inference_mode():
            return Outcome(scores(task.validation), scores(task.test), {"fixed": 0.5}, early={})


def _made(kind: type[nn.Module], vocabulary: Vocabulary, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(vocabulary)


def _learn(
    model: nn.Module,
    losses: Callable[[TrainingSessions, Integers], tuple[Tensor, Tensor]],
    training: TrainingSessions,
    held_out: TrainingSessions,
    stage: Stage,
    seed: int,
    options: TrainingOptions,
) -> None:
    """As many steps at most as a stage of the product's, at its learning rate; the best of the validations stays.

    Args:
        model: to train.
        losses: of some sessions, and what they weigh; both (n,).
        training: what to learn from.
        held_out: what to stop by.
        stage: whose steps.
        seed: of the order.
        options: of the product's training.
    """
    steps = options.steps(stage, training)
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.learning_rate, steps, pct_start=0.05)
    rng = np.random.default_rng(seed)
    best, kept, worse = np.inf, model.state_dict(), 0
    order: Iterator[Integers] = iter(())
    for step in range(1, steps + 1):
        rows = next(order, None)
        if rows is None:
            shuffled = rng.permutation(len(training))
            parts = batches(training.lengths[shuffled], options.batch_tokens)
            order = iter([shuffled[part] for part in parts])
            rows = next(order)
        optimiser.zero_grad()
        loss, weight = losses(training, rows)
        torch.autograd.backward(loss.sum() / weight.sum())
        nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
        optimiser.step()
        schedule.step()
        if step % max(steps // options.validations, 1) and step < steps:
            continue
        with torch.inference_mode():
            sums = [
                [float(each.sum()) for each in losses(held_out, part)]
                for part in _batches(held_out.sequences, options.batch_tokens)
            ]
        nats, weights = np.sum(sums, axis=0)
        if nats / weights < best:
            best, worse = nats / weights, 0
            kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        else:
            worse += 1
        if worse == options.patience:
            break
    model.load_state_dict(kept)
    model.eval()


def _batches(sequences: list[Integers], batch_tokens: int) -> Iterator[Integers]:
    """Rows of sessions of about one length."""
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    order = np.argsort(lengths, kind="stable")
    for part in batches(lengths[order], batch_tokens):
        yield order[part]


def _padded(sequences: list[Integers]) -> tuple[Tensor, Tensor]:
    """Sessions side by side, BOS first, unknown lines as UNK; and how many tokens each has."""
    lengths = torch.tensor([1 + len(events) for events in sequences])
    tokens = torch.full((len(sequences), int(lengths.max())), UNK)
    tokens[:, 0] = BOS
    for row, events in enumerate(sequences):
        tokens[row, 1 : 1 + len(events)] = torch.from_numpy(np.maximum(events, UNK))
    return tokens, lengths
