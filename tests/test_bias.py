"""Find Bias in a real server, and the arithmetic behind it."""

from dataclasses import replace

import pytest
import torch

from perfusion_core.concept import Concept
from perfusion_core.judgement import Judgement, PictureJudgement, adherence_score, lowest_adequate_bias
from scripts.harness.graphs import Graph, Link
from scripts.harness.server import GraphError, Server


def test_followed_is_1_where_prompts_do_what_they_do_to_the_plain_word_and_0_where_they_do_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    plain, look = (torch.randn(k, 3, 4, 8, 8, generator=generator, dtype=torch.float64) for k in (5, 1))
    assert adherence_score(plain + look, plain, 5) == pytest.approx(1)
    assert adherence_score(plain * 0 + look, plain, 5) == pytest.approx(0, abs=1e-6)
    # The definition, prompt by prompt.
    told = torch.randn(5, 3, 4, 8, 8, generator=generator, dtype=torch.float64)
    for asked in (1, 3, 5):
        off = whole = 0.0
        for i in range(asked):
            mine, theirs = (each[i] - sum(each[j] for j in range(5)) / 5 for each in (told, plain))
            off, whole = off + float((mine - theirs).square().sum()), whole + float(theirs.square().sum())
        assert adherence_score(told, plain, asked) == pytest.approx(1 - off / whole, rel=1e-5)
    assert adherence_score(plain + 0.5 * (plain.roll(1, 0) - plain), plain, 5) > adherence_score(plain.roll(1, 0), plain, 5)


@pytest.mark.parametrize(
    ("scores", "least", "bias"),
    [
        ([0.0, 0.4, 0.8, 1.0], 0.5, 0.125),
        ([0.9, 0.9, 0.95, 1.0], 0.5, 0.0),
        ([0.0, 0.1, 0.2, 0.3], 0.5, 0.3),
        # What counts is from where on it stays followed.
        ([0.6, 0.4, 0.6, 1.0], 0.5, 0.15),
    ],
)
def test_the_lowest_bias_is_where_the_prompt_begins_to_be_followed(scores: list[float], least: float, bias: float) -> None:
    assert lowest_adequate_bias([0.0, 0.1, 0.2, 0.3], scores, least) == pytest.approx(bias)


def test_the_best_concept_is_the_likest_of_those_that_follow_prompts() -> None:
    like, follows, both, lost = Judgement(0.1, 0.2), Judgement(0.3, 0.9), Judgement(0.2, 0.6), Judgement(0.05, 0.1)
    order = [both, follows, like, lost]
    for i, better in enumerate(order):
        for worse in order[i + 1 :]:
            assert better.beats(worse, 0.5) and not worse.beats(better, 0.5)
    assert not both.beats(both, 0.5)
    assert like.beats(both, 0.1) and follows.beats(both, 0.8)


def shown(graph: Graph, concept: Link, prompt: str = "", least: float = 0.85) -> str:
    """The node that shows the bias that is found for a concept."""
    model, clip, _ = graph.checkpoint()
    asked = {"prompt": prompt, "followed": least, "size": 64, "seed": 0, "edit_mode": "exact"}
    return graph.add("PreviewAny", source=[graph.add("PerfusionAutoBias", model=model, clip=clip, concept=concept, **asked), 1])


def found(server: Server, prompt: str, least: float) -> float:
    graph = Graph()
    key = shown(graph, graph.load("demo-monster.safetensors"), prompt, least)
    return float(server.run(graph.nodes)["outputs"][key]["text"][0])


def test_a_judgement_by_pictures_says_how_far_they_have_come_and_what_prompts_still_do() -> None:
    """Embeddings along axes of their own: 0 the plain word, 1 the training pictures, 2 to 5 the prompts, 6 and 7 the noises."""
    axes = torch.eye(8)

    def drawn(concept: float, prompts: float) -> torch.Tensor:
        effects = torch.stack([axes[2 + k] - axes[2:6].mean(0) for k in range(4)])
        return (1 - concept) * axes[0] + concept * axes[1] + prompts * effects[:, None] + 0.1 * axes[None, 6:8]

    taught, plain = torch.stack([0.8 * axes[1] + 0.6 * axes[7], 0.8 * axes[1] - 0.6 * axes[7]]), drawn(0, 0.5)
    unmoved = PictureJudgement.of(plain, plain, taught)
    assert unmoved.likeness == pytest.approx(0, abs=1e-6) and unmoved.prompted == pytest.approx(1)
    moved = PictureJudgement.of(drawn(0.25, 0.4), plain, taught)
    # Among themselves the training pictures are 0.64 - 0.36 alike.
    assert moved.likeness == pytest.approx(0.25 * 0.8 / 0.28) and moved.prompted == pytest.approx(0.8)
    lost = PictureJudgement.of(drawn(0.3, 0.0), plain, taught)
    assert lost.prompted == pytest.approx(0, abs=1e-6) and moved.harmonic() == pytest.approx(2 / (1 / moved.likeness + 1 / 0.8))
    assert moved.beats(unmoved) and moved.beats(lost) and not lost.beats(moved) and not moved.beats(moved)
    worse = PictureJudgement(-0.1, 0.5)
    assert worse.harmonic() == 0 and unmoved.beats(worse) and not worse.beats(unmoved)
    one = PictureJudgement.of(drawn(0.2, 0.5), plain, taught[:1])
    assert one.likeness == pytest.approx((0.2 * 0.8) / 1.0, abs=0.1)


def test_the_more_a_prompt_must_be_followed_the_higher_the_bias(server: Server) -> None:
    loose, strict = (found(server, "a photo of a <demo-monster> in the snow", least) for least in (0.75, 0.9))
    assert 0 < loose < strict < 1
    assert 0 < found(server, "", 0.85) < 1


def test_a_prompt_that_no_bias_follows_closely_enough_is_warned_of(server: Server) -> None:
    log = len(server.log())
    assert found(server, "a photo of a <demo-monster> in the snow", 0.99) == 1
    assert "With <demo-monster>, no bias reaches 0.99: at a bias of 1, the prompt is followed to 0." in server.log()[log:]


def test_a_prompt_that_does_not_name_the_concept_is_refused(server: Server) -> None:
    with pytest.raises(GraphError, match="does not contain <demo-monster>"):
        found(server, "a photo of a monster", 0.5)


def test_without_a_concept_there_is_no_bias_to_find(server: Server) -> None:
    graph = Graph()
    shown(graph, [graph.add("PerfusionLoadConcepts", concepts="[]"), 0])
    with pytest.raises(GraphError, match="There is no concept to find a bias for"):
        server.run(graph.nodes)


def test_a_prediction_that_is_not_a_number_gives_no_bias(server: Server) -> None:
    folder, graph = server.base / "models" / "perfusion", Graph()
    concept = Concept.load(folder / "demo-monster.safetensors")
    huge = replace(concept, values={layer: 1e30 * outputs for layer, outputs in concept.values.items()})
    huge.save(folder / "huge.safetensors", torch.float32)
    shown(graph, graph.load("huge.safetensors"))
    with pytest.raises(GraphError, match="is not a number, so no bias can be found"):
        server.run(graph.nodes)
