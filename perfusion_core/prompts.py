"""The training prompts, and trigger words in prompts."""

import re
import unicodedata
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


BRACKETED = re.compile(r"<[^<>]*>")
"""What may be a trigger word in a prompt."""


def word_key(word: str) -> str:
    """Return what two spellings of the same word share: words, trigger words above all, are the same if their keys are equal.

    Case is ignored, and so is the way in which accents are encoded, as by the text encoders' tokenizers (NFC). An i with a dot and
    one without are the same letter: which of them a capital stands for depends on the language.
    """
    folded = unicodedata.normalize("NFC", word).casefold()
    return unicodedata.normalize("NFC", folded.replace("i\u0307", "i").replace("ı", "i"))


def has_trigger(text: str, trigger: str) -> bool:
    """Return whether a prompt contains a trigger word."""
    return word_key(trigger) in map(word_key, BRACKETED.findall(text))


def replace_triggers(text: str, words: Mapping[str, str]) -> str:
    """Return a prompt with its trigger words replaced; `words`: trigger word -> replacement text, which is left as it is."""
    known = {word_key(trigger): word for trigger, word in words.items()}
    return BRACKETED.sub(lambda found: known.get(word_key(found[0]), found[0]), text)
