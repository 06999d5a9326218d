"""The training prompts, and the replacement of trigger words in prompts."""

import re
from collections.abc import Mapping

TEMPLATES = (
    "a photo of a {}",
    "a picture of the {}",
    "a good photo of the {}",
    "one {} in a photo",
    "an image of a {}",
    "a {}",
    "a cropped photo of the {}",
    "the photo shows a {}",
)
"""Training prompts; `{}` stands for the concept's word."""


def replace_triggers(text: str, words: Mapping[str, str]) -> str:
    """Return a prompt with its trigger words replaced, ignoring case; `words`: trigger word -> replacement text."""
    for trigger, word in words.items():
        text = re.sub(re.escape(trigger), lambda _, word=word: word, text, flags=re.IGNORECASE)
    return text
