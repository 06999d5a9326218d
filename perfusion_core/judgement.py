"""How closely a model still follows prompts that contain a concept, measured with the model itself (beyond the paper).

From pure noise, a model predicts what the prompt determines about the picture: its layout and colours. A concept may change the
predictions for all prompts alike, because it looks different from its superclass; but the difference between one prompt's
prediction and those of other prompts should be the same with either word. Gates that open at other words change this difference.
So, over noises z and prompts p, with x̄ the mean over prompts,

    followed = 1 - E ‖(x̂(p, concept) - x̄(concept)) - (x̂(p, superclass) - x̄(superclass))‖² / E ‖x̂(p, superclass) - x̄(superclass)‖²

is 1 if a prompt has the same effect on the concept as on the plain word, and 0 if it has no effect.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

CONTEXTS = (
    "a photo of a {} on the beach",
    "a photo of a {} at night",
    "a {} in the snow",
    "a photo of a {} in the forest",
    "a {} at sunset",
    "a {} in a room",
)
"""Prompts with `{}` for the object, chosen to be as different from each other as possible."""

MIN_ADHERENCE = 0.85
"""Default for how far a prompt should be followed.

Chosen on an earlier demo model: from this value on, pictures had both the requested place and a shape that was still recognisable
for its word; from 0.8 on, they had only the place.
"""


def adherence_score(own: Tensor, plain: Tensor, asked: int) -> float:
    """Return how far prompts are followed, as defined in the module's docstring.

    Args:
        own: predictions with the concept, [K, S, ...] for K prompts and S noises, K at least 2.
        plain: predictions with the superclass in its place and the same noises, [K, S, ...].
        asked: number of prompts, from the first, that the score covers; the others only contribute to the mean over prompts.
    """
    mine, theirs = (each.float() - each.float().mean(0) for each in (own, plain))
    off, whole = (each[:asked].square().sum() for each in (mine - theirs, theirs))
    return 1 - float(off / whole.clamp(min=1e-12))


def lowest_adequate_bias(biases: Sequence[float], scores: Sequence[float], least: float) -> float:
    """Return the lowest bias from which on all scores are at least `least`, interpolated linearly between the measured biases.

    If the score at the highest bias is below `least`, return the highest bias.

    Args:
        biases: ascending.
        scores: one for each bias.
        least: the required score.
    """
    for i in reversed(range(len(biases))):
        if scores[i] < least:
            if i + 1 == len(biases):
                return biases[i]
            share = (least - scores[i]) / (scores[i + 1] - scores[i])
            return biases[i] + share * (biases[i + 1] - biases[i])
    return biases[0]


@dataclass(frozen=True)
class Judgement:
    """Quality measures of a concept during training, which need no inspection by a user and work on any machine.

    Attributes:
        loss: `training.loop.held_out_loss`, a measure of likeness to the pictures; lower is better.
        followed: how far prompts of all kinds are followed at the bias that the concept would be saved with.
    """

    loss: float
    followed: float

    def beats(self, other: "Judgement", least: float = MIN_ADHERENCE) -> bool:
        """Return whether this is the better judgement: prompts must be followed at least to `least`, then likeness decides."""
        if min(self.followed, other.followed) >= least:
            return self.loss < other.loss
        return self.followed > other.followed


@dataclass(frozen=True)
class PictureJudgement:
    """Quality measures of a concept during training, from pictures generated with it and embedded by a vision model.

    Attributes:
        likeness: how close its pictures are to the training pictures: 0 if they resemble them no more than the plain word's
            pictures do, 1 if they resemble them as much as the training pictures resemble each other.
        prompted: how far prompts have the same effect on its pictures as on the plain word's: 1 if the effect is the same.
    """

    likeness: float
    prompted: float

    @classmethod
    def of(cls, own: Tensor, plain: Tensor, pictures: Tensor) -> "PictureJudgement":
        """Judge embeddings of length 1.

        Args:
            own: of pictures generated with the concept, [K, S, d] for K prompts, at least 2, and S noises.
            plain: of those generated with the superclass in its place and the same noises, [K, S, d].
            pictures: of the training pictures, [P, d].
        """
        before, now = (float((each @ pictures.T).mean()) for each in (plain, own))
        # A picture is not compared with itself; a single picture can be matched exactly.
        count = len(pictures)
        alike = (pictures @ pictures.T).sum() - count
        best = float(alike / (count * (count - 1))) if count > 1 else 1.0
        # Effects of the prompts: what is left of each prompt's mean picture without the mean over prompts.
        mine, theirs = (each.mean(1) - each.mean((0, 1)) for each in (own, plain))
        share = float((mine * theirs).sum() / theirs.square().sum().clamp(min=1e-12))
        return cls(min((now - before) / max(best - before, 1e-6), 1.0), min(share, 1.0))

    def harmonic(self) -> float:
        """Return the harmonic mean of both; 0 if one of them is below 0."""
        one, other = max(self.likeness, 0.0), max(self.prompted, 0.0)
        return 2 * one * other / max(one + other, 1e-12)

    def beats(self, other: "PictureJudgement") -> bool:
        """Return whether this is the better judgement; early in a training, where both means may be 0, the sums decide."""
        mine, theirs = ((each.harmonic(), each.likeness + each.prompted) for each in (self, other))
        return mine > theirs
