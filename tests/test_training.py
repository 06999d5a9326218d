"""The training loop on a small differentiable model of its own: gradients, masks, resuming, and what it must not touch."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from perfusion_core import PerfusionError
from perfusion_core.captions import captions
from perfusion_core.covariance import Estimate
from perfusion_core.gated_edit import APPROXIMATE, EXACT, GATE_CUTOFF, MODES, OWN_SIMILARITY, PAPER, STATIC, Edit
from perfusion_core.prompts import TEMPLATES
from perfusion_core.safe_files import read, write
from perfusion_core.training import loop
from perfusion_core.training.base_model import Encoded, Word
from perfusion_core.training.lesson import Bucket, Lesson, as_templates
from perfusion_core.training.loop import (
    BatchSample,
    edit_in_training,
    gradients,
    gradients_in_range,
    held_out_loss,
    initial_state,
    masked_error,
    rates,
    train,
)
from perfusion_core.training.settings import AT_WORD, FINE, LOCAL, LOCKS, NO_EDIT, TRAINED, WORD, Settings
from perfusion_core.training.state import MAX_SCALE, TrainingState, inference_gate

torch.set_num_threads(1)  # with tensors this small, threads only wait for each other

D, WIDTH, N = 12, 10, 14
LAYERS = {"up.10.attn2": 5, "down.2.attn2": 6, "up.9.attn2": 5}
"""Not in the order of their names."""
FINEST = "up.10.attn2"
PICTURES, CHANNELS, SIZE = 3, 2, 4


class Painter:
    """A latent diffusion model in miniature: a causal text encoder, and a pixelwise network with cross-attention.

    No pixel sees another, so that what lies outside of a mask cannot reach what lies inside.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, encoder: str = "clip") -> None:
        generator = torch.Generator().manual_seed(7)

        def matrix(*shape: int) -> Tensor:
            return (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).to(dtype).requires_grad_()

        self.dtype, self.encoder, self.half = dtype, encoder, dtype == torch.float16
        self.places, self.own, self.before = matrix(N, WIDTH), matrix(D, WIDTH), matrix(D, WIDTH)
        self.into, self.out, self.clock = matrix(8, CHANNELS), matrix(CHANNELS, 8), matrix(8, 2)
        self.queries = {layer: matrix(m, 8) for layer, m in LAYERS.items()}
        self.to_k = {layer: matrix(m, D) for layer, m in LAYERS.items()}
        self.to_v = {layer: matrix(m, D) for layer, m in LAYERS.items()}
        self.back = {layer: matrix(8, m) for layer, m in LAYERS.items()}
        self.calls = 0

    def parameters(self) -> list[Tensor]:
        """All that is frozen."""
        groups = (self.queries, self.to_k, self.to_v, self.back)
        plain = [self.places, self.own, self.before, self.into, self.out, self.clock]
        return plain + [tensor for group in groups for tensor in group.values()]

    def vector(self, text: str) -> Tensor:
        """A word's embedding, [WIDTH]."""
        return torch.randn(WIDTH, generator=torch.Generator().manual_seed(sum(ord(c) * 31**i for i, c in enumerate(text)) % 2**40))

    def embed(self, text: str) -> dict[str, Tensor]:
        """See `Base.embed`."""
        return {self.encoder: torch.stack([self.vector(part) for part in text.split()])}

    def encode(self, templates: Sequence[str], word: Word) -> Encoded:
        """See `Base.encode`."""
        rows, places = [], []
        for template in templates:
            row: list[Tensor] = [self.vector("start")]
            for part in template.split():
                if part == "{}":
                    row += list(word[self.encoder])
                    places.append(len(row) - 1)
                else:
                    row.append(self.vector(part))
            row += [self.vector("end")] * (N - len(row))
            rows.append(torch.stack([each.to(self.dtype) for each in row]))
        x = torch.stack(rows) + 0.3 * self.places
        mean = x.cumsum(1) / torch.arange(1, N + 1, dtype=self.dtype)[:, None]
        return Encoded(torch.tanh(x @ self.own.T + mean @ self.before.T), torch.tensor(places))

    def project(self, vectors: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """See `Base.project`."""
        given = vectors.to(self.dtype)
        found = {layer: (given @ self.to_k[layer].T, given @ self.to_v[layer].T) for layer in LAYERS}
        return {layer: (k.detach().float(), v.detach().float()) for layer, (k, v) in found.items()}

    def fine_layers(self) -> set[str]:
        """See `Base.fine_layers`."""
        return {FINEST}

    def paint(self, z: Tensor, time: Tensor, kv: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        """The prediction from noised latents [B, c, h, w] and every layer's keys and values [B, N, m]."""
        pixels = z.flatten(2).transpose(1, 2)
        clock = torch.stack([time.sqrt(), (1 - time).sqrt()], -1) @ self.clock.T
        hidden = torch.tanh(pixels @ self.into.T + clock[:, None])
        for layer, (k, v) in kv.items():
            scores = hidden @ self.queries[layer].T @ k.transpose(1, 2)
            hidden = hidden + scores.softmax(-1) @ v @ self.back[layer].T
        return (hidden @ self.out.T).transpose(1, 2).reshape(z.shape)

    def noised(self, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """What the network is given."""
        share = time[:, None, None, None]
        return (1 - share).sqrt() * latents + share.sqrt() * noise

    def objective(self, latents: Tensor, noise: Tensor, time: Tensor, encoded: Encoded, edit: Edit | None) -> tuple[Tensor, Tensor]:
        """See `Base.objective`."""
        self.calls += 1
        encodings = encoded.tokens
        by = edit.coefficients(encodings) if edit else None
        kv = {}
        for layer in LAYERS:
            k = encodings @ self.to_k[layer].T
            v = encodings @ self.to_v[layer].T
            if edit:
                k = k + edit.key_correction(layer, by, lambda x, w=self.to_k[layer]: x.to(self.dtype) @ w.T).to(self.dtype)
                v = v + edit.value_correction(layer, by, lambda x, w=self.to_v[layer]: x.to(self.dtype) @ w.T).to(self.dtype)
            kv[layer] = (k, v)
        time = time.to(self.dtype)
        return self.paint(self.noised(latents.to(self.dtype), noise.to(self.dtype), time), time, kv), noise


@pytest.fixture(scope="module")
def inverse() -> Tensor:
    """C⁻¹ of the encoder, over captions cut to its length."""
    painter, estimate = Painter(), Estimate(D)
    with torch.no_grad():
        lines = [" ".join(line.split()[: N - 2]) for line in captions(200)]
        for line in lines:
            estimate.add(painter.encode(["{}", line.split()[0] + " {}"], {"clip": painter.embed(line)["clip"][:6]}).tokens)
    return estimate.finish("painter").inverse()


@pytest.fixture(scope="module")
def latents() -> Tensor:
    """Pictures of one pattern, each as it is and mirrored."""
    generator = torch.Generator().manual_seed(1)
    pattern = torch.randn(1, CHANNELS, SIZE, SIZE, generator=generator) * 0.5 + torch.tensor([2.0, -1.5])[:, None, None]
    made = pattern + 0.1 * torch.randn(PICTURES, CHANNELS, SIZE, SIZE, generator=generator)
    return torch.stack([made, made.flip(-1)], 1)


@pytest.fixture(scope="module")
def masks() -> Tensor:
    """Soft masks, lopsided, so that mirroring shows; zero on their last column."""
    made = torch.rand(PICTURES, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    made[..., -1] = 0
    made /= made.amax((1, 2, 3), keepdim=True)
    return torch.stack([made, made.flip(-1)], 1)


def settings_of(**changed: object) -> Settings:
    """Few steps."""
    return replace(Settings(steps=12, batch=8, micro=8, word_rate=0.01, output_rate=0.05, seed=5), **changed)


def lesson_of(latents: Tensor, masks: Tensor, inverse: Tensor) -> Lesson:
    """Pictures of one size, without captions."""
    return Lesson((Bucket(latents, masks),), inverse)


def teach(
    painter: Painter,
    state: TrainingState,
    latents: Tensor,
    masks: Tensor,
    inverse: Tensor,
    settings: Settings,
    after_step: Callable[[TrainingState], None] = lambda state: None,
) -> TrainingState:
    """Train to the end; `after_step` is told of every step."""
    for loss in train(painter, state, lesson_of(latents, masks, inverse), settings):
        assert loss == state.losses[-1]
        after_step(state)
    return state


def taught(inverse: Tensor, latents: Tensor, masks: Tensor, settings: Settings, painter: Painter | None = None) -> TrainingState:
    """A state from start to end."""
    painter = painter or Painter()
    return teach(painter, initial_state(painter, "teddy bear", settings), latents, masks, inverse, settings)


def same(one: TrainingState, other: TrainingState) -> bool:
    """Whether all of both is equal to the last bit."""
    first, second = one.tensors(), other.tensors()
    assert set(first) == set(second)
    return one.step == other.step and all(torch.equal(first[name], second[name]) for name in first)


def kept(state: TrainingState) -> dict[str, Tensor]:
    """A copy of all of it."""
    return {name: tensor.clone() for name, tensor in state.tensors().items()}


# ---- it learns -----------------------------------------------------------------------------------------------------------


def loss_over(state: TrainingState, inverse: Tensor, latents: Tensor, masks: Tensor, settings: Settings) -> float:
    """The mean loss over draws that no training has seen."""
    painter, unseen = Painter(), replace(settings, seed=99)
    losses = [
        gradients(painter, state, BatchSample.of(unseen, step, latents[:, 0]), latents, masks, inverse, unseen)[2]
        for step in range(10)
    ]
    return sum(losses) / len(losses)


KINDS = [*({"lock": lock} for lock in LOCKS), {"mode": NO_EDIT}, {"initial_word": "old red bear"}]
"""Trainings of every kind."""


@pytest.mark.parametrize(("lock", "mode"), [*itertools.product([LOCAL, TRAINED], MODES), (WORD, EXACT), (FINE, EXACT)])
def test_the_loss_falls(lock: str, mode: str, inverse: Tensor, latents: Tensor, masks: Tensor) -> None:
    settings = settings_of(steps=80, lock=lock, mode=mode, word_rate=0.02, output_rate=0.2)
    before = loss_over(initial_state(Painter(), "teddy bear", settings), inverse, latents, masks, settings)
    state = taught(inverse, latents, masks, settings)
    assert state.step == len(state.losses) == 80
    assert loss_over(state, inverse, latents, masks, settings) < 0.5 * before
    assert sum(state.losses[-10:]) < 0.6 * sum(state.losses[:10])


def test_the_loss_of_a_word_alone_falls(inverse: Tensor, latents: Tensor, masks: Tensor) -> None:
    settings = settings_of(steps=80, mode=NO_EDIT, word_rate=0.1)
    before = loss_over(initial_state(Painter(), "teddy bear", settings), inverse, latents, masks, settings)
    assert loss_over(taught(inverse, latents, masks, settings), inverse, latents, masks, settings) < 0.8 * before


def test_a_base_of_lower_precision_learns_in_float32(inverse: Tensor, latents: Tensor, masks: Tensor) -> None:
    settings = settings_of(steps=80, word_rate=0.02, output_rate=0.2)
    state = taught(inverse, latents, masks, settings, Painter(torch.bfloat16))
    assert all(tensor.dtype == torch.float32 for tensor in [*state.learned(), *state.optimizer.moments, state.target_input])
    assert sum(state.losses[-10:]) < 0.6 * sum(state.losses[:10])


def test_it_starts_at_the_superclass(inverse: Tensor) -> None:
    painter = Painter()
    state = initial_state(painter, "teddy bear", settings_of(lock=TRAINED))
    word = painter.embed("teddy bear")
    assert torch.equal(state.word["clip"], word["clip"]) and state.word["clip"].shape == (2, WIDTH)
    encoded = painter.encode(TEMPLATES, word)
    encodings, places = encoded.tokens, encoded.places
    mean = torch.stack([row[place] for row, place in zip(encodings, places, strict=True)]).mean(0)
    assert torch.equal(state.target_input, state.superclass_encoding)
    torch.testing.assert_close(state.target_input, mean.detach(), rtol=1e-6, atol=1e-6)
    for layer in LAYERS:
        torch.testing.assert_close(state.values[layer], (painter.to_v[layer] @ mean).detach())
        torch.testing.assert_close(state.keys[layer], (painter.to_k[layer] @ mean).detach())
    assert state.step == 0 and state.losses == [] and all((moment == 0).all() for moment in state.optimizer.moments)
    held = [each.untyped_storage().data_ptr() for each in [*state.learned(), state.target_input, state.superclass_encoding]]
    assert len(set(held)) == len(held)


def test_another_initial_word_is_where_the_word_starts_and_nothing_else() -> None:
    painter = Painter()
    plain, other = (initial_state(painter, "teddy", settings_of(lock=TRAINED, initial_word=word)) for word in ("", "old red bear"))
    assert torch.equal(other.word["clip"], painter.embed("old red bear")["clip"]) and other.word["clip"].shape == (3, WIDTH)
    assert [moment.shape for moment in other.optimizer.moments[:2]] == [(3, WIDTH)] * 2
    for name, tensor in plain.tensors().items():
        assert name.startswith(("word.", "moment.")) or torch.equal(tensor, other.tensors()[name]), name


# ---- gradients -----------------------------------------------------------------------------------------------------------


def by_hand(
    painter: Painter,
    state: TrainingState,
    learned: dict[str, Tensor],
    draw: BatchSample,
    latents: Tensor,
    masks: Tensor,
    settings: Settings,
) -> Tensor:
    """The loss of a step in float64, Eq. 3 and its exact mode written out; `state` tells what is fixed."""
    kinds, which = draw.prompts.unique(return_inverse=True)
    templates = [TEMPLATES[i] for i in kinds]
    encodings = painter.encode(templates, {"clip": learned["word"]}).tokens[which]
    target = state.target_input.double()
    if settings.target_gradient:
        before, now = (mean_of(painter, templates, word) for word in (state.word["clip"].double(), learned["word"]))
        target = target + now - before
    measured = learned["inverse"] @ target
    if settings.mode == NO_EDIT:
        kv = {layer: (encodings @ painter.to_k[layer].T, encodings @ painter.to_v[layer].T) for layer in LAYERS}
        return error_by_hand(painter, kv, draw, latents, masks, settings)
    sim = encodings @ measured / (measured @ target)
    opened = torch.sigmoid((sim - settings.bias) / settings.temperature)
    share = torch.ones_like(sim)
    if settings.mode == EXACT:
        opened = share = torch.where(opened >= GATE_CUTOFF, opened, 0)
    rest = encodings - (share * sim)[..., None] * target
    kv = {}
    for layer in LAYERS:
        key = painter.to_k[layer] @ state.superclass_encoding.double()
        if f"key.{layer}" in learned:
            key = learned[f"key.{layer}"]
        changed = opened[..., None] * key - (share * sim)[..., None] * (painter.to_k[layer] @ target)
        at = 1.0 if settings.lock not in AT_WORD else (sim >= OWN_SIMILARITY)[..., None]
        kv[layer] = (
            encodings @ painter.to_k[layer].T + at * changed,
            rest @ painter.to_v[layer].T + opened[..., None] * learned[f"value.{layer}"],
        )
    return error_by_hand(painter, kv, draw, latents, masks, settings)


def mean_of(painter: Painter, templates: list[str], word: Tensor) -> Tensor:
    """The mean encoding of a word's last token."""
    encoded = painter.encode(templates, {"clip": word})
    encodings, places = encoded.tokens, encoded.places
    return torch.stack([encoding[place] for encoding, place in zip(encodings, places, strict=True)]).mean(0)


def error_by_hand(painter: Painter, kv: dict, draw: BatchSample, latents: Tensor, masks: Tensor, settings: Settings) -> Tensor:
    """The masked error of what a painter makes of every layer's keys and values, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    form = draw.flipped.long() + 2 * draw.small.long()
    z, mask = latents[draw.pictures, form].double(), masks[draw.pictures, form].double()
    noise, time = draw.noise.double(), draw.time.double()
    error = (painter.paint(painter.noised(z, noise, time), time, kv) - noise) ** 2
    for b in range(settings.batch):
        total = total + (error[b].mean(0) * mask[b, 0]).sum() / mask[b].sum() / settings.batch
    return total


@pytest.mark.parametrize("target_gradient", [False, True])
@pytest.mark.parametrize(("lock", "mode"), [*itertools.product(LOCKS, [EXACT, PAPER]), (LOCAL, NO_EDIT), (TRAINED, NO_EDIT)])
@torch.no_grad()
def test_gradients_agree_with_finite_differences_in_float64(
    lock: str, mode: str, target_gradient: bool, inverse: Tensor, latents: Tensor, masks: Tensor
) -> None:
    settings = settings_of(lock=lock, mode=mode, target_gradient=target_gradient, steps=3)
    state = taught_before(inverse, latents, masks, settings)
    draw = BatchSample.of(settings, 3, latents[:, 0])
    with torch.enable_grad():
        sums, _, loss = gradients(Painter(), state, draw, latents, masks, inverse, settings)
    painter = Painter(torch.float64)
    for wide, narrow in zip(painter.parameters(), Painter().parameters(), strict=True):
        wide.copy_(narrow)
    learned = {"inverse": inverse, "word": state.word["clip"].double()}
    learned |= {f"value.{layer}": each.double() for layer, each in state.values.items()}
    learned |= {f"key.{layer}": each.double() for layer, each in state.keys.items()}
    names = ["word", *(f"value.{layer}" for layer in state.values), *(f"key.{layer}" for layer in state.keys)]
    assert len(names) == len(sums) == (1 if mode == NO_EDIT else {LOCAL: 4, FINE: 5}.get(lock, 7))

    def value() -> float:
        return float(by_hand(painter, state, learned, draw, latents, masks, settings))

    assert loss == pytest.approx(value(), rel=1e-5)
    step = 1e-5
    for name, gradient in zip(names, sums, strict=True):
        flat, found = learned[name].view(-1), torch.zeros(gradient.numel(), dtype=torch.float64)
        for i in range(len(flat)):
            there = flat[i].clone()
            flat[i] = there + step
            above = value()
            flat[i] = there - step
            found[i] = (above - value()) / (2 * step)
            flat[i] = there
        assert found.norm() > 1e-4, name
        assert float((gradient.view(-1).double() - found).norm() / found.norm()) < 1e-4, name


def taught_before(inverse: Tensor, latents: Tensor, masks: Tensor, settings: Settings) -> TrainingState:
    """A state after some steps, where word, i* and outputs have gone apart."""
    with torch.enable_grad():
        return taught(inverse, latents, masks, settings)


@pytest.mark.parametrize("micro", [1, 3, 5, 64])
def test_micro_batches_give_the_gradients_of_the_batch(micro: int, inverse: Tensor, latents: Tensor, masks: Tensor) -> None:
    settings = settings_of(lock=TRAINED)
    state = taught(inverse, latents, masks, replace(settings, steps=3))
    draw = BatchSample.of(settings, 3, latents[:, 0])
    whole, seen, loss = gradients(Painter(), state, draw, latents, masks, inverse, settings)
    painter = Painter()
    parts, seen_again, again = gradients(painter, state, draw, latents, masks, inverse, replace(settings, micro=micro))
    assert painter.calls == math.ceil(8 / micro)
    assert again == pytest.approx(loss, rel=1e-6) and torch.equal(seen, seen_again)
    for one, other in zip(whole, parts, strict=True):
        assert (one - other).norm() <= 2e-6 * one.norm() and one.norm() > 0


@pytest.mark.parametrize(("strength", "scaled"), [(2e-5, True), (30.0, False)])
def test_in_half_precision_the_loss_is_scaled_as_far_as_nothing_overflows(
    strength: float, scaled: bool, inverse: Tensor, latents: Tensor, masks: Tensor
) -> None:
    """Gradients that would vanish are those of float32; where scaled ones overflow, the scale is halved, and kept so."""
    painters = [Painter(torch.float16), Painter()]
    for half, whole in zip(painters[0].parameters(), painters[1].parameters(), strict=True):
        whole.data = half.data.float()
    for painter in painters:
        painter.out.data *= strength
    settings, (low, high) = settings_of(steps=300), (initial_state(each, "teddy bear", settings_of()) for each in painters)
    draw = BatchSample.of(settings, 0, latents[:, 0])
    given = draw, latents, masks, inverse, settings
    wanted = gradients(painters[1], high, *given)[0]
    found = gradients_in_range(painters[0], low, *given)[0]
    plain = gradients(painters[0], low, *given)[0]

    def off(one: list[Tensor]) -> float:
        return max(float((a - b).norm() / b.norm()) for a, b in zip(one, wanted, strict=True))

    assert off(found) < 0.05
    assert (low.scale == MAX_SCALE) == scaled and (off(plain) > 0.3) == scaled
    assert TrainingState.from_tensors(low.tensors()).scale == low.scale


def test_a_layer_that_no_gradient_reaches_ends_the_training(inverse: Tensor, latents: Tensor, masks: Tensor) -> None:
    class Wider(Painter):
        def project(self, vectors: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
            return super().project(vectors) | {"unused.attn2": (vectors.detach(), vectors.detach())}

    class Cut(Painter):
        def objective(self, *given: object) -> tuple[Tensor, Tensor]:
            prediction, target = super().objective(*given)
            edit = given[-1]
            return prediction.detach() + 0 * sum(each.sum() for each in edit.values.values()), target

    sentence = r"no gradient reached 1 of 4 edited layers \(the first is unused\.attn2\)"
    for base, words in ((Wider(), sentence), (Cut(), "the prompt's")):
        with pytest.raises(PerfusionError, match=words):
            taught(inverse, latents, masks, settings_of(steps=2), base)


def test_words_learn_by_torchs_adam_and_outputs_by_one_that_shares_its_second_moment() -> None:
    """The latter against its sums written out in float64; rates of both fall along a half cosine."""
    settings = settings_of(steps=9, word_rate=0.02, output_rate=0.3)
    state = initial_state(Painter(), "teddy", replace(settings, lock=TRAINED))
    words = [each.clone().requires_grad_() for each in state.word.values()]
    outputs = [each.double() for each in [*state.values.values(), *state.keys.values()]]
    history: list[list[Tensor]] = []
    peer = torch.optim.Adam(words, lr=0.02)
    falls = torch.optim.lr_scheduler.LambdaLR(peer, lambda n: 0.5 * (1 + math.cos(math.pi * n / 9)))
    generator = torch.Generator().manual_seed(0)
    for step in range(9):
        sizes = 10.0 ** torch.randint(-3, 3, (len(state.learned()),), generator=generator)
        sums = [torch.randn(each.shape, generator=generator) * size for each, size in zip(state.learned(), sizes, strict=True)]
        for each, gradient in zip(words, sums, strict=False):
            each.grad = gradient.clone()
        peer.step()
        falls.step()
        history.append([gradient.double() for gradient in sums[len(words) :]])
        ages = range(step, -1, -1)
        for i, each in enumerate(outputs):
            first = sum(0.1 * 0.9**age * seen[i] for age, seen in zip(ages, history, strict=True)) / (1 - 0.9 ** (step + 1))
            second = sum(0.001 * 0.999**age * seen[i].square().mean() for age, seen in zip(ages, history, strict=True))
            rate = 0.3 * 0.5 * (1 + math.cos(math.pi * step / 9))
            each -= rate * first / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        state.optimizer.step(sums, *rates(settings, step))
    for one, other in zip(state.learned(), [*words, *outputs], strict=True):
        torch.testing.assert_close(one, other.detach().float(), rtol=1e-5, atol=1e-6)


# ---- masks and flips -----------------------------------------------------------------------------------------------------


def found_with(inverse: Tensor, latents: Tensor, masks: Tensor, **changed: object) -> tuple[list[Tensor], float]:
    """Gradients and loss of one step."""
    settings = settings_of(lock=TRAINED, **changed)
    state = initial_state(Painter(), "teddy bear", settings)
    draw = BatchSample.of(settings, 0, latents[:, 0])
    sums, _, loss = gradients(Painter(), state, draw, latents, masks, inverse, settings)
    return sums, loss


def test_pixels_outside_of_the_mask_have_no_influence(inverse: Tensor, latents: Tensor, masks: Tensor) -> None:
    sums, loss = found_with(inverse, latents, masks)
    outside = torch.where(masks == 0, 1e3, latents)
    assert (outside != latents).any()
    again, loss_again = found_with(inverse, outside, masks)
    assert loss == loss_again and all(torch.equal(one, other) for one, other in zip(sums, again, strict=True))
    inside = torch.where(masks > 0, latents + 0.1, latents)
    other, loss_other = found_with(inverse, inside, masks)
    assert loss != loss_other and not any(torch.equal(one, two) for one, two in zip(sums, other, strict=True))


def test_the_size_of_a_mask_does_not_matter(inverse: Tensor, latents: Tensor, masks: Tensor) -> None:
    sums, loss = found_with(inverse, latents, masks)
    half, loss_half = found_with(inverse, latents, masks * 0.5)
    assert loss_half == pytest.approx(loss, rel=1e-6)
    for one, other in zip(sums, half, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_masked_error_is_the_weighted_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(3, 2, 4, 4, generator=generator) for _ in range(2))
    weights = torch.rand(3, 1, 4, 4, generator=generator)
    wanted = 0.0
    for b in range(3):
        shares = weights[b, 0].double() / weights[b].double().sum()
        wanted += float((shares * ((prediction[b] - target[b]).double() ** 2).mean(0)).sum()) / 3
    assert float(masked_error(prediction, target, weights)) == pytest.approx(wanted, rel=1e-6)
    plain = torch.nn.functional.mse_loss(prediction, target)
    torch.testing.assert_close(masked_error(prediction, target, torch.ones(3, 1, 4, 4)), plain)
    # 300² is too large for float16.
    large = masked_error(torch.full((1, 1, 2, 2), 300.0).half(), torch.zeros(1, 1, 2, 2).half(), torch.ones(1, 1, 2, 2))
    assert float(large) == 90000


def test_mirrored_pictures_come_with_their_mirrored_masks(inverse: Tensor, latents: Tensor, masks: Tensor) -> None:
    swapped = found_with(inverse, latents.flip(1), masks.flip(1), flip=1.0)
    plain = found_with(inverse, latents, masks, flip=0.0)
    assert swapped[1] == plain[1] and all(torch.equal(one, other) for one, other in zip(swapped[0], plain[0], strict=True))
    mirrored = found_with(inverse, latents, masks, flip=1.0)
    assert mirrored[1] != plain[1]


def test_small_pictures_take_the_place_of_whole_ones_and_of_nothing_else(inverse: Tensor, latents: Tensor, masks: Tensor) -> None:
    four, marks = torch.cat([latents + 1, latents], 1), torch.cat([masks.flip(2), masks], 1)
    small, plain = found_with(inverse, four, marks, small=1.0), found_with(inverse, latents, masks)
    assert small[1] == plain[1] and all(torch.equal(one, other) for one, other in zip(small[0], plain[0], strict=True))
    whole = found_with(inverse, four, marks)
    assert whole[1] != plain[1]
    settings = settings_of(lock=TRAINED, small=0.5)
    draw = BatchSample.of(settings, 0, four[:, 0])
    assert 0 < int(draw.small.sum()) < settings.batch and 0 < int(draw.flipped.sum()) < settings.batch
    assert draw.forms().tolist() == [f + 2 * s for f, s in zip(draw.flipped.tolist(), draw.small.tolist(), strict=True)]
    state = initial_state(Painter(), "teddy bear", settings)
    loss = gradients(Painter(), state, draw, four, marks, inverse, settings)[2]
    painter = Painter(torch.float64)
    for wide, narrow in zip(painter.parameters(), Painter().parameters(), strict=True):
        wide.data.copy_(narrow.data)
    learned = {"inverse": inverse, "word": state.word["clip"].double()}
    learned |= {f"value.{layer}": each.double() for layer, each in state.values.items()}
    learned |= {f"key.{layer}": each.double() for layer, each in state.keys.items()}
    with torch.no_grad():
        assert loss == pytest.approx(float(by_hand(painter, state, learned, draw, four, marks, settings)), rel=1e-5)


# ---- the same again ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", [LOCAL, TRAINED])
def test_the_same_seed_gives_the_same_concept_to_the_last_bit(lock: str, inverse: Tensor, latents: Tensor, masks: Tensor) -> None:
    settings = settings_of(lock=lock)
    one = taught(inverse, latents, masks, settings)
    torch.manual_seed(123)
    torch.rand(7)
    assert same(one, taught(inverse, latents, masks, settings))
    other = taught(inverse, latents, masks, replace(settings, seed=6))
    assert not any(torch.equal(a, b) for a, b in zip(one.learned(), other.learned(), strict=True))
    assert one.losses != other.losses


class Stop(Exception):
    """What a user's interruption raises."""


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("at", [1, 5, 11, 12])
def test_an_interrupted_training_ends_as_an_undisturbed_one(
    at: int, kind: dict, inverse: Tensor, latents: Tensor, masks: Tensor, tmp_path: Path
) -> None:
    settings, path = settings_of(**kind), tmp_path / "checkpoint.safetensors"
    whole = taught(inverse, latents, masks, settings)

    def stop(state: TrainingState) -> None:
        if state.step == at:
            raise Stop

    state = initial_state(Painter(), "teddy bear", settings)
    with pytest.raises(Stop):
        teach(Painter(), state, latents, masks, inverse, settings, stop)
    assert state.step == len(state.losses) == at
    write(path, state.tensors(), {"format": "training"})
    back = TrainingState.from_tensors(read(path, 2**20)[0])
    assert same(state, back)
    assert [list(group) for group in (back.word, back.values, back.keys)] == [
        list(group) for group in (state.word, state.values, state.keys)
    ]
    for each in (back, state):
        assert same(teach(Painter(), each, latents, masks, inverse, settings), whole)


def test_a_checkpoint_that_is_not_whole_is_refused(inverse: Tensor, latents: Tensor, masks: Tensor) -> None:
    whole = taught(inverse, latents, masks, settings_of(steps=2)).tensors()
    for name in whole:
        with pytest.raises(PerfusionError, match="is incomplete"):
            TrainingState.from_tensors({k: v for k, v in whole.items() if k != name})
    assert same(TrainingState.from_tensors(whole), TrainingState.from_tensors(dict(reversed(whole.items()))))


def test_a_lesson_before_its_first_step_survives_its_file(tmp_path: Path) -> None:
    state = initial_state(Painter(), "teddy", settings_of())
    write(tmp_path / "c.safetensors", state.tensors(), {})
    assert same(TrainingState.from_tensors(read(tmp_path / "c.safetensors", 2**20)[0]), state)


def test_a_finished_lesson_is_left_as_it_is(inverse: Tensor, latents: Tensor, masks: Tensor) -> None:
    settings, painter = settings_of(steps=2), Painter()
    state = taught(inverse, latents, masks, settings, painter)
    before = kept(state)
    teach(painter, state, latents, masks, inverse, settings)
    assert painter.calls == 2 and all(torch.equal(before[k], v) for k, v in state.tensors().items())


def test_after_step_is_told_of_every_step(inverse: Tensor, latents: Tensor, masks: Tensor) -> None:
    settings, told = settings_of(steps=5), []
    state = initial_state(Painter(), "teddy", settings)
    teach(Painter(), state, latents, masks, inverse, settings, lambda each: told.append((each.step, len(each.losses))))
    assert told == [(n, n) for n in range(1, 6)]


# ---- what changes and what does not --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_nothing_but_word_outputs_and_target_input_changes(kind: dict, inverse: Tensor, latents: Tensor, masks: Tensor) -> None:
    settings, painter = settings_of(**kind), Painter()
    given = [*painter.parameters(), inverse, latents, masks]
    before = [tensor.detach().clone() for tensor in given]
    state = initial_state(painter, "teddy bear", settings)
    first = kept(state)
    teach(painter, state, latents, masks, inverse, settings)
    assert all(torch.equal(tensor, old) for tensor, old in zip(given, before, strict=True))
    assert all(tensor.grad is None for tensor in painter.parameters())
    assert not any(tensor.requires_grad for tensor in state.tensors().values())
    changed = {name for name, tensor in state.tensors().items() if name != "losses" and not torch.equal(tensor, first[name])}
    assert changed == set(first) - {"superclass_encoding", "losses", "scale"}
    assert set(state.keys) == {LOCAL: set(), FINE: {FINEST}}.get(settings.lock, set(LAYERS))
    assert state.concept(inverse, "<a>", "teddy", "sd1", settings).keys_at_word == (settings.lock in AT_WORD)
    assert state.concept(inverse, "<a>", "teddy", "sd1", settings).key_lock == (0.5 if settings.lock in AT_WORD else 0)
    assert set(state.values) == (set(LAYERS) if settings.mode != NO_EDIT else set())


def test_a_word_alone_is_taught_without_an_edit(inverse: Tensor, latents: Tensor, masks: Tensor) -> None:
    class Sees(Painter):
        def objective(self, *given: object) -> tuple[Tensor, Tensor]:
            assert given[-1] is None
            return super().objective(*given)

    # What the edit would be made of has no say.
    one, other = (
        taught(inverse, latents, masks, settings_of(mode=NO_EDIT, **changed), Sees())
        for changed in ({}, {"bias": 0.1, "temperature": 1.0, "lock": TRAINED, "output_rate": 0.5})
    )
    assert same(one, other) and len(one.learned()) == 1 and len(one.optimizer.moments) == 2


def test_a_word_alone_needs_no_layers_of_a_high_resolution() -> None:
    class Flat(Painter):
        def fine_layers(self) -> set[str]:
            raise PerfusionError("All layers have the same resolution.")

    assert initial_state(Flat(), "teddy", settings_of(mode=NO_EDIT, lock=FINE)).keys == {}
    with pytest.raises(PerfusionError, match="the same resolution"):
        initial_state(Flat(), "teddy", settings_of(lock=FINE))


def test_locked_keys_follow_the_superclass_and_trained_ones_what_was_learned(
    inverse: Tensor, latents: Tensor, masks: Tensor
) -> None:
    painter = Painter()
    for lock in (LOCAL, TRAINED):
        settings = settings_of(lock=lock)
        state = taught(inverse, latents, masks, settings)
        edit = edit_in_training(state, inverse, settings)
        by = replace(edit.coefficients(state.target_input[None, None]), add=torch.ones(1, 1, 1), remove=torch.zeros(1, 1, 1))
        for layer in LAYERS:
            got = edit.key_correction(layer, by, lambda x, w=painter.to_k[layer]: x @ w.T).flatten()
            wanted = state.keys[layer] if lock == TRAINED else painter.to_k[layer] @ state.superclass_encoding
            torch.testing.assert_close(got, wanted)
            locked = painter.to_k[layer] @ state.superclass_encoding
            assert torch.allclose(got, locked, atol=1e-3) == (lock == LOCAL)


@pytest.mark.parametrize(
    ("trained", "used"),
    [
        ((0.75, 0.1), (0.6, 0.15)),
        ((0.4, 0.15), (0.4, 0.15)),
        ((0.3, 0.1), (0.3, 0.1)),
        ((0.6, 0.1), (0.48, 0.15)),
        ((0.0, 0.1), (0.0, 0.15)),
    ],
)
def test_a_concept_has_the_papers_gate_unless_that_opens_at_unrelated_tokens(
    trained: tuple[float, float], used: tuple[float, float]
) -> None:
    assert inference_gate(*trained) == pytest.approx(used)
    opened = [1 / (1 + math.exp(bias / temperature)) for bias, temperature in (trained, inference_gate(*trained))]
    assert opened[1] - opened[0] <= 0.05


def test_the_edit_of_training_is_the_edit_of_the_settings(inverse: Tensor) -> None:
    settings = settings_of(bias=0.4, temperature=0.2, mode=APPROXIMATE)
    state = initial_state(Painter(), "teddy", settings)
    edit = edit_in_training(state, inverse, settings)
    assert edit.mode == APPROXIMATE and edit.strength.tolist() == [1.0]
    assert (edit.bias.tolist(), edit.temperature.tolist()) == (pytest.approx([0.4]), pytest.approx([0.2]))
    assert float(edit.probes @ state.target_input) == pytest.approx(1, abs=1e-5)


def test_the_target_input_is_a_moving_average_of_the_concepts_encoding(inverse: Tensor, latents: Tensor, masks: Tensor) -> None:
    settings, painter = settings_of(ema=0.9), Painter()
    state = initial_state(painter, "teddy bear", settings)
    wanted = state.target_input.clone()
    word = {"clip": state.word["clip"].clone()}

    def check(now: TrainingState) -> None:
        # The word as it was in this step's prompts.
        draw = BatchSample.of(settings, now.step - 1, latents[:, 0])
        encoded = painter.encode([TEMPLATES[i] for i in sorted(set(draw.prompts.tolist()))], word)
        encodings, places = encoded.tokens, encoded.places
        seen = torch.stack([row[place] for row, place in zip(encodings, places, strict=True)]).mean(0).detach()
        wanted.mul_(0.9).add_(seen, alpha=0.1)
        torch.testing.assert_close(now.target_input, wanted, rtol=1e-5, atol=1e-6)
        word["clip"] = now.word["clip"].clone()

    start_input = state.target_input.clone()
    teach(painter, state, latents, masks, inverse, settings, check)
    assert (state.target_input - start_input).norm() > 1e-3
    still = settings_of(ema=1.0)
    assert torch.equal(taught(inverse, latents, masks, still).target_input, start_input)


# ---- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"steps": 0}, "steps to be at least 1"),
        ({"steps": -3}, "steps to be at least 1"),
        ({"batch": 0}, "batch to be at least 1, but got 0; change it in Train Concept"),
        ({"micro": 0}, "at_once to be at least 1"),
        ({"word_rate": 0.0}, "word_rate to be above 0"),
        ({"output_rate": -0.1}, "output_rate to be above 0"),
        ({"word_rate": float("nan")}, "word_rate to be above 0"),
        ({"output_rate": float("inf")}, "output_rate to be above 0"),
        ({"temperature": 0.0}, "train_temperature to be above 0"),
        ({"temperature": float("nan")}, "train_temperature to be above 0"),
        ({"bias": float("nan")}, "train_bias to be a number"),
        ({"lock": "global"}, "lock to be one of local, trained, word or fine, but got global;"),
        ({"mode": "both"}, "the edit mode to be one of exact, paper, approximate, static or none, but got both;"),
        ({"flip": 1.5}, "flip to be between 0 and 1"),
        ({"small": -0.1}, "small to be between 0 and 1"),
        ({"ema": -0.1}, "ema to be between 0 and 1"),
        ({"min_snr": -1.0}, "min_snr to be 0 or more"),
        *(
            ({"lock": lock, "mode": STATIC}, f"an edit mode other than static, which has no gates, when lock is {lock}")
            for lock in AT_WORD
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_work(
    changed: dict[str, object], says: str, inverse: Tensor, latents: Tensor, masks: Tensor
) -> None:
    painter = Painter()
    state = initial_state(painter, "teddy", settings_of())
    before = kept(state)
    with pytest.raises(PerfusionError, match=f"Training needs {says}") as caught:
        teach(painter, state, latents, masks, inverse, settings_of(**changed))
    assert str(caught.value).isprintable()
    assert painter.calls == 0 and all(torch.equal(before[k], v) for k, v in state.tensors().items())


def test_the_settings_that_come_with_the_pack_are_good() -> None:
    Settings().check()
    for lock in (LOCAL, TRAINED):
        for mode in (*MODES, NO_EDIT):
            settings_of(lock=lock, mode=mode, flip=0.0, ema=1.0).check()


@pytest.mark.parametrize(
    ("where", "bad"),
    [*itertools.product(["prediction", "latents", "gradient"], [float("nan"), float("inf")]), ("sum", 1e20)],
)
def test_a_loss_that_is_no_number_stops_at_the_last_good_step(
    where: str, bad: float, inverse: Tensor, latents: Tensor, masks: Tensor
) -> None:
    class Breaks(Painter):
        def objective(self, z: Tensor, noise: Tensor, time: Tensor, encoded: Encoded, edit: Edit) -> tuple[Tensor, Tensor]:
            broken = self.calls == 4
            prediction, target = super().objective(z * bad if broken and where == "latents" else z, noise, time, encoded, edit)
            if broken and where == "prediction":
                prediction = torch.cat([prediction[:-1], prediction[-1:] * bad])
            if broken and where == "sum":
                # Its square is too large for float32, its gradient is not.
                prediction = prediction + bad
            if broken and where == "gradient":
                prediction.register_hook(lambda gradient: gradient * bad)
            return prediction, target

    settings = settings_of(lock=TRAINED)
    state, seen = initial_state(Breaks(), "teddy bear", settings), []
    with pytest.raises(PerfusionError, match="step 5: the loss is no longer a number") as caught:
        teach(Breaks(), state, latents, masks, inverse, settings, lambda each: seen.append(kept(each)))
    assert str(caught.value).isprintable()
    assert state.step == len(state.losses) == len(seen) == 4
    assert all(torch.equal(seen[-1][name], tensor) and tensor.isfinite().all() for name, tensor in state.tensors().items())
    assert not any(tensor.requires_grad for tensor in state.learned())
    # It can go on from there.
    assert same(teach(Painter(), state, latents, masks, inverse, settings), taught(inverse, latents, masks, settings))


def test_a_model_that_fails_leaves_no_gradients_asked_for(inverse: Tensor, latents: Tensor, masks: Tensor) -> None:
    class Fails(Painter):
        def objective(self, *_: object) -> tuple[Tensor, Tensor]:
            raise MemoryError

    state = initial_state(Fails(), "teddy", settings_of())
    before = kept(state)
    with pytest.raises(MemoryError):
        teach(Fails(), state, latents, masks, inverse, settings_of())
    assert not any(tensor.requires_grad for tensor in state.tensors().values())
    assert all(torch.equal(before[name], tensor) for name, tensor in state.tensors().items())


# ---- the random choices --------------------------------------------------------------------------------------------------


def choices(draw: BatchSample) -> dict[str, Tensor]:
    """What was chosen for each picture."""
    return {name: value for name, value in vars(draw).items() if name != "texts"}


def test_a_step_s_choices_come_from_seed_and_step_alone() -> None:
    settings, latents = settings_of(batch=16), torch.zeros(PICTURES, CHANNELS, SIZE, SIZE)
    one = BatchSample.of(settings, 7, latents)
    torch.manual_seed(9)
    BatchSample.of(settings, 8, latents)
    again = BatchSample.of(settings, 7, latents)
    assert all(torch.equal(value, choices(again)[name]) for name, value in choices(one).items())
    for other in (BatchSample.of(settings, 8, latents), BatchSample.of(replace(settings, seed=6), 7, latents)):
        assert not torch.equal(one.noise, other.noise) and not torch.equal(one.time, other.time)
    assert BatchSample.of(replace(settings, seed=2**63 - 1), 10**6, latents).noise.isfinite().all()
    noises = {float(BatchSample.of(replace(settings, seed=s), n, latents).noise[0, 0, 0, 0]) for s in range(20) for n in range(20)}
    assert len(noises) == 400
    other = BatchSample.of(replace(settings, small=0.7), 7, latents)
    assert other.small.any() and all(
        torch.equal(value, choices(other)[name]) for name, value in choices(one).items() if name != "small"
    )


def test_times_stay_below_1_where_float32_would_round_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *size, generator: torch.full(size, 1 - 2**-24))
    draw = BatchSample.of(settings_of(batch=8), 0, torch.zeros(PICTURES, CHANNELS, SIZE, SIZE))
    assert 0.99 < draw.time.max() < 1


@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_the_statistics_of_the_choices(batch: int) -> None:
    settings, latents = settings_of(batch=batch, flip=0.3, small=0.3), torch.zeros(PICTURES, CHANNELS, SIZE, SIZE)
    draws = [BatchSample.of(settings, step, latents) for step in range(400)]
    for draw in draws:
        # One time in each of B equal parts.
        assert ((draw.time * batch).floor() == torch.arange(batch)).all() and (draw.time < 1).all()
        assert len(set(draw.prompts.tolist())) <= 2
        assert draw.noise.shape == (batch, CHANNELS, SIZE, SIZE)
    drawn = {name: torch.cat([choices(draw)[name] for draw in draws]) for name in choices(draws[0])}
    count = 400 * batch
    # Five standard deviations of what they should be.
    for name in ("flipped", "small"):
        assert abs(float(drawn[name].float().mean()) - 0.3) < 5 * (0.21 / count) ** 0.5
    assert abs(float((drawn["flipped"] & drawn["small"]).float().mean()) - 0.09) < 5 * (0.09 * 0.91 / count) ** 0.5
    assert abs(float(drawn["time"].mean()) - 0.5) < 5 * (1 / 12 / count) ** 0.5
    assert abs(float((drawn["time"] * batch % 1).mean()) - 0.5) < 5 * (1 / 12 / count) ** 0.5
    assert abs(float(drawn["noise"].mean())) < 5 * (1 / drawn["noise"].numel()) ** 0.5
    assert abs(float(drawn["noise"].var()) - 1) < 5 * (2 / drawn["noise"].numel()) ** 0.5
    for which, kinds, picks in (("pictures", PICTURES, count), ("prompts", len(TEMPLATES), 400 * min(batch, 2))):
        shares = drawn[which].bincount(minlength=kinds) / count
        assert len(shares) == kinds
        assert (shares - 1 / kinds).abs().max() < 5 * (1 / kinds * (1 - 1 / kinds) / picks) ** 0.5


@pytest.mark.parametrize(("flip", "wanted"), [(0.0, False), (1.0, True)])
def test_flips_can_be_shut_off_and_forced(flip: float, wanted: bool) -> None:
    for step in range(50):
        assert (BatchSample.of(settings_of(flip=flip), step, torch.zeros(2, 1, 2, 2)).flipped == wanted).all()


def test_a_batch_encodes_each_template_once(inverse: Tensor, latents: Tensor, masks: Tensor) -> None:
    class Counts(Painter):
        seen: list[list[str]] = []  # noqa: RUF012

        def encode(self, templates: Sequence[str], word: Word) -> Encoded:
            self.seen.append(list(templates))
            return super().encode(templates, word)

    settings = settings_of(steps=6, micro=2)
    taught(inverse, latents, masks, settings, Counts())
    assert len(Counts.seen) == 7 and Counts.seen[0] == list(TEMPLATES)
    assert all(len(each) == len(set(each)) <= 2 for each in Counts.seen[1:])
    assert loop.TEMPLATES is TEMPLATES


def test_the_held_out_loss_is_the_same_whenever_it_is_asked_and_falls_as_it_learns(
    inverse: Tensor, latents: Tensor, masks: Tensor
) -> None:
    painter, settings = Painter(), Settings(steps=150, batch=3, micro=2, word_rate=1e-2, output_rate=1e-2)
    state = initial_state(painter, "bear", settings)

    def measured(micro: int = 2) -> float:
        return held_out_loss(painter, state, lesson_of(latents, masks, inverse), replace(settings, micro=micro))

    first = measured()
    assert measured() == first and measured(5) == pytest.approx(first, rel=1e-5)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    measured()
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())
    teach(painter, state, latents, masks, inverse, settings)
    assert measured() < 0.9 * first
    # Mirrored pictures take no part, and what lies outside of masks takes none either.
    changed = latents.clone()
    changed[:, 1] += 5
    last = measured()
    assert held_out_loss(painter, state, lesson_of(changed, masks, inverse), settings) == last
    changed[:, 0] += 5 * (masks[:, 0] == 0)
    assert held_out_loss(painter, state, lesson_of(changed, masks, inverse), settings) == pytest.approx(last, rel=1e-5)


def test_the_held_out_loss_has_every_picture(inverse: Tensor, latents: Tensor, masks: Tensor) -> None:
    painter, settings = Painter(), Settings(batch=3)
    state = initial_state(painter, "bear", settings)
    many = latents.repeat(7, 1, 1, 1, 1), masks.repeat(7, 1, 1, 1, 1)
    first = held_out_loss(painter, state, lesson_of(*many, inverse), settings)
    for i in range(len(many[0])):
        changed = many[0].clone()
        changed[i] += 1
        assert held_out_loss(painter, state, lesson_of(changed, many[1], inverse), settings) != first


CAPTIONED = ("a {} on a table", "one red {} here", "the {} at night")


def test_a_caption_comes_with_its_own_picture_as_often_as_is_asked() -> None:
    settings, latents = settings_of(batch=40), torch.zeros(PICTURES, CHANNELS, SIZE, SIZE)
    texts = (*TEMPLATES, *CAPTIONED)
    always, half, never = (BatchSample.of(settings, 3, latents, TEMPLATES, CAPTIONED, share) for share in (1.0, 0.5, 0.0))
    assert [texts[i] for i in always.prompts] == [CAPTIONED[i] for i in always.pictures]
    own = half.prompts >= len(TEMPLATES)
    assert 8 < own.sum() < 32 and (half.prompts[own] == len(TEMPLATES) + half.pictures[own]).all()
    plain = BatchSample.of(settings, 3, latents)
    assert torch.equal(half.prompts[~own], plain.prompts[~own]) and torch.equal(never.prompts, plain.prompts)
    for name in ("pictures", "flipped", "time", "noise", "small"):
        assert torch.equal(getattr(always, name), getattr(plain, name)), name


def test_what_a_caption_says_is_encoded_with_its_picture(inverse: Tensor, latents: Tensor, masks: Tensor) -> None:
    """By hand: as many trainings of one picture each, with a caption for the only template, have the same gradients."""
    settings, state = settings_of(batch=6, target_gradient=True, ema=1.0), initial_state(Painter(), "teddy bear", settings_of())
    draw = BatchSample.of(settings, 0, latents[:, 0], TEMPLATES, CAPTIONED)
    _, seen, loss = gradients(Painter(), state, draw, latents, masks, inverse, settings)
    used = sorted(set(draw.pictures.tolist()))
    encoded = Painter().encode([CAPTIONED[i] for i in used], state.word)
    assert torch.allclose(seen, encoded.at_word().mean(0), atol=1e-6)
    edit = edit_in_training(state, inverse, settings)
    total = 0.0
    for row, picture in enumerate(draw.pictures.tolist()):
        form = int(draw.forms()[row])
        prompt = encoded.of_prompts(torch.tensor([used.index(picture)]))
        given = latents[[picture], form], draw.noise[[row]], draw.time[[row]]
        error = masked_error(*Painter().objective(*given, prompt, edit), masks[[picture], form])
        total += error.item() / settings.batch
    assert loss == pytest.approx(total, rel=1e-5)


def test_a_training_without_captions_is_as_before_and_one_with_them_is_another(
    inverse: Tensor, latents: Tensor, masks: Tensor
) -> None:
    def learned(captions: tuple[str, ...], share: float) -> dict[str, Tensor]:
        lesson = Lesson((Bucket(latents, masks, captions),), inverse, captioned=share)
        settings, painter = settings_of(steps=4), Painter()
        state = initial_state(painter, "teddy bear", settings)
        list(train(painter, state, lesson, settings))
        return state.tensors()

    plain = learned((), 1.0)
    assert all(torch.equal(each, plain[name]) for name, each in learned(CAPTIONED, 0.0).items())
    assert any(not torch.equal(each, plain[name]) for name, each in learned(CAPTIONED, 1.0).items())


def test_pictures_of_several_sizes_take_turns_by_their_number(inverse: Tensor, latents: Tensor, masks: Tensor) -> None:
    wide, marks = latents[:1].repeat(1, 1, 1, 1, 2), masks[:1].repeat(1, 1, 1, 1, 2)
    buckets = Bucket(latents, masks), Bucket(wide, marks, ("a wide {}",))
    lesson = Lesson(buckets, inverse)

    def turns(seed: int) -> list[bool]:
        return [lesson.bucket_of(seed, step) is buckets[0] for step in range(400)]

    assert 250 < sum(turns(5)) < 350 and turns(5) == turns(5) != turns(6)
    settings, painter = settings_of(steps=12), Painter()
    state = initial_state(painter, "teddy bear", settings)
    before = held_out_loss(painter, state, lesson, settings)
    list(train(painter, state, lesson, settings))
    assert state.step == 12 and held_out_loss(painter, state, lesson, settings) < before
    parts = [held_out_loss(painter, state, Lesson((bucket,), inverse), settings) for bucket in buckets]
    share = PICTURES / (PICTURES + 1)
    assert held_out_loss(painter, state, lesson, settings) == pytest.approx(share * parts[0] + (1 - share) * parts[1])


def test_a_text_of_a_user_names_the_concept_once() -> None:
    given = ["a photo of <my-teddy> on a {table}", "{} at night", "(a <MY-TEDDY>:1.2) and <other>", "embedding:<my-teddy>"]
    made = as_templates(given, "<my-teddy>", "Caption")
    assert [each.format("it") for each in made] == ["a photo of it on a {table}", "it at night", "(a it:1.2) and <other>", "it"]
    for wrong in ("a photo on a table", "<my-teddy> and {}", "<my-teddy2>"):
        with pytest.raises(PerfusionError, match="Caption 2 of 2 should contain <my-teddy> exactly once"):
            as_templates(["a {}", wrong], "<my-teddy>", "Caption")
    with pytest.raises(PerfusionError, match="has 1001 characters"):
        as_templates(["{}" + "x" * 999], "<my-teddy>", "Template")
