"""The training prompts, and trigger words in prompts."""

import re
import unicodedata
from collections.abc import Iterable, Mapping

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


WEIGHT = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?!\d)"
MENTION = re.compile(rf"(?:embedding:)?[<＜]([^<>＜＞:]*)(?::\s*({WEIGHT})[^<>＜＞]*)?[>＞]", re.IGNORECASE)
"""What may be a trigger word in a prompt, as people write it: `<my-teddy>`, with the prefix that embeddings have, with the weight
that LoRA tags have (`<my-teddy:0.8>`), in the wide brackets of East Asian keyboards. Groups: the name, the weight.
"""


def word_key(word: str) -> str:
    """Return a key that all spellings of a word share: two words, such as trigger words, are the same if their keys are equal.

    Case is ignored, and so is the way in which accents are encoded, as by the text encoders' tokenizers (NFC). An i with a dot and
    one without are the same letter: which of them a capital stands for depends on the language.
    """
    folded = unicodedata.normalize("NFC", word).casefold()
    return unicodedata.normalize("NFC", folded.replace("i\u0307", "i").replace("ı", "i"))


def has_trigger(text: str, trigger: str) -> bool:
    """Return whether a prompt contains a trigger word."""
    return word_key(trigger) in (word_key(f"<{found[1]}>") for found in MENTION.finditer(text))


def replace_triggers(text: str, words: Mapping[str, str]) -> str:
    """Return a prompt with its trigger words replaced; `words`: trigger word -> replacement text, which is inserted unchanged.

    A weight in the brackets becomes a weight in the prompt: `<my-teddy:0.8>` becomes (replacement:0.8).
    """
    known = {word_key(trigger): word for trigger, word in words.items()}

    def replacement(found: re.Match) -> str:
        word = known.get(word_key(f"<{found[1]}>"))
        if word is None:
            return found[0]
        return word if found[2] is None else f"({word}:{found[2]})"

    return MENTION.sub(replacement, text)


def bare_triggers(text: str, triggers: Iterable[str]) -> list[str]:
    """Return the trigger words whose name occurs in a prompt without brackets, but nowhere with them."""
    key, found = word_key(text), []
    for trigger in triggers:
        name = re.escape(word_key(trigger)[1:-1])
        if not has_trigger(text, trigger) and re.search(rf"(?<![\w<＜-]){name}(?![\w>＞-])", key):
            found.append(trigger)
    return found
