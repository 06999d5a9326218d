"""The fidelity benchmark's own arithmetic, and its quick run."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import emoji, fidelity
from benchmarks.ablations import ABLATIONS
from benchmarks.concepts import TEST
from benchmarks.fronts import Curve, front, interval, lead, mean_lead, resamples
from benchmarks.methods import METHODS, Recipe, Use
from benchmarks.oracles import Oracles
from benchmarks.trials import Scores, Store, Trial
from demo import make_pictures, world
from scripts import bootstrap
from tests import seeded_clip

PICTURES = Path(__file__).parents[1] / "demo" / "pictures"


def curve(text: list[float], design: list[float], spread: float = 0.0) -> Curve:
    """Eight concepts, five prompts and four seeds around means."""
    rng = np.random.default_rng(0)
    noise = spread * rng.standard_normal((2, len(text), 8, 5, 4))
    shaped = [np.array(scores).reshape(-1, 1, 1, 1) + noise[i] for i, scores in enumerate((design, text))]
    return Curve(tuple(range(len(text))), *shaped)


def test_a_front_is_the_best_design_at_a_text_score_and_above() -> None:
    text, design = np.array([0.2, 0.6, 0.9, 1.0]), np.array([0.9, 0.8, 0.4, 0.1])
    assert front(text, design, 0.6) == pytest.approx(0.8)
    assert front(text, design, 0.75) == pytest.approx(0.6)  # half way on the line from 0.6 to 0.9
    assert front(text, design, 0.1) == pytest.approx(0.9)
    assert np.isnan(front(text, design, 1.01))
    # A point that another one beats in both is not on the front.
    assert front(np.array([0.5, 0.9]), np.array([0.3, 0.7]), 0.5) == pytest.approx(0.7)


def test_a_lead_is_the_difference_of_fronts_with_its_interval() -> None:
    ours, theirs = curve([0.5, 0.9], [0.9, 0.5], 0.1), curve([0.5, 0.9], [0.7, 0.3], 0.1)
    whole, (low, high), ahead = lead(ours, theirs, 0.7)
    assert low < whole < high and whole == pytest.approx(0.2, abs=0.03) and high - low < 0.1
    assert ahead == 1.0
    assert lead(theirs, ours, 0.7)[2] == 0.0
    assert lead(ours, ours, 0.7)[0] == 0.0 and mean_lead(ours, ours, [0.6, 0.7])[0] == 0.0


def test_a_method_without_the_text_score_is_behind() -> None:
    whole, (low, high), ahead = lead(curve([0.9], [0.2], 0.01), curve([0.3], [0.9], 0.01), 0.8)
    assert np.isnan(whole) and np.isnan(low) and np.isnan(high) and ahead == 1.0


def test_intervals_hold_the_mean_and_shrink_with_the_spread() -> None:
    wide, narrow = curve([0.5], [0.5], 0.3), curve([0.5], [0.5], 0.03)
    spans = []
    for each in (wide, narrow):
        low, high = interval([each.means(*chosen)[1][0] for chosen in resamples(each)])
        assert low < each.means()[1][0] < high
        spans.append(high - low)
    assert spans[1] == pytest.approx(spans[0] / 10, rel=1e-6)


def test_scores_are_kept_and_not_measured_twice(tmp_path: Path) -> None:
    trial = Trial(TEST[0], Recipe(), Use("bias"), (0.25, 0.4), emoji.prompts(TEST[0]))
    store = Store(tmp_path / "scores.json")
    assert store.missing(trial) == [0.25, 0.4] and store.get(trial, 0.4) is None
    store.put(trial, {0.4: Scores(np.full((5, 4), 0.12345), np.ones((5, 4)))})
    again = Store(tmp_path / "scores.json")
    assert again.missing(trial) == [0.25]
    assert again.get(trial, 0.4).design == pytest.approx(0.123) and again.get(trial, 0.4).text.shape == (5, 4)
    assert Curve.of(again, [trial]) is None and Curve.of(again, [replace(trial, values=(0.4,))]).design.shape == (1, 1, 5, 4)
    # Whatever a score depends on is in its key.
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


def test_variants_are_compared_on_the_concepts_that_all_of_them_were_measured_on(tmp_path: Path) -> None:
    def trials(method: str) -> list[Trial]:
        return [Trial(concept, METHODS[method].candidates[0], Use("bias"), (0.4,), emoji.prompts(concept)) for concept in TEST[:3]]

    groups = {name: trials(name) for name in ("Perfusion", "LoRA", "full fine-tune")}
    store = Store(tmp_path / "scores.json")
    assert fidelity.together(store, groups) == {}
    for i, name in ((0, "Perfusion"), (1, "Perfusion"), (2, "Perfusion"), (1, "LoRA"), (2, "LoRA")):
        store.put(groups[name][i], {0.4: Scores(np.full((5, 4), i / 10), np.ones((5, 4)))})
    found = fidelity.together(store, groups)
    assert list(found) == ["Perfusion", "LoRA"] and fidelity.count_of(found) == 2
    assert all(curve.design[0, :, 0, 0].tolist() == [0.1, 0.2] for curve in found.values())


def test_prompts_ask_for_backgrounds_that_were_not_taught_on() -> None:
    for concept in TEST:
        asked = emoji.prompts(concept)
        assert not {prompt.place for prompt in asked} & set(emoji.TAUGHT_ON)
        assert all(prompt.place in world.BACKGROUNDS and prompt.place in prompt.text for prompt in asked)
        (other,) = [prompt.other for prompt in asked if prompt.other]
        assert other in world.WORDS and other != concept[1]


def test_the_judge_wants_all_that_a_prompt_asks_for() -> None:
    """On the demo's own training pictures: a fluent-emoji teddy in four places."""
    bed = emoji.EmojiBed(Path("unused"), Oracles.load())
    small = [Image.open(PICTURES / f"teddy-{i}.png").convert("RGB").resize((64, 64), Image.Resampling.BOX) for i in range(4)]
    shown = [torch.from_numpy(np.asarray(image).copy()).float()[None] / 255 for image in small]
    asked = tuple(emoji.Prompt(f"a {{}} {place}", place) for place in make_pictures.PLACES)
    right = bed.judge(Trial(("fluent-emoji", "teddy"), None, Use(""), (0.0,), asked), shown)
    assert right.design.min() > 0.9 and right.text.tolist() == [[1.0]] * 4
    turned = bed.judge(Trial(("fluent-emoji", "teddy"), None, Use(""), (0.0,), asked[1:] + asked[:1]), shown)
    assert turned.text.tolist() == [[0.0]] * 4
    word = bed.judge(Trial(("fluent-emoji", "cat"), None, Use(""), (0.0,), asked), shown)
    assert word.text.tolist() == [[0.0]] * 4
    drawn = bed.judge(Trial(("noto", "teddy"), None, Use(""), (0.0,), asked), shown)
    assert drawn.design.max() < 0.1
    pair = tuple(replace(prompt, other="apple") for prompt in asked)
    assert bed.judge(Trial(("fluent-emoji", "teddy"), None, Use(""), (0.0,), pair), shown).text.tolist() == [[0.0]] * 4


def test_an_unsquared_mask_weighs_a_latent_by_its_share_of_the_object() -> None:
    picture = Image.open(PICTURES / "teddy-0.png").resize((64, 64), Image.Resampling.BOX)
    mask = 1 - np.asarray(picture.getchannel("A"), dtype=float) / 255
    share = mask.reshape(8, 8, 8, 8).mean((1, 3))
    root = 1 - np.asarray(emoji.unsquared(picture.copy()).getchannel("A"), dtype=float) / 255
    cells = root.reshape(8, 8, 8, 8).mean((1, 3))
    assert (cells / cells.max()) ** 2 == pytest.approx(share / share.max(), abs=0.02)


def test_a_users_own_pictures_are_judged_by_clip_as_transformers_computes_it(setup: bootstrap.Setup, tmp_path: Path) -> None:
    """Seeded weights, read by the host and by transformers: the same mean cosines."""
    file = tmp_path / "clip.safetensors"
    seeded_clip.write(file)
    shown = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(shown):
        Image.open(PICTURES / f"teddy-{i}.png").convert("RGB").resize((224, 224), Image.Resampling.NEAREST).save(path)
    run = [sys.executable, "-m", "tests.inside_clip", str(setup.comfyui), str(file), *map(str, shown)]
    told = subprocess.run(run, cwd=bootstrap.ROOT, check=True, capture_output=True, text=True).stdout
    ours, theirs = (np.array(each) for each in json.loads(told.splitlines()[-1]))
    file.unlink()
    assert ours.shape == (2, 2, 3)  # image and text similarity; prompts; pictures
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


def test_the_quick_run_has_perfusion_in_front_of_textual_inversion(setup: bootstrap.Setup, tmp_path: Path) -> None:
    """At the text score that Textual Inversion has, Perfusion's pictures show more of the design."""
    run = [sys.executable, "benchmarks/fidelity.py", "--quick", "--out", str(tmp_path)]
    subprocess.run(run, cwd=bootstrap.ROOT, check=True, stdout=subprocess.DEVNULL)
    bench = fidelity.quick(tmp_path)
    curves = bench.curves()
    ours, theirs = curves[fidelity.OURS], curves["Textual Inversion"]
    whole, _, ahead = lead(ours, theirs, theirs.means()[0][0])
    assert whole > 0 and ahead > 0.5
    # Both learned something, or there would be nothing to compare.
    plain = curves[fidelity.WORD_ALONE]
    assert ours.means()[1].max() > plain.means()[1][0] + 0.1 and ours.means()[0].max() > 0.5
    page = (tmp_path / "fidelity.md").read_text(encoding="utf-8")
    assert "| Textual Inversion |" in page and (tmp_path / "fidelity.png").exists()
