"""The prompts of training, and prompts with other words in place of trigger words."""

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
"""Prompts of training, the concept's word in place of `{}`."""


def replaced(text: str, words: Mapping[str, str]) -> str:
    """A prompt with other text in place of trigger words, however these are capitalised; `words`: trigger word -> text."""
    for trigger, word in words.items():
        text = re.sub(re.escape(trigger), lambda _, word=word: word, text, flags=re.IGNORECASE)
    return text
