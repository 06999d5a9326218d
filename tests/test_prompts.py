"""The words of the method: templates with one place for the concept, captions that are seeded and varied."""

import re
from collections import Counter

import pytest

from perfusion_core.captions import DEEDS, PLACES, QUALITIES, SETTINGS, STYLES, THINGS, captions
from perfusion_core.prompts import TEMPLATES, has_trigger, replace_triggers


def test_every_template_has_one_place_for_the_concept() -> None:
    assert len(TEMPLATES) == len(set(TEMPLATES)) >= 6
    for template in TEMPLATES:
        assert template.count("{}") == 1 and template.count("{") == template.count("}") == 1
        assert template.format("<my-teddy>") == template.replace("{}", "<my-teddy>")
        # The concept is a word of its own, and the rest is plain.
        assert "{}" in template.split() and re.fullmatch(r"[a-z ]+", template.replace("{}", ""))
        assert template == " ".join(template.split())


def test_templates_put_the_concept_in_several_places() -> None:
    assert len({template.split().index("{}") for template in TEMPLATES}) >= 3
    assert any(not template.endswith("{}") for template in TEMPLATES)


@pytest.mark.parametrize("count", [0, 1, 2, 77, 1000])
def test_as_many_captions_come_as_are_asked_for(count: int) -> None:
    assert len(captions(count)) == count


def test_captions_come_from_their_seed_alone() -> None:
    assert captions(200) == captions(200) == captions(200, 0)
    assert captions(200, 1) == captions(200, 1)
    assert len(set(captions(200)) & set(captions(200, 1))) < 10
    # More captions begin with the fewer.
    assert captions(300)[:200] == captions(200)


def test_captions_are_varied() -> None:
    made = captions(2000)
    assert len(set(made)) > 1900
    words = Counter(word for caption in made for word in caption.split())
    assert len(words) > 800
    # No word that carries meaning comes up everywhere.
    meant = {*THINGS, *QUALITIES, *DEEDS, *SETTINGS}
    assert max(words[word] for word in meant) < 0.05 * len(made)
    assert sum(1 for word in THINGS if words[word] + words[f"{word}s"] >= 2) > 0.95 * len(THINGS)
    lengths = Counter(len(caption.split()) for caption in made)
    assert len(lengths) > 12 and max(lengths) < 40 and max(lengths.values()) < 0.2 * len(made)
    assert len({caption.split()[0] for caption in made}) > 50


def test_captions_are_plain_words() -> None:
    for caption in captions(2000):
        assert re.fullmatch(r"[a-z-]+( [a-z-]+)*", caption), caption
        assert not re.search(r"\ba [aeiou]\w+ly\b|\ban [^aeiou]", caption), caption


@pytest.mark.parametrize("words", [THINGS, QUALITIES, DEEDS, SETTINGS, PLACES, STYLES])
def test_no_word_is_listed_twice(words: list[str]) -> None:
    twice = [word for word, times in Counter(words).items() if times > 1]
    assert not twice and len(words) > 15


def test_hundreds_of_things_are_known() -> None:
    assert len(THINGS) > 400 and len({*THINGS, *QUALITIES, *DEEDS, *SETTINGS}) > 700


def test_a_prompt_of_many_digits_is_read_at_once() -> None:
    """As a weight without an end: a pattern that tries every way to split it would take longer than anyone waits."""
    assert not has_trigger(f"<a:{'1' * 10_000}", "<a>")


@pytest.mark.parametrize(
    ("weight", "read"), [("0.8", "0.8"), (".5", ".5"), ("-1", "-1"), ("2.", "2"), ("1.2.3", "1.2"), ("1:0.5", "1")]
)
def test_a_weight_is_the_number_that_follows_the_name(weight: str, read: str) -> None:
    assert replace_triggers(f"a <a:{weight}>", {"<a>": "cat"}) == f"a (cat:{read})"
