"""How far a model still follows a prompt with a concept in it, told by the model itself (beyond the paper).

From noise alone a model predicts what the prompt makes of the picture to come: its layout and colours. With the concept's word
in a prompt the prediction should be that of the same prompt with the plain word, but for the thing itself; where gates open at
other words it goes elsewhere. So, over prompts p and noises z,

    followed = 1 - E ‖x̂(p, concept) - x̂(p, superclass)‖² / E ‖x̂(p, superclass) - x̂(q, superclass)‖²    (q another prompt)

is 1 where the concept changes nothing, and 0 where it changes as much as another prompt would.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

CONTEXTS = (
    "a photo of a {} on the beach",
    "a photo of a {} at night",
    "a {} in the snow",
    "a photo of a {} in a green field",
    "a {} on a red background",
    "a painting of a {}",
)
"""Prompts with `{}` for the thing, as different from each other as can be."""

LEAST = 0.5
"""How far a prompt should be followed, unless a user wants it otherwise."""


def spread(plain: Tensor) -> float:
    """E over pairs of different prompts of their predictions' squared distance; `plain` is [K, S, ...], K prompts, S noises."""
    count = len(plain)
    each = plain.float().flatten(1)
    return float((each - each.mean(0)).square().sum() * 2 / (count - 1))


def followed(told: Tensor, plain: Tensor, apart: float) -> float:
    """How far prompts are followed (see above).

    Args:
        told: predictions with the concept, [K, S, ...].
        plain: with the superclass in its place and the same noises, [K, S, ...].
        apart: `spread` of these prompts, or of others.
    """
    return 1 - float((told.float() - plain.float()).square().sum()) / len(told) / max(apart, 1e-12)


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
        loss: `training.held_out_loss`: how like the pictures; less is better.
        followed: how far prompts of all kinds are followed at the bias that the concept would come with.
    """

    loss: float
    followed: float

    def beats(self, other: "Judgement", least: float = LEAST) -> bool:
        """Whether it is the better one: first prompts must be followed, as far as `least`; then likeness counts."""
        if min(self.followed, other.followed) >= least:
            return self.loss < other.loss
        return self.followed > other.followed
