"""Tests of the fidelity benchmark: its concepts and prompts, its arithmetic, and its quick run."""

import json
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from safetensors import safe_open

from benchmarks.fidelity import bench, characters, concepts, confirmation, groups, real, seeded_clip
from benchmarks.fidelity.ablations import ABLATIONS
from benchmarks.fidelity.concepts import DEVELOPMENT, FURTHER, MEASURED, TEST
from benchmarks.fidelity.fine_tune import Job
from benchmarks.fidelity.fronts import Curve, cells, chosen, lead
from benchmarks.fidelity.methods import METHODS, Recipe, Use
from benchmarks.fidelity.trials import Prompt, Scores, Store, Trial, Workshop
from benchmarks.world.judges import Judges
from demo import make_pictures, world
from demo.individuals import MOODS, STYLES, Individual
from scripts.harness.fixtures import measured_before
from scripts.harness.graphs import Graph
from scripts.setup import bootstrap

PICTURES = bootstrap.ROOT / "demo" / "pictures"
DRAWING = ("EmptyLatentImage", "CLIPTextEncode")
LATENTS = (world.SIDE // 8, 8, world.SIDE // 8, 8)
"""The shape of a mask that puts each latent's pixels on axes 1 and 3."""


@pytest.fixture(scope="module")
def judges() -> Judges:
    return Judges.load()


def as_images(pictures: list[Image.Image]) -> torch.Tensor:
    small = [np.asarray(picture.convert("RGB").resize((world.SIDE, world.SIDE), Image.Resampling.BOX)) for picture in pictures]
    return torch.from_numpy(np.stack(small)).float() / 255


def shipped(kind: str) -> torch.Tensor:
    """The demo's four pictures of a kind, [4, SIDE, SIDE, 3]."""
    return as_images([Image.open(PICTURES / f"{kind}-{i}.png") for i in range(4)])


# Concepts


def test_concepts_are_individuals_that_the_base_never_saw() -> None:
    def numbers(found: tuple[concepts.Concept, ...], split: str, kind: str) -> list[int]:
        return [concepts.which(concept)[1] for concept in found if concept[1] == kind and concepts.which(concept)[0] == split]

    for kind, shown in make_pictures.SHOWN.items():
        assert numbers(DEVELOPMENT, "development", kind) == [0, 1, 2, 3, 4]
        assert numbers(TEST, "test", kind) == sorted({0, 1, 2, shown})
        # The demo's base was trained only on individuals of its own split.
        assert make_pictures.individual(kind, "test", shown).split == "test"
    assert set(make_pictures.SHOWN) == set(STYLES) and len(DEVELOPMENT) == 20 and len(TEST) == 16
    assert characters.DEMO in TEST and set(bench.TUNED_ON) <= set(DEVELOPMENT)


def test_training_pictures(judges: Judges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Composed from the demo's own picture of the individual, so that the packages that draw individuals are not needed."""
    picture = Image.open(PICTURES / "monster-1.png")
    alpha = picture.getchannel("A").point(lambda value: min(255, 2 * (255 - value)))
    picture.putalpha(alpha)
    cut, drawn = picture.crop(alpha.getbbox()), []
    monkeypatch.setattr(concepts, "check_packages", lambda: None)
    monkeypatch.setattr(Individual, "picture", lambda self, mouth, size=96: drawn.append((self, mouth)) or cut)
    files, again, other = (
        concepts.pictures(characters.DEMO, tmp_path / name, 12, 128, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert [file.name for file in files] == [f"monster-{i}.png" for i in range(12)]
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    assert all(a.read_bytes() != b.read_bytes() for a, b in zip(files, other, strict=True))
    asked = make_pictures.individual("monster", "test", make_pictures.SHOWN["monster"])
    assert {one for one, _ in drawn} == {asked} and {mouth for _, mouth in drawn} == set(world.MOUTHS["monster"])
    opened = [Image.open(file) for file in files]
    assert all(picture.mode == "RGBA" and picture.size == (128, 128) for picture in opened)
    assert all(picture.getchannel("A").getextrema() == (127, 255) for picture in opened)
    images = as_images(opened)
    places = judges.say("place", images).best()
    assert sorted(places[:10]) == sorted(world.PLACES) and len(set(places[10:])) == 2
    assert judges.say("kind", images).best() == ["monster"] * 12
    # The mask covers the whole character and nothing else: all other pixels are those of the empty place.
    for i, (picture, place) in enumerate(zip(opened, places, strict=True)):
        pixels, mask = np.asarray(picture.convert("RGB"), int), np.asarray(picture.getchannel("A"))
        empty = np.asarray(world.background(place, random.Random(1000 + i), 128, 128), int)
        assert (pixels == empty)[mask == 255].all()
        assert (np.abs(pixels - empty).max(-1)[mask == 127] > 20).mean() > 0.7 and (mask == 127).mean() > 0.15


def test_what_is_no_concept_is_refused(tmp_path: Path) -> None:
    for concept in (("test-3", "robot"), ("base-0", "monster"), ("development-5", "blob")):
        with pytest.raises(ValueError, match="expected a concept of DEVELOPMENT or TEST"):
            concepts.pictures(concept, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_packages_that_are_missing_are_named_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concepts, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="run pip install dicebear-core==") as told:
        concepts.pictures(TEST[0], tmp_path / "out")
    said = str(told.value)
    assert said.endswith("dicebear-core==10.7.0 dicebear-styles==10.6.0 resvg-py") and "\n" not in said and ". " not in said
    assert not (tmp_path / "out").exists()


# Curves


def curve(text: list[float], likeness: list[float], spread: float = 0.0) -> Curve:
    """Return a curve of eight concepts, five prompts and four seeds, with noise around these means."""
    rng = np.random.default_rng(0)
    noise = spread * rng.standard_normal((2, len(text), 8, 5, 4))
    shaped = [np.array(scores).reshape(-1, 1, 1, 1) + noise[i] for i, scores in enumerate((likeness, text))]
    return Curve(tuple(range(len(text))), *shaped, shaped[0])


def test_a_value_is_chosen_for_its_likeness_among_those_that_follow_the_text() -> None:
    each = curve([0.2, 0.6, 0.9, 1.0], [0.9, 0.8, 0.4, 0.1], 0.001)
    assert [chosen(each, level) for level in (0.1, 0.55, 0.7, 0.95, 1.1)] == [0, 1, 2, 3, None]
    assert each.at((1, 3)).values == (1, 3) and chosen(each.at((1, 3)), 0.1) == 0


def test_a_lead_is_the_mean_difference_over_concepts_with_students_interval() -> None:
    ours, theirs = curve([0.5, 0.9], [0.9, 0.5], 0.1), curve([0.5, 0.9], [0.7, 0.3], 0.2)
    found = lead(ours, theirs, 0.65)
    each = (ours.likeness[1] - theirs.likeness[1]).mean((1, 2))
    test = scipy.stats.ttest_1samp(each, 0).confidence_interval(0.95)
    assert found.mean == pytest.approx(each.mean()) and found.interval == pytest.approx((test.low, test.high))
    assert (found.ahead, found.concepts) == ((each > 0).sum(), 8)
    assert lead(ours, ours, 0.4).mean == 0 and lead(ours, ours, 0.4).ahead == 0


def test_a_method_without_the_text_has_no_lead() -> None:
    assert lead(curve([0.9], [0.2], 0.01), curve([0.3], [0.9], 0.01), 0.8) is None


def test_a_verdict_takes_an_interval_on_one_side_and_equal_choices() -> None:
    first, behind = curve([1.0, 1.0], [0.2, 0.9], 0.01), curve([1.0], [0.3], 0.01)
    assert bench.compared(behind, first, [0.9])[1] == "the opposite"  # of the first one's values only the first counts
    assert bench.compared(replace(behind, values=(1,)), first, [0.9])[1] == "seen"
    assert bench.compared(curve([1.0], [0.9], 0.3), curve([1.0], [0.9], 0.3), [0.9])[1].startswith("undecided")
    assert bench.compared(curve([0.5], [0.9], 0.01), first, [0.9])[1] == "one of them does not reach the text"


def test_an_image_counts_if_the_concept_is_recognised_and_nothing_is_missing() -> None:
    known, text = np.array([[[[1.0, 1.0, 0.0, 0.0]]]]), np.array([[[[1.0, 0.5, 1.0, 0.5]]]])
    assert Curve((0.4,), known, text, known).both().tolist() == [[[0.25]]]


def test_intervals_are_students_and_those_of_the_harmonic_mean_follow_its_slope() -> None:
    each = curve([0.5], [0.5], 0.3)
    for scores, (low, high) in zip((each.text, each.likeness), each.intervals[:, 0], strict=True):
        test = scipy.stats.ttest_1samp(scores[0].mean((1, 2)), 0).confidence_interval(0.95)
        assert (low, high) == pytest.approx((test.low, test.high))
    # Where both means are equal, the slope of the harmonic mean is 1/2 in each.
    small = curve([0.5], [0.5], 0.003)
    halves = (small.text + small.likeness)[0].mean((1, 2)) / 2
    test = scipy.stats.ttest_1samp(halves, 0).confidence_interval(0.95)
    assert small.harmonic_interval(0) == pytest.approx((test.low, test.high), rel=1e-3)


def test_a_single_concept_has_no_interval() -> None:
    one = Curve((0.4,), *(np.full((1, 1, 2, 2), score) for score in (0.8, 0.9, 1.0)))
    assert np.isnan(one.intervals).all() and np.isnan(one.harmonic_interval(0)).all()
    assert cells(one, 0) == "0.4 | 0.90 | 0.80"


def test_scores_are_kept_and_not_measured_twice(tmp_path: Path) -> None:
    trial = Trial(TEST[0], Recipe(), Use("bias"), (0.25, 0.4), characters.prompts(TEST[0]))
    store = Store(tmp_path / "scores.json")
    assert store.missing(trial) == [0.25, 0.4] and store.get(trial, 0.4) is None
    store.put(trial, {0.4: Scores(np.full((6, 4), 0.12345), np.ones((6, 4)), np.ones((6, 4)))})
    again = Store(tmp_path / "scores.json")
    assert again.missing(trial) == [0.25]
    assert again.get(trial, 0.4).likeness == pytest.approx(0.123) and again.get(trial, 0.4).text.shape == (6, 4)
    assert Curve.of(again, [trial]) is None and Curve.of(again, [replace(trial, values=(0.4,))]).likeness.shape == (1, 1, 6, 4)
    # The key contains everything that a score depends on.
    others = [
        replace(trial, concept=TEST[1]),
        replace(trial, recipe=Recipe(widgets={"steps": 5})),
        replace(trial, recipe=Recipe(masks="none")),
        replace(trial, use=Use("bias", lock="global")),
        replace(trial, seed=1),
        replace(trial, prompts=trial.prompts[:2]),
        replace(trial, recipe=None),
    ]
    assert len({each.key(0.4) for each in (trial, *others)}) == 1 + len(others)


def test_every_method_had_as_many_candidates_and_every_variant_is_another_training_or_use() -> None:
    assert len({len(method.candidates) for method in METHODS.values()}) == 1
    for method in METHODS.values():
        assert len({recipe.key(TEST[0], 0) for recipe in method.candidates}) == len(method.candidates)
    for ablation in ABLATIONS.values():
        changed = [change.of(METHODS["Perfusion"].candidates[0], METHODS["Perfusion"].use) for change in ablation.variants.values()]
        keys = {Trial(TEST[0], recipe, use, (0.4,), ()).key(0.4) for recipe, use in changed}
        assert len(keys) == len(changed)


def test_a_users_own_pictures_are_measured_by_known_methods() -> None:
    assert set(real.CANDIDATES) <= set(METHODS)


def test_variants_are_compared_on_the_concepts_that_all_of_them_were_measured_on(tmp_path: Path) -> None:
    def trials(method: str) -> list[Trial]:
        return [
            Trial(concept, METHODS[method].candidates[0], Use("bias"), (0.4,), characters.prompts(concept)) for concept in TEST[:3]
        ]

    groups = {name: trials(name) for name in ("Perfusion", "LoRA", "fine-tune")}
    store = Store(tmp_path / "scores.json")
    assert bench.together(store, groups) == {}
    for i, name in ((0, "Perfusion"), (1, "Perfusion"), (2, "Perfusion"), (1, "LoRA"), (2, "LoRA")):
        store.put(groups[name][i], {0.4: Scores(np.full((6, 4), i / 10), np.ones((6, 4)), np.ones((6, 4)))})
    found = bench.together(store, groups)
    assert list(found) == ["Perfusion", "LoRA"] and bench.count_of(found) == 2
    assert all(curve.likeness[0, :, 0, 0].tolist() == [0.1, 0.2] for curve in found.values())


def test_further_characters_are_new_and_measured_at_the_value_that_was_best_before(tmp_path: Path) -> None:
    assert not {*FURTHER} & {*MEASURED, *DEVELOPMENT} and Counter(kind for _, kind in FURTHER) == dict.fromkeys(STYLES, 2)
    found = replace(bench.whole(), store=Store(tmp_path / "scores.json"))
    for trial in found.tuned()["LoRA"]:
        shaped = np.ones((6, 4))
        found.store.put(trial, {v: Scores(shaped * (0.9 if v == 0.5 else 0.6), shaped, shaped) for v in trial.values})
    ((name, trials),) = confirmation.trials(found).items()
    assert (name, {trial.values for trial in trials}) == ("LoRA", {(0.5,)})
    assert tuple(trial.concept for trial in trials) == FURTHER and confirmation.page(found) == []


# Prompts and judges


def test_prompts_ask_for_places_that_were_not_taught_on_as_the_bases_own_captions_do() -> None:
    asked = [(concept, characters.prompts(concept)) for concept in (*DEVELOPMENT, *TEST)]
    for (_, kind), prompts in [*asked, (characters.DEMO, characters.QUICK)]:
        assert not {prompt.place for prompt in prompts} & set(characters.TAUGHT_ON)
        for prompt in prompts:
            assert prompt.place in world.PLACES and prompt.mood in ("", *MOODS[kind])
            others = [world.Said(prompt.other)] if prompt.wide else []
            them = (world.Said("{}", mood=prompt.mood, carries=prompt.carries), *others)
            assert prompt.text in [world.Caption.of(form, them, prompt.place).text for form in world.FORMS]
    # Curves are over all concepts, so these need equally many prompts, with the wide one at the same index.
    assert len({tuple(prompt.wide for prompt in prompts) for _, prompts in asked}) == 1
    for (_, kind), prompts in asked:
        (other,) = [prompt.other for prompt in prompts if prompt.wide]
        assert other in STYLES and other != kind
        assert any(prompt.carries for prompt in prompts) and any(prompt.mood for prompt in prompts) == (kind != "robot")


def test_a_prompt_for_two_is_drawn_in_two_squares(judges: Judges, tmp_path: Path) -> None:
    asked, graph = characters.prompts(characters.DEMO), Graph()
    shop = Workshop([], characters.CharacterBed(judges), Store(tmp_path / "scores.json"))
    links = shop.pictures(graph, Trial(characters.DEMO, None, Use(""), (0.0,), asked), None, 0.0)
    given = {name: [node["inputs"] for node in graph.nodes.values() if node["class_type"] == name] for name in DRAWING}
    sizes = [(each["width"], each["height"]) for each in given["EmptyLatentImage"]]
    assert len(links) == len(asked) and sizes == [(world.SIDE * (1 + prompt.wide), world.SIDE) for prompt in asked]
    assert {prompt.text.format("monster") for prompt in asked} == {each["text"] for each in given["CLIPTextEncode"]} - {""}


def test_concepts_are_combined_as_methods_of_the_tables_trained_them() -> None:
    assert {way.method for ways in groups.WAYS.values() for way in ways.values()} - {""} <= set(bench.whole().recipes())


@pytest.mark.parametrize("size", groups.SIZES)
def test_groups_are_of_different_kinds_and_have_each_concept_equally_often(size: int) -> None:
    found = groups.GROUPS[size]
    assert len(set(found)) == len(MEASURED) and [each[0] for each in found] == list(MEASURED)
    assert all(len({kind for _, kind in group}) == size for group in found)
    assert Counter(concept for group in found for concept in group) == dict.fromkeys(MEASURED, size)
    assert not set(groups.PLACES) & set(characters.TAUGHT_ON) and set(groups.PLACES) <= set(world.PLACES)


def test_the_judge_wants_all_that_a_prompt_asks_for(judges: Judges) -> None:
    """On the demo's own training pictures, each in a different place and mood, without a balloon."""
    bed, concept, moods = characters.CharacterBed(judges), characters.DEMO, list(MOODS["monster"])
    shown = [picture[None] for picture in shipped("monster")]
    asked = tuple(Prompt(f"a {{}} {place}", place) for place in make_pictures.PLACES)

    def scores(prompts: tuple[Prompt, ...], drawn: list[torch.Tensor], of: concepts.Concept = concept) -> tuple[list, list]:
        found = bed.judge(Trial(of, None, Use(""), (0.0,), prompts), drawn)
        assert found.likeness.shape == found.text.shape == (4, 1)
        details = torch.stack([bed.details(of, images) for images in drawn]).numpy()
        assert found.likeness == pytest.approx((found.identity + details) / 2)
        return found.identity[:, 0].tolist(), pytest.approx(found.text[:, 0].tolist())

    assert scores(asked, shown) == ([1.0] * 4, [1.0] * 4)
    assert scores(asked[1:] + asked[:1], shown) == ([1.0] * 4, [1 / 2] * 4)
    assert scores(asked, shown, ("test-7", "robot"))[1] == [1 / 2] * 4
    assert scores(asked, shown, ("test-2", "monster")) == ([0.0] * 4, [1.0] * 4)
    theirs, others = (torch.cat([bed.details(each, images) for images in shown]) for each in (concept, ("test-2", "monster")))
    assert theirs.mean() > 0.9 and others.mean() < 0.6
    moody = tuple(replace(prompt, mood=mood) for prompt, mood in zip(asked, moods, strict=True))
    assert scores(moody, shown)[1] == [1.0] * 4
    other = tuple(replace(prompt, mood=mood) for prompt, mood in zip(asked, moods[1:] + moods[:1], strict=True))
    assert scores(other, shown)[1] == [2 / 3] * 4
    assert scores(tuple(replace(prompt, carries=True) for prompt in asked), shown)[1] == [2 / 3] * 4


def test_of_two_characters_the_concept_is_the_left_one_and_the_place_is_in_both_halves(judges: Judges) -> None:
    bed = characters.CharacterBed(judges)
    monsters, robots = shipped("monster"), shipped("robot")
    asked = tuple(Prompt(f"a {{}} and a robot {place}", place, other="robot") for place in make_pictures.PLACES)

    def scores(first: torch.Tensor, second: torch.Tensor) -> tuple[list, list]:
        drawn = list(torch.cat([first, second], 2)[:, None])
        found = bed.judge(Trial(characters.DEMO, None, Use(""), (0.0,), asked), drawn)
        return found.identity[:, 0].tolist(), pytest.approx(found.text[:, 0].tolist())

    assert scores(monsters, robots) == ([1.0] * 4, [1.0] * 4)
    assert scores(robots, monsters) == ([0.0] * 4, [1 / 3] * 4)
    assert scores(monsters, monsters) == ([1.0] * 4, [2 / 3] * 4)
    assert scores(monsters, robots.roll(1, 0)) == ([1.0] * 4, [2 / 3] * 4)
    assert scores(monsters.roll(1, 0), robots) == ([1.0] * 4, [2 / 3] * 4)


def test_an_unsquared_mask_weighs_a_latent_by_its_share_of_the_object() -> None:
    picture = Image.open(PICTURES / "monster-0.png").resize((world.SIDE, world.SIDE), Image.Resampling.BOX)
    mask = 1 - np.asarray(picture.getchannel("A"), dtype=float) / 255
    share = mask.reshape(LATENTS).mean((1, 3))
    root = 1 - np.asarray(characters.unsquared(picture.copy()).getchannel("A"), dtype=float) / 255
    cells = root.reshape(LATENTS).mean((1, 3))
    assert (cells / cells.max()) ** 2 == pytest.approx(share / share.max(), abs=0.02)


def test_a_users_own_pictures_are_judged_by_clip_as_transformers_computes_it(setup: bootstrap.Setup, tmp_path: Path) -> None:
    """Seeded weights, loaded by the host and by transformers, give the same mean cosine similarities."""
    file = tmp_path / "clip.safetensors"
    seeded_clip.write(file)
    shown = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(shown):
        Image.open(PICTURES / f"monster-{i}.png").convert("RGB").resize((224, 224), Image.Resampling.NEAREST).save(path)
    run = [sys.executable, "-m", "benchmarks.fidelity.inside_clip", str(setup.comfyui), str(file), *map(str, shown)]
    told = subprocess.run(run, cwd=bootstrap.ROOT, check=True, capture_output=True, text=True).stdout
    ours, theirs = (np.array(each) for each in json.loads(told.splitlines()[-1]))
    file.unlink()
    assert ours.shape == (2, 2, 2)  # image and text similarity; prompts; pictures
    assert np.abs(ours - theirs).max() < 2e-3 and ours[0].std() > 0.01 and ours[1].std() > 0.005


def test_scores_belong_to_a_checkpoint(tmp_path: Path) -> None:
    checkpoints = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for path, middle in zip(checkpoints, (b"one", b"two", b"one"), strict=True):
        path.write_bytes(bytes(2**19) + middle + bytes(2**19))
    store = Store(tmp_path / "scores.json")
    first = store.belongs_to(checkpoints[0])
    store.keep({})
    assert Store(tmp_path / "scores.json").belongs_to(checkpoints[2]) == first
    with pytest.raises(SystemExit, match="another checkpoint"):
        Store(tmp_path / "scores.json").belongs_to(checkpoints[1])


def test_the_quick_run_recognises_what_was_taught(setup: bootstrap.Setup, tmp_path: Path) -> None:
    """By both methods, in images that still follow the prompt, and never with the plain word; a low bias costs the prompt.

    Trainings this short do not tell the methods apart.
    """
    measured_before(tmp_path / "server")
    run = [sys.executable, "-m", "benchmarks.fidelity", "--quick", "--out", str(tmp_path)]
    subprocess.run(run, cwd=bootstrap.ROOT, check=True, stdout=subprocess.DEVNULL)
    curves = bench.quick(tmp_path).curves()
    (plain_text,), (plain_likeness,) = curves[bench.WORD_ALONE].means()
    for method in bench.QUICK:
        text, likeness = curves[method].means()
        assert likeness[-1] > plain_likeness + 0.2 and text[-1] > 0.9 * plain_text, method
    text, _ = curves[bench.OURS].means()
    assert text[0] < text[-1] - 0.1
    page = (tmp_path / "fidelity.md").read_text(encoding="utf-8")
    assert "| Textual Inversion |" in page and (tmp_path / "fidelity.png").exists()


def test_a_fine_tune_learns_the_whole_unet_and_keeps_the_rest(setup: bootstrap.Setup, tmp_path: Path) -> None:
    """Every weight of the UNet has changed, and nothing of the text encoder and the autoencoder."""
    shown = [str(PICTURES / f"robot-{i}.png") for i in range(2)]
    base = setup.base / "models" / "checkpoints" / bootstrap.CHECKPOINT
    job = Job(
        str(setup.comfyui), str(base), str(tmp_path / "tuned.safetensors"), shown, shown, "zxq robot", "robot", world.SIDE,
        seed=0, steps=2, batch=2, learning_rate=1e-3, prior=1.0,
    )  # fmt: skip
    job.run(setup.python, tmp_path, bootstrap.ROOT)
    moved: dict[str, list[bool]] = {}
    with safe_open(base, "pt") as before, safe_open(job.out, "pt") as after:
        for name in before.keys():  # noqa: SIM118
            if name in after.keys() and before.get_slice(name).get_dtype().startswith("F"):  # noqa: SIM118
                part = name.split(".")[0]
                moved.setdefault(part, []).append(not torch.equal(before.get_tensor(name).float(), after.get_tensor(name).float()))
    Path(job.out).unlink()
    assert np.mean(moved.pop("model")) > 0.98  # the gradient of a few is 0
    assert len(moved) == 2 and not any(any(each) for each in moved.values())
