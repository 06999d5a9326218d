"""How far a model still follows a prompt with a concept in it, told by the model itself (beyond the paper).

From little but noise a model predicts what the prompt makes of the picture to come: its layout and colours. A concept may change
what is predicted for every prompt alike, for it looks other than its superclass; but what sets one prompt's prediction off against
other prompts' should be the same with either word. Where gates open at other words it goes elsewhere. So, over noises z and
prompts p, with x̄ the mean over prompts,

    followed = 1 - E ‖(x̂(p, concept) - x̄(concept)) - (x̂(p, superclass) - x̄(superclass))‖² / E ‖x̂(p, superclass) - x̄(superclass)‖²

is 1 where a prompt does to the concept what it does to the plain word, and 0 where it does nothing.
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
"""Prompts with `{}` for the thing, as different from each other as can be."""

LEAST = 0.85
"""How far a prompt should be followed, unless a user wants it otherwise.

Chosen in the demo's first world, where concepts had both the place that was asked for and a shape that was still known for its word
from there on, and the place alone from 0.8 on.
"""


def followed(told: Tensor, plain: Tensor, asked: int) -> float:
    """How far prompts are followed (see above).

    Args:
        told: predictions with the concept, [K, S, ...] for K prompts and S noises, K at least 2.
        plain: with the superclass in its place and the same noises, [K, S, ...].
        asked: how many of the prompts, the first ones, it is asked of; the others are there to be set off against.
    """
    mine, theirs = (each.float() - each.float().mean(0) for each in (told, plain))
    off, whole = (each[:asked].square().sum() for each in (mine - theirs, theirs))
    return 1 - float(off / whole.clamp(min=1e-12))


def lowest(biases: Sequence[float], scores: Sequence[float], least: float) -> float:
    """The lowest bias from which on the score is `least` or more, between those measured; the highest, if it never is.

    Args:
        biases: ascending.
        scores: one for each.
        least: what is asked for.
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
    """What can be told of a concept while it is taught, without a user's eye and on any machine.

    Attributes:
        loss: `training.loop.held_out_loss`: how like the pictures; less is better.
        followed: how far prompts of all kinds are followed at the bias that the concept would come with.
    """

    loss: float
    followed: float

    def beats(self, other: "Judgement", least: float = LEAST) -> bool:
        """Whether it is the better one: first prompts must be followed, as far as `least`; then likeness counts."""
        if min(self.followed, other.followed) >= least:
            return self.loss < other.loss
        return self.followed > other.followed
