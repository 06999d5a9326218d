"""Prompts, encodings, regions and tiles as people's graphs have them: the concept acts, or the console says why it does not.

Other packs are played by other_prompts.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch

from scripts.generate import make_workflows
from scripts.harness.differences import worst
from scripts.harness.graphs import Graph, Link, latents
from scripts.harness.server import Server
from tests.test_neighbours import CONCEPT, NAMED, PLAIN, ROUNDING, SEEN, TRIGGER

OTHER, OTHER_TRIGGER = "demo-robot.safetensors", "<demo-robot>"
BIAS = make_workflows.SETTINGS["bias"]
Encode = Callable[[Graph, Link, str], Link]


def applied(graph: Graph, **settings: object) -> tuple[Link, Link, Link, Link]:
    """The base's MODEL and CLIP, and those with the concept."""
    model, clip, _ = graph.checkpoint()
    return model, clip, *graph.apply(model, clip, graph.load(CONCEPT, bias=BIAS, **settings))


def written(log: str, *words: str) -> bool:
    """Whether one line of a log holds all of these words."""
    return any(all(word in line for word in words) for line in log.splitlines())


# ---- what stands in a prompt


@pytest.mark.parametrize(
    ("text", "like"),
    [
        (f"a photo of a embedding:{TRIGGER}, at night", f"a photo of a {TRIGGER}, at night"),
        (f"a photo of a (embedding:{TRIGGER}:1.2), at night", f"a photo of a ({TRIGGER}:1.2), at night"),
        ("a photo of a <demo-monster:0.8>, at night", f"a photo of a ({TRIGGER}:0.8), at night"),
        ("a photo of a <demo-monster:0.8:1.0>, at night", f"a photo of a ({TRIGGER}:0.8), at night"),
        ("a photo of a ＜demo-monster＞, at night", f"a photo of a {TRIGGER}, at night"),
    ],
)
def test_a_trigger_is_read_as_people_write_it(server: Server, text: str, like: str) -> None:
    graph = Graph()
    _, clip, with_model, with_clip = applied(graph)
    blank = graph.text(clip, "")
    found, wanted, bare = latents(
        server,
        graph,
        *(graph.sample(with_model, graph.text(with_clip, each), blank, steps=2) for each in (text, like, PLAIN)),
    )
    assert torch.equal(found, wanted) and worst(found, bare) > SEEN


def test_a_trigger_without_brackets_and_one_that_was_removed_are_warned_of(server: Server) -> None:
    graph = Graph()
    _, clip, with_model, with_clip = applied(graph)
    stripped = graph.add("TestWithoutTags", text=f"{NAMED} <lora:one:1>")
    texts = ["a photo of a demo-monster", [stripped, 0]]
    log = len(server.log())
    latents(
        server, graph, *(graph.sample(with_model, graph.text(with_clip, text), graph.text(clip, ""), steps=1) for text in texts)
    )
    said = server.log()[log:]
    assert written(said, "demo-monster, which is not a trigger word without its brackets", f"write {TRIGGER}")
    assert said.count("no prompt contains its trigger word") == 2 and "Nodes that read <lora:…> tags" in said


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_a_concept_in_a_sub_folder_is_found_as_any_system_writes_it(server: Server, separator: str) -> None:
    folder = server.base / "models" / "perfusion"
    (folder / "beasts").mkdir(exist_ok=True)
    shutil.copyfile(folder / CONCEPT, folder / "beasts" / CONCEPT)
    graph = Graph()
    key = graph.load(f"beasts{separator}{CONCEPT}")
    graph.add("PreviewAny", source=[key[0], 1])
    assert server.run(graph.nodes)
    shutil.rmtree(folder / "beasts")


# ---- what rebuilds an encoding


def rebuilt(how: str) -> Encode:
    """Encode with the host's node, then rebuild the encoding."""
    return lambda graph, clip, text: [graph.add("TestRebuilt", conditioning=graph.text(clip, text), how=how), 0]


def encoded(class_type: str) -> Encode:
    """Encode with a pack's node."""
    return lambda graph, clip, text: [graph.add(class_type, clip=clip, text=text), 0]


REBUILT = (
    "deepcopy", "save and load", "numpy", "detach", "reshape", "stack", "lerp", "where", "pad", "einsum", "chunk", "flip", "neg",
    "clamp", "half", "in place", "token by token",
)  # fmt: skip
FORGOTTEN = ("save and load", "numpy")
"""What leaves nothing but the numbers."""


def test_an_encoding_that_was_rebuilt_says_what_it_said(server: Server) -> None:
    """In one graph: the concept acts as without the rebuilding, and the plain word stays the base's to the bit."""
    graph = Graph()
    model, clip, with_model, with_clip = applied(graph)
    blank, drawn = graph.text(clip, ""), []
    for how in REBUILT:
        plain, named = (rebuilt(how)(graph, each, text) for each, text in ((with_clip, PLAIN), (with_clip, NAMED)))
        drawn += [
            graph.sample(each, cond, blank, steps=1) for each, cond in ((model, plain), (with_model, plain), (with_model, named))
        ]
    drawn += [graph.sample(each, graph.text(with_clip, NAMED), blank, steps=1) for each in (with_model, model)]
    log = len(server.log())
    *found, wanted, no_edit = latents(server, graph, *drawn)
    assert worst(wanted, no_edit) > SEEN
    for i, how in enumerate(REBUILT):
        base, plain, named = found[3 * i : 3 * i + 3]
        assert torch.equal(plain, base), how
        assert worst(named, wanted) < (SEEN if how == "half" else ROUNDING), how
    said = server.log()[log:]
    assert said.count("has rebuilt an encoding") == len(FORGOTTEN) and "stayed closed" not in said
    assert said.count("no prompt contains its trigger word") == len(REBUILT)  # the plain ones


ENCODERS: dict[str, Encode] = {
    "TestWeightedEncode": encoded("TestWeightedEncode"),
    "TestDirectEncode": encoded("TestDirectEncode"),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_beside_encoders_that_weight_words_their_own_way(server: Server, name: str) -> None:
    graph, encode = Graph(), ENCODERS[name]
    model, clip, with_model, with_clip = applied(graph)
    blank, drawn = graph.text(clip, ""), []
    plain, named = PLAIN.replace("monster", "(monster:1.4)"), NAMED.replace(TRIGGER, f"({TRIGGER}:1.2)")
    for each, text in ((model, plain), (with_model, plain), (model, named), (with_model, named)):
        drawn.append(graph.sample(each, encode(graph, with_clip, text), blank, steps=2))
    base, unchanged, no_edit, edited = latents(server, graph, *drawn)
    assert torch.equal(unchanged, base) and worst(edited, no_edit) > SEEN


def test_another_packs_tokenizer_is_said_to_know_no_trigger(server: Server) -> None:
    graph = Graph()
    model, clip, with_model, with_clip = applied(graph)
    texts = [encoded("TestOwnTokenizer")(graph, each, NAMED) for each in (clip, with_clip)]
    log = len(server.log())
    base, found = latents(
        server, graph, *(graph.sample(m, t, graph.text(clip, ""), steps=1) for m, t in zip((model, with_model), texts, strict=True))
    )
    assert torch.equal(base, found)
    assert written(server.log()[log:], "its own tokenizer", TRIGGER)


def test_beside_negative_weights_in_keys_and_values_apart(server: Server) -> None:
    """Two encodings for each token: the concept acts as without them; a word that weighs less than nothing gets no edit."""
    graph = Graph()
    model, clip, with_model, with_clip = applied(graph)
    bare, both = ([graph.add("TestNegPip", model=m, clip=c), i] for m, c, i in ((model, clip, 0), (with_model, with_clip, 0)))
    doubled, clips = [both[0], 0], [[bare[0], 1], [both[0], 1]]
    blank = graph.text(clips[0], "")
    text, hated = graph.text(clips[1], NAMED), graph.text(clips[1], "a photo of a (red:-1.0) monster")
    drawn = [graph.sample(each, hated, blank, steps=2) for each in (bare, doubled)]
    drawn += [graph.sample(doubled, text, blank, steps=2)]
    drawn += [graph.sample(with_model, graph.text(with_clip, NAMED), graph.text(clip, ""), steps=2)]
    drawn += [graph.sample(with_model, graph.text(with_clip, PLAIN), graph.text(clip, ""), steps=2)]
    base, unchanged, named, wanted, plain = latents(server, graph, *drawn)
    assert torch.equal(base, unchanged)
    assert worst(named, wanted) < ROUNDING and worst(named, plain) > SEEN


# ---- prompts of regions that come past the UNet's own encoding


def coupled(graph: Graph, model: Link, left: Link, right: Link, base: Link, blank: Link) -> Link:
    """Two prompts side by side, through `attn2_patch`."""
    key = graph.add("TestCouple", model=model, left=left, right=right)
    return graph.sample([key, 0], base, blank, steps=2, width=128)


def copied(graph: Graph, model: Link, left: Link, right: Link, base: Link, blank: Link) -> Link:
    """Two prompts side by side, from copies, through `attn2_replace`."""
    key = graph.add("TestCoupleByCopy", model=model, left=left, right=right, negative=blank)
    return graph.sample([key, 0], [key, 1], [key, 2], steps=2, width=128)


@pytest.mark.parametrize("couple", [coupled, copied])
def test_each_of_two_regional_prompts_has_its_own_concept(server: Server, couple: Callable) -> None:
    """Prompts that say nothing of a concept stay the base's to the bit, also where the one for all of the picture names it."""
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    one, two = (graph.load(name, bias=BIAS) for name in (CONCEPT, OTHER))
    with_model, with_clip = graph.apply(model, clip, graph.combine(one, two))
    only = [graph.apply(model, clip, each)[0] for each in (one, two)]
    blank, everywhere = graph.text(clip, ""), graph.text(with_clip, "a photo of a house")
    plain = [graph.text(with_clip, f"a photo of a {kind}") for kind in ("monster", "robot")]
    named = [graph.text(with_clip, f"a photo of a {trigger}") for trigger in (TRIGGER, OTHER_TRIGGER)]
    calls = [
        (model, *plain), (with_model, *plain), (model, *named), (with_model, *named), (only[0], *named), (only[1], *named),
        (with_model, named[0], plain[1]), (only[0], named[0], plain[1]),
    ]  # fmt: skip
    log = len(server.log())
    base, unchanged, none, both, first, second, left, left_only = latents(
        server, graph, *(couple(graph, m, left, right, everywhere, blank) for m, left, right in calls)
    )
    assert torch.equal(base, unchanged)
    assert worst(both, none) > SEEN and worst(both, first) > SEEN and worst(both, second) > SEEN
    assert worst(left, left_only) < ROUNDING
    # Each acts in its own half: so early, what it does to the other comes through the layers that look at the whole picture alone.
    halves = [(found - none).abs().mean((0, 1, 2)).reshape(2, -1).mean(1) for found in (first, second)]
    assert halves[0][0] > halves[0][1] and halves[1][1] > halves[1][0]
    assert "did not act" not in server.log()[log:]


def test_a_base_prompt_that_names_the_concept_leaves_other_regions_alone(server: Server) -> None:
    """The plain word in a region's prompt is not edited for standing where the base prompt has the trigger."""
    graph = Graph()
    model, clip, with_model, with_clip = applied(graph)
    base, blank = graph.text(with_clip, "a photo of a monster"), graph.text(clip, "")
    named = graph.text(with_clip, f"a photo of a {TRIGGER}")
    drawn = [coupled(graph, each, base, base, named, blank) for each in (model, with_model)]
    without, found = latents(server, graph, *drawn)
    assert torch.equal(without, found)


# ---- what stands between the sampler and the UNet


def test_a_replaced_forward_is_named(server: Server) -> None:
    graph = Graph()
    model, clip, with_model, with_clip = applied(graph)
    blank = graph.text(clip, "")
    text = graph.text(with_clip, NAMED)
    log = len(server.log())
    found, base = latents(
        server, graph, *([graph.add("TestOwnForward", model=m, positive=text, negative=blank), 0] for m in (with_model, model))
    )
    assert torch.equal(found, base)
    assert written(server.log()[log:], TRIGGER, "did not act", "other_prompts")


def test_a_wrapper_that_drops_conditions_leaves_the_concept(server: Server) -> None:
    graph = Graph()
    model, clip, with_model, with_clip = applied(graph)
    bare, both = ([graph.add("TestOwnConditions", model=each), 0] for each in (model, with_model))
    blank = graph.text(clip, "")
    drawn = [graph.sample(each, graph.text(with_clip, PLAIN), blank, steps=2) for each in (bare, both)]
    drawn += [graph.sample(each, graph.text(with_clip, NAMED), blank, steps=2) for each in (both, with_model)]
    base, plain, named, wanted = latents(server, graph, *drawn)
    assert torch.equal(base, plain) and worst(named, wanted) < ROUNDING and worst(named, plain) > SEEN


def test_a_wrapper_that_drops_regions_leaves_the_concept_everywhere(server: Server) -> None:
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    regions = {"region": side(graph, 0)}, {}
    placed, whole = (graph.apply(model, clip, graph.load(CONCEPT, bias=BIAS, **region)) for region in regions)
    dropped = [graph.add("TestOwnConditions", model=placed[0]), 0]
    pairs, log = ((dropped, placed[1]), whole, (model, placed[1])), len(server.log())
    drawn = [graph.sample(m, graph.text(c, NAMED), graph.text(clip, ""), steps=2, width=128) for m, c in pairs]
    found, wanted, no_edit = latents(server, graph, *drawn)
    assert worst(found, wanted) < ROUNDING and worst(found, no_edit) > SEEN
    assert "drops the regions of concepts" in server.log()[log:]


@pytest.mark.parametrize("mode", ["exact", "paper"])
def test_a_prompt_without_the_trigger_is_warned_of_in_any_mode(server: Server, mode: str) -> None:
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    with_model, with_clip = graph.apply(model, clip, graph.load(CONCEPT, bias=BIAS), mode)
    log = len(server.log())
    latents(
        server,
        graph,
        *(graph.sample(with_model, graph.text(with_clip, text), graph.text(clip, ""), steps=2) for text in (PLAIN, NAMED)),
    )
    assert server.log()[log:].count("no prompt contains its trigger word") == 1


# ---- tiles


def side(graph: Graph, x: int) -> Link:
    """White in one half of a picture of two squares."""
    black, white = ([graph.add("SolidMask", value=value, width=w, height=64), 0] for value, w in ((0.0, 128), (1.0, 64)))
    return [graph.add("MaskComposite", destination=black, source=white, x=x, y=0, operation="add"), 0]


def test_regions_stay_where_they_are_in_tiles(server: Server) -> None:
    """A picture of two squares, drawn again in two tiles, against tiles into which whole regions are squeezed."""
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    placed = [graph.load(name, bias=BIAS, region=side(graph, x)) for name, x in ((CONCEPT, 0), (OTHER, 64))]
    with_model, with_clip = graph.apply(model, clip, graph.combine(*placed))
    text = graph.text(with_clip, f"a photo of a {TRIGGER} and a {OTHER_TRIGGER}")
    blank = graph.text(clip, "")
    whole = graph.sample(with_model, text, blank, steps=4, width=128)
    given = {"model": with_model, "positive": text, "negative": blank, "samples": whole, "denoise": 0.6, "tile": 8}
    log = len(server.log())
    drawn = [whole, *([graph.add("TestTiled", **given, cut=cut), 0] for cut in (True, False))]
    picture, found, squeezed = latents(server, graph, *drawn)
    near, far = (((each - picture) ** 2).mean((0, 1, 2)).reshape(2, -1).mean(1) for each in (found, squeezed))
    print("mean squared difference to the untiled picture, left and right:", near.tolist(), "squeezed:", far.tolist())
    assert (near < far).all()
    # The tiles that nobody told apart have another shape than the regions.
    assert written(server.log()[log:], "The region of", "is stretched") and "has rebuilt" not in server.log()[log:]
