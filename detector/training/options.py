"""How long and how fast to train."""

from dataclasses import dataclass
from typing import Literal, get_args

from detector.training.data import TrainingSessions

Stage = Literal["next_token", "classifier"]
STAGES: tuple[Stage, ...] = get_args(Stage)

_STEPS: dict[Stage, int] = {"next_token": 600, "classifier": 400}


@dataclass(frozen=True)
class TrainingOptions:
    """How long and how fast to train; the defaults suit ten thousand sessions of a few dozen events.

    Attributes:
        next_token_steps: most optimiser steps of the first stage; None for 600 or, where that is more, for `passes`
            passes over the distinct sessions.
        classifier_steps: most optimiser steps of the second; None for 400 or as many passes.
        passes: where no steps are given.
        batch_tokens: tokens in a step, BOS and EOS included.
        learning_rate: peak, after a linear warm-up over the first 5 % of a stage; then a cosine down to 1 %.
        weight_decay: of matrices; vectors have none.
        clip_norm: the gradient's norm is cut to this.
        unknown_rate: share of input events that are shown as unknown lines.
        prefix_weight: of the class loss after the events, beside 1 at the end.
        cuts: normal sessions that end too early, made of the normal ones; 0 for none, else at least one of each.
        cut_weight: of them all in the class loss, beside 1 of all normal sessions.
        next_token_weight: of the next-token loss in the classifier stage.
        combine: whether, with labels, unusual counts and order raise the score beside the classifier where validation
            says that it pays. It finds anomalies of kinds that no label knows, and takes more of what is new for one.
        validation_share: of the sessions, where no validation sessions are given.
        validations: how often a stage looks at the validation sessions.
        patience: a stage ends after so many validations in a row without a better loss.
    """

    next_token_steps: int | None = None
    classifier_steps: int | None = None
    passes: int = 2
    batch_tokens: int = 2048
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    unknown_rate: float = 0.02
    prefix_weight: float = 0.2
    cuts: int = 20_000
    cut_weight: float = 0.2
    next_token_weight: float = 0.5
    combine: bool = False
    validation_share: float = 0.2
    validations: int = 12
    patience: int = 8

    def steps(self, stage: Stage, sessions: TrainingSessions) -> int:
        """Most steps of a stage on these sessions, equal ones merged."""
        asked = self.next_token_steps if stage == "next_token" else self.classifier_steps
        if asked is not None:
            return asked
        tokens = int(sessions.lengths.sum()) + 2 * len(sessions)
        return max(_STEPS[stage], self.passes * -(-tokens // self.batch_tokens))
