"""When two spellings are the same trigger word: everywhere the same answer, where concepts are combined and in prompts."""

from __future__ import annotations

import re
import sys
import unicodedata
from dataclasses import replace

import pytest

from perfusion_core import PerfusionError
from perfusion_core.concept import is_trigger
from perfusion_core.prompts import bare_triggers, has_trigger, replace_triggers, word_key
from perfusion_core.stack import combine
from tests.test_concept_file import concept_of

SPELLINGS = [
    "<cit>", "<cıt>", "<CIT>", "<CİT>", "<cat>", "<Cat>", "<ſee>", "<see>", "<\u212aitty>", "<kitty>", "<KİTTY>", "<straße>",
    "<STRASSE>", "<STRAẞE>", "<caf\u00e9>", "<CAF\u00c9>", "<σας>", "<ΣΑΣ>", "<한글>", "<\u1112\u1161\u11ab\u1100\u1173\u11af>",
    "<µm>", "<μm>", "<my-teddy>", "<my_teddy>", "<myteddy>", "<猫>", "<ЁЖ>", "<ёж>", "<еж>",
]  # fmt: skip


@pytest.mark.parametrize("one", SPELLINGS)
def test_concepts_can_be_combined_if_and_only_if_a_prompt_tells_their_words_apart(one: str) -> None:
    concept = concept_of({"layer": 4}, trigger=one)
    for other in SPELLINGS:
        prompt = f"a photo of {one} beside {other}"
        try:
            combine((concept, replace(concept, trigger=other)))
        except PerfusionError:
            assert replace_triggers(prompt, {one: "X"}) == replace_triggers(prompt, {other: "X"}) == "a photo of X beside X"
        else:
            for words in ({one: "X", other: "Y"}, {other: "Y", one: "X"}):
                assert replace_triggers(prompt, words) == "a photo of X beside Y"


def test_words_that_only_some_languages_tell_apart_are_the_same() -> None:
    same = [{word_key(each) for each in group.split()} for group in ("cit cıt CIT CİT", "ß ss ẞ SS", "ſ s S", "k K \u212a")]
    assert all(len(keys) == 1 for keys in same)
    assert len({word_key(word) for word in ("<cat>", "<çat>", "<саt>", "<cat1>")}) == 4


def test_whatever_matches_a_trigger_without_regard_to_case_is_it() -> None:
    """Character by character, over all of Unicode: so no prompt loses its word."""
    everything = "".join(chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000)
    letters = [char for char in everything if is_trigger(f"<{char}>")]
    cased = [char for char in letters if len({char, char.lower(), char.upper(), char.casefold(), char.swapcase()}) > 1]
    assert len(letters) > 100_000 and len(cased) > 2_000
    text = "".join(cased)
    for char in cased:
        found = re.findall(re.escape(char), text, re.IGNORECASE)
        assert char in found and {word_key(each) for each in found} == {word_key(char)}
    for char in letters:
        assert word_key(unicodedata.normalize("NFD", char)) == word_key(char) == word_key(word_key(char))


def test_an_accent_may_be_encoded_either_way_in_a_prompt() -> None:
    assert replace_triggers("a <cafe\u0301> and cafe\u0301", {"<caf\u00e9>": "X"}) == "a X and cafe\u0301"
    assert has_trigger("a <cafe\u0301>", "<CAF\u00c9>") and not has_trigger("a cafe\u0301", "<caf\u00e9>")


@pytest.mark.parametrize("name", ["बिल्ली", "cafe\u0301", "แมว", "my-teddy_2", "猫"])
def test_names_of_any_script_are_triggers(name: str) -> None:
    assert is_trigger(f"<{name}>") and has_trigger(f"a photo of a <{name}>", f"<{name}>")


@pytest.mark.parametrize("text", ["<\u0301a>", "<a b>", "<a:b>", "<>", "<a>b", "<a\n>", "a", "<" + "a" * 65 + ">"])
def test_what_a_prompt_could_not_keep_whole_is_no_trigger(text: str) -> None:
    assert not is_trigger(text)


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a embedding:<cit>, (EMBEDDING:<cit>:1.2)", "a X, (X:1.2)"),
        ("<cit:0.8> <cit:1> <cit: -.5> <cit:0.8:1.0>", "(X:0.8) (X:1) (X:-.5) (X:0.8)"),
        ("<cit:> <cit:high> <lora:cit:0.8> <lora:cit>", "<cit:> <cit:high> <lora:cit:0.8> <lora:cit>"),
        ("＜CIT＞ ＜cit:0.5＞", "X (X:0.5)"),
    ],
)
def test_triggers_are_read_as_people_write_them(prompt: str, wanted: str) -> None:
    assert replace_triggers(prompt, {"<cit>": "X"}) == wanted


@pytest.mark.parametrize(
    ("prompt", "bare"),
    [
        ("a photo of a my-teddy at night", ["<my-teddy>"]),
        ("MY-TEDDY, <ann>", ["<my-teddy>"]),
        ("my-teddy and <my-teddy>", []),
        ("not-my-teddy, my-teddybear, my-teddys, <my-teddy", []),
        ("ann, my-teddy:1.2", ["<my-teddy>", "<ann>"]),
    ],
)
def test_names_without_brackets_are_found(prompt: str, bare: list[str]) -> None:
    assert bare_triggers(prompt, ["<my-teddy>", "<ann>"]) == bare


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("(<CIT>:1.2), <cit>", "(X:1.2), X"),
        ("a<b<cit>>c<", "a<bX>c<"),
        ("<cit><dog><cit>", "XYX"),
        ("<cit", "<cit"),
        ("< cit> <> <cit\n>", "< cit> <> <cit\n>"),
        ("<" * 50_000 + "cit>", "<" * 49_999 + "X"),
    ],
)
def test_triggers_are_found_wherever_they_stand(prompt: str, wanted: str) -> None:
    assert replace_triggers(prompt, {"<cit>": "X", "<Dog>": "Y"}) == wanted


def test_what_replaces_a_word_is_not_searched_for_words() -> None:
    assert replace_triggers("<a> <b>", {"<a>": r"<b> \1", "<b>": "dog"}) == r"<b> \1 dog"
