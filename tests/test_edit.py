"""The edit's mathematics against perfusion-pytorch, a dense float64 reference, and finite differences."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from perfusion_pytorch.perfusion import Rank1EditModule, merge_rank1_edit_modules
from torch import Tensor, nn

from perfusion_core.covariance import probe
from perfusion_core.gated_edit import (
    APPROXIMATE,
    EXACT,
    GATE_CUTOFF,
    MODES,
    OVERLAP_SHRINKAGE,
    OWN_LEAD,
    OWN_SIMILARITY,
    PAPER,
    STATIC,
    Coefficients,
    Edit,
    gate,
    removal,
    similarity,
)

torch.set_num_threads(1)  # with tensors this small, threads only wait for each other

B, N, D, M = 3, 7, 24, 16
LAYER = "block.attn2"
AGREE = 1e-5
ALWAYS_OPEN, NEVER_OPEN = -100.0, 100.0
CONCEPTS = ("target_inputs", "superclass", "values", "keys")


@dataclass(frozen=True)
class World:
    """A metric, J concepts and one layer, made in float32 and held in float64: what rounds afterwards is the code alone."""

    inverse: Tensor
    target_inputs: Tensor
    superclass: Tensor
    values: Tensor
    keys: Tensor
    to_k: Tensor
    to_v: Tensor
    encoding: Tensor

    @classmethod
    def of(cls, count: int, seed: int = 0, alike: float = 0.5, width: int = D) -> "World":
        """`count` concepts whose target inputs share a part; the encodings' tokens hold concepts to all degrees."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).double()

        spread = torch.linalg.qr(normal(width, width)).Q * torch.linspace(0.4, 2.5, width, dtype=torch.float64)
        seen = normal(40 * width, width) @ spread.T
        inverse = torch.linalg.inv(seen.T @ seen / len(seen))
        inverse = (inverse + inverse.T) / 2
        inputs = (normal(count, width) + alike * normal(1, width)) @ spread.T
        share = torch.rand(B, N, count, generator=generator).double() * 1.3
        share[:, 0] = 0
        share[:, 1:3] = share[:, 1:3].round()
        encoding = share @ inputs + 0.7 * normal(B, N, width) @ spread.T
        made = (
            inputs,
            inputs + 0.5 * normal(count, width),
            normal(count, M),
            normal(count, M),
            normal(M, width),
            normal(M, width),
            encoding,
        )
        return cls(inverse, *(tensor.float().double() for tensor in made))

    @property
    def count(self) -> int:
        return len(self.target_inputs)

    def probes(self) -> Tensor:
        """C⁻¹ i* / ‖i*‖² in float64."""
        measured = self.target_inputs @ self.inverse
        return measured / (measured * self.target_inputs).sum(-1, keepdim=True)

    def edit(self, mode: str, dtype: torch.dtype = torch.float32, bias: float | Tensor = 0.6, **changed: object) -> Edit:
        """The concepts' edit."""
        given = bias if isinstance(bias, Tensor) else torch.full((self.count,), bias)
        probes = self.probes().to(dtype)
        if dtype == torch.float32:
            probes = torch.stack([probe(self.inverse, each) for each in self.target_inputs])
        made = Edit(
            mode=mode,
            target_inputs=self.target_inputs.to(dtype),
            probes=probes,
            superclass_encodings=self.superclass.to(dtype),
            bias=given.to(dtype),
            temperature=torch.full((self.count,), 0.15, dtype=dtype),
            strength=torch.ones(self.count, dtype=dtype),
            values={LAYER: self.values.to(dtype)},
        )
        return replace(made, **changed)

    def sims(self) -> Tensor:
        """sim_j(e) in float64, [B, N, J]."""
        return self.encoding @ self.probes().T

    def gates(self, bias: float = 0.6) -> Tensor:
        """σ((sim - β) / τ) in float64, [B, N, J]."""
        return 1 / (1 + torch.exp(-(self.sims() - bias) / 0.15))


def rows(linear: Tensor):
    """The host's Linear, in the weights' dtype."""
    return lambda vectors: vectors.to(linear.dtype) @ linear.T


def edited(world: World, edit: Edit, which: str, named: Tensor | None = None) -> Tensor:
    """h in float32: the plain projection and the edit's correction."""
    weight = (world.to_k if which == "k" else world.to_v).float()
    encoding = world.encoding.float()
    by = edit.coefficients(encoding, named)
    correction = edit.key_correction if which == "k" else edit.value_correction
    return encoding @ weight.T + correction(LAYER, by, rows(weight))


def error(got: Tensor, wanted: Tensor) -> float:
    """The largest relative error of a token."""
    assert got.shape == wanted.shape
    return float(((got.double() - wanted).norm(dim=-1) / wanted.norm(dim=-1)).max())


def complement(world: World, encoding: Tensor, concepts: list[int]) -> Tensor:
    """e - Σ_k ⟨u_k, e⟩ u_k for a C⁻¹-orthonormal basis u of the concepts' i*: Cholesky of C⁻¹, QR, and back (appendix B)."""
    if not concepts:
        return encoding
    lower = torch.linalg.cholesky(world.inverse)
    flat = torch.linalg.qr(lower.T @ world.target_inputs[concepts].T).Q
    basis = torch.linalg.solve_triangular(lower.T, flat, upper=True)
    assert torch.allclose(basis.T @ world.inverse @ basis, torch.eye(len(concepts), dtype=torch.float64), atol=1e-12)
    return encoding - encoding @ world.inverse @ basis @ basis.T


# ---- perfusion-pytorch ---------------------------------------------------------------------------------------------------


def peer(world: World, j: int, which: str, bias: float = 0.6) -> Rank1EditModule:
    """Concept j of perfusion-pytorch; its buffers are set as its training would have set them."""
    linear = nn.Linear(D, M, bias=False)
    linear.weight.data.copy_(world.to_k if which == "k" else world.to_v)
    covariance = torch.linalg.inv(world.inverse)
    module = Rank1EditModule(
        linear,
        C=covariance.float(),
        text_seq_len=N,
        is_key_proj=which == "k",
        eval_beta=bias,
        eval_temperature=0.15,
    )
    module.C_inv.copy_(world.inverse)
    module.ema_concept_text_encs.copy_(world.target_inputs[j : j + 1])
    outputs = world.values[j] if which == "v" else world.to_k @ world.superclass[j]
    module.concept_outputs.data.copy_(outputs[None])
    module.initted.fill_(True)
    return module.eval()


@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_one_concept_is_the_formula_of_perfusion_pytorch(which: str, seed: int) -> None:
    world = World.of(1, seed)
    wanted = peer(world, 0, which)(world.encoding.float())
    for mode in (PAPER, APPROXIMATE):
        assert error(edited(world, world.edit(mode), which), wanted.double()) <= AGREE
    plain = world.encoding.float() @ (world.to_k if which == "k" else world.to_v).float().T
    assert error(plain, wanted.double()) > 0.1


@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize("count", [2, 3])
@torch.no_grad()
def test_approximate_mode_is_the_several_concept_form_of_perfusion_pytorch(which: str, count: int) -> None:
    world = World.of(count)
    merged = merge_rank1_edit_modules(*(peer(world, j, which) for j in range(count))).eval()
    wanted = merged(world.encoding.float(), concept_id=tuple(range(count))).double()
    assert error(edited(world, world.edit(APPROXIMATE), which), wanted) <= AGREE
    assert error(edited(world, world.edit(PAPER), which), wanted) > 0.01


# ---- the dense reference -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_paper_mode_is_the_projection_on_the_complement_of_the_span(seed: int, count: int, alike: float) -> None:
    world = World.of(count, seed, alike)
    rest = complement(world, world.encoding, list(range(count)))
    wanted = rest @ world.to_v.T + world.gates() @ world.values
    assert error(edited(world, world.edit(PAPER), "v"), wanted) <= AGREE
    wanted = rest @ world.to_k.T + world.gates() @ world.superclass @ world.to_k.T
    assert error(edited(world, world.edit(PAPER), "k"), wanted) <= AGREE


def test_paper_mode_leaves_no_component_along_any_target_input() -> None:
    world = World.of(3)
    by = world.edit(PAPER).coefficients(world.encoding.float())
    rest = world.encoding - by.remove.double() @ world.target_inputs
    assert (rest @ world.probes().T).abs().max() < 1e-5
    assert (world.sims().abs().amax((0, 1)) > 0.5).all()


def test_similarity_of_a_target_input_is_one_and_the_gate_is_half_at_the_bias() -> None:
    world = World.of(3)
    edit = world.edit(PAPER)
    torch.testing.assert_close(edit.overlap.diagonal(), torch.ones(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(edit.overlap.double(), world.probes() @ world.target_inputs.T, rtol=0, atol=1e-6)
    sims = similarity(world.target_inputs.float(), edit.probes)
    torch.testing.assert_close(sims.diagonal(), torch.ones(3), rtol=0, atol=1e-6)
    assert gate(torch.tensor([0.6]), torch.tensor([0.6]), torch.tensor([0.15])) == 0.5
    torch.testing.assert_close(edit.gates(world.encoding.float()).double(), world.gates(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("times", [2, 3, 8])
def test_concepts_that_coincide_take_their_share_once(times: int) -> None:
    one = World.of(1)
    twice = replace(
        one,
        target_inputs=one.target_inputs.repeat(times, 1),
        superclass=one.superclass.repeat(times, 1),
        values=one.values.repeat(times, 1),
    )
    wanted = complement(one, one.encoding, [0]) @ one.to_v.T + times * one.gates() @ one.values
    assert error(edited(twice, twice.edit(PAPER), "v"), wanted) <= AGREE
    wanted = complement(one, one.encoding, [0]) @ one.to_v.T + times * one.values
    assert error(edited(twice, twice.edit(EXACT, bias=ALWAYS_OPEN), "v"), wanted) <= AGREE


# ---- exact mode ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize("count", [1, 3])
def test_closed_gates_leave_the_layer_untouched_to_the_last_bit(count: int, which: str) -> None:
    world = World.of(count)
    plain = world.encoding.float() @ (world.to_k if which == "k" else world.to_v).float().T
    edit = world.edit(EXACT, bias=NEVER_OPEN)
    assert torch.equal(edited(world, edit, which), plain)
    assert not edit.coefficients(world.encoding.float()).any()
    assert not torch.equal(edited(world, world.edit(PAPER, bias=NEVER_OPEN), which), plain)


def test_gates_under_the_threshold_are_exactly_zero_and_others_are_kept() -> None:
    world = World.of(1)
    sims = torch.linspace(-1, 1.2, B * N, dtype=torch.float64).reshape(B, N, 1)
    encoding = (sims * world.target_inputs).float()
    by = world.edit(EXACT).coefficients(encoding)
    opened = torch.sigmoid((sims - 0.6) / 0.15)
    shut = opened < GATE_CUTOFF
    assert 3 < shut.sum() < B * N - 3
    assert (by.add[shut] == 0).all() and (by.remove[shut] == 0).all()
    torch.testing.assert_close(by.add[~shut].double(), opened[~shut], rtol=1e-5, atol=0)
    torch.testing.assert_close(by.remove[~shut].double(), (opened * sims)[~shut], rtol=1e-5, atol=0)


@pytest.mark.parametrize("which", ["k", "v"])
def test_exact_mode_blends_the_layer_with_the_formula_by_the_gate(which: str) -> None:
    world = World.of(1)
    weight = world.to_k if which == "k" else world.to_v
    output = world.values if which == "v" else world.superclass @ world.to_k.T
    for bias in (0.6, 0.2, ALWAYS_OPEN):
        opened = world.gates(bias)
        opened = torch.where(opened >= GATE_CUTOFF, opened, 0)
        wanted = world.encoding @ weight.T + opened * (output - world.sims() * (world.target_inputs @ weight.T))
        assert error(edited(world, world.edit(EXACT, bias=bias), which), wanted) <= AGREE
    at_one = complement(world, world.encoding, [0]) @ weight.T + output
    assert error(edited(world, world.edit(EXACT, bias=ALWAYS_OPEN), which), at_one) <= AGREE


def test_exact_mode_projects_out_the_open_concepts_alone() -> None:
    world = World.of(3, alike=1.0)
    opened = torch.rand(B, N, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    assert {int(row.sum()) for row in opened.reshape(-1, 3)} == {0, 1, 2, 3}
    got = edited(world, world.edit(EXACT, bias=ALWAYS_OPEN), "v", named=opened.float())
    for b in range(B):
        for n in range(N):
            concepts = opened[b, n].nonzero().flatten().tolist()
            rest = complement(world, world.encoding[b, n], concepts)
            wanted = world.to_v @ rest + world.values[concepts].sum(0)
            assert error(got[b, n], wanted) <= AGREE


def test_exact_mode_projects_out_the_open_concepts_when_gates_decide() -> None:
    world = World.of(3, alike=1.0)
    edit = world.edit(EXACT, temperature=torch.full((3,), 1e-4))
    opened = world.sims() > 0.6
    assert (world.sims() - 0.6).abs().min() > 3e-3
    assert opened.any() and not opened.all()
    got = edited(world, edit, "v")
    for b in range(B):
        for n in range(N):
            concepts = opened[b, n].nonzero().flatten().tolist()
            wanted = world.to_v @ complement(world, world.encoding[b, n], concepts) + world.values[concepts].sum(0)
            assert error(got[b, n], wanted) <= AGREE


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.5])
def test_a_crowd_of_concepts_is_exact(alike: float) -> None:
    """32 concepts at once, in float64 all the way: to rounding, the formula with what keeps concepts apart; which is itself near
    to the formula without.
    """
    crowd = 32
    world = World.of(crowd, alike=alike, width=96)
    gram = world.target_inputs @ world.inverse @ world.target_inputs.T
    gram = gram - OVERLAP_SHRINKAGE * (gram - gram.diag().diag())

    def apart(encoding: Tensor, concepts: list[int]) -> Tensor:
        inputs = world.target_inputs[concepts]
        shares = torch.linalg.solve(gram[concepts][:, concepts], inputs @ world.inverse @ encoding)
        return encoding - shares @ inputs

    named = torch.rand(B, N, crowd, generator=torch.Generator().manual_seed(3)) < 0.5
    for mode, bias in ((PAPER, 0.6), (EXACT, ALWAYS_OPEN)):
        edit = world.edit(mode, torch.float64, bias=torch.full((crowd,), bias, dtype=torch.float64))
        by = edit.coefficients(world.encoding, named.double())
        got = world.encoding @ world.to_v.T + edit.value_correction(LAYER, by, rows(world.to_v))
        for b, n in itertools.product(range(B), range(N)):
            token = world.encoding[b, n]
            concepts = named[b, n].nonzero().flatten().tolist() if mode == EXACT else list(range(crowd))
            added = world.values[concepts].sum(0) if mode == EXACT else world.gates()[b, n] @ world.values
            assert error(got[b, n], world.to_v @ apart(token, concepts) + added) <= 1e-11
            assert error(got[b, n], world.to_v @ complement(world, token, concepts) + added) <= 100 * OVERLAP_SHRINKAGE


def test_exact_mode_at_open_gates_is_paper_mode() -> None:
    world = World.of(3)
    for which in "kv":
        exact = edited(world, world.edit(EXACT, bias=ALWAYS_OPEN), which)
        assert error(exact, edited(world, world.edit(PAPER, bias=ALWAYS_OPEN), which).double()) <= AGREE


@pytest.mark.parametrize("count", [1, 3])
def test_tokens_that_no_trigger_reached_have_exactly_zero_coefficients(count: int) -> None:
    world = World.of(count)
    named = (torch.rand(B, N, count, generator=torch.Generator().manual_seed(2)) < 0.5).float()
    edit = world.edit(EXACT, bias=0.1)
    by, free = (edit.coefficients(world.encoding.float(), given) for given in (named, None))
    assert (by.add[named == 0] == 0).all() and (by.remove[named == 0] == 0).all()
    assert (free.add[named == 0] > 0).any()
    assert torch.equal(by.add[named > 0], free.add[named > 0])
    # Any weight above 0 names a token: prompts that are averaged keep their concepts.
    assert torch.equal(edit.coefficients(world.encoding.float(), named * 0.01).remove, by.remove)


@pytest.mark.parametrize("which", ["k", "v"])
def test_an_unnamed_prompt_is_untouched_beside_a_named_one(which: str) -> None:
    world = World.of(2)
    named = torch.ones(B, N, 2)
    named[1] = 0
    edit = world.edit(EXACT, bias=0.1)
    plain = world.encoding.float() @ (world.to_k if which == "k" else world.to_v).float().T
    got = edited(world, edit, which, named)
    assert torch.equal(got[1], plain[1])
    assert not torch.equal(got[0], plain[0]) and not torch.equal(got[2], plain[2])
    together = edit.coefficients(world.encoding.float(), named)
    for b in range(B):
        alone = edit.coefficients(world.encoding[b : b + 1].float(), named[b : b + 1])
        torch.testing.assert_close(alone.remove[0], together.remove[b], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(alone.add[0], together.add[b], rtol=1e-5, atol=1e-6)


# ---- static mode ---------------------------------------------------------------------------------------------------------


def share(bias: Tensor | float, strength: Tensor | float = 1.0) -> Tensor:
    """s_j g*_j in float64: the strength times σ((1 - β) / τ), with the τ of `World.edit`."""
    return torch.as_tensor(strength).double() / (1 + torch.exp((torch.as_tensor(bias).double() - 1) / 0.15))


def least_change(world: World, moves: Tensor) -> Tensor:
    """The ΔW of least tr(ΔW C ΔWᵀ) with ΔW i*_j = moves_j, dense in float64: least squares where C is whitened away."""
    lower = torch.linalg.cholesky(torch.linalg.inv(world.inverse))
    white = torch.linalg.solve_triangular(lower, world.target_inputs.T, upper=False)
    whitened = torch.linalg.lstsq(white.T, moves, driver="gelsd").solution.T
    return torch.linalg.solve_triangular(lower, whitened, upper=False, left=False)


@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize("seed", range(3))
def test_static_mode_of_one_concept_is_the_weight_edit_of_rome(which: str, seed: int) -> None:
    world = World.of(1, seed)
    weight = world.to_k if which == "k" else world.to_v
    (output,) = world.values if which == "v" else world.superclass @ world.to_k.T
    (target,) = world.target_inputs
    measured = world.inverse @ target
    for bias, strength in ((0.6, 1.0), (0.9, 0.3), (1.4, 1.0)):
        update = torch.outer(output - weight @ target, measured) / (target @ measured)
        wanted = world.encoding @ (weight + share(bias, strength) * update).T
        edit = world.edit(STATIC, bias=bias, strength=torch.tensor([strength]))
        assert error(edited(world, edit, which), wanted) <= AGREE


@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize("alike", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("count", [2, 4])
def test_static_mode_is_the_least_change_of_weights_that_moves_each_target_input_by_its_share(
    count: int, alike: float, which: str
) -> None:
    world = World.of(count, alike=alike)
    bias, strength = torch.linspace(0.3, 1.1, count), torch.linspace(1.0, 0.4, count)
    weight = world.to_k if which == "k" else world.to_v
    outputs = world.values if which == "v" else world.superclass @ world.to_k.T
    moves = share(bias, strength)[:, None] * (outputs - world.target_inputs @ weight.T)
    edit = world.edit(STATIC, bias=bias, strength=strength)
    assert error(edited(world, edit, which), world.encoding @ (weight + least_change(world, moves)).T) <= AGREE
    at_targets = replace(world, encoding=world.target_inputs[None])
    assert error(edited(at_targets, edit, which)[0], world.target_inputs @ weight.T + moves) <= AGREE


@pytest.mark.parametrize("times", [2, 3, 8])
@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-3])
def test_static_concepts_that_coincide_share_what_they_ask_for(times: int, apart: float) -> None:
    one, noise = World.of(1), torch.randn(times, D, generator=torch.Generator().manual_seed(5)).double()
    inputs = (one.target_inputs * (1 + apart * noise)).float().double()
    values = torch.randn(times, M, generator=torch.Generator().manual_seed(6)).double()
    many = replace(one, target_inputs=inputs, superclass=one.superclass.repeat(times, 1), values=values)
    mean = replace(one, values=values.mean(0, keepdim=True))
    wanted = edited(mean, mean.edit(STATIC), "v").double()
    assert error(edited(many, many.edit(STATIC), "v"), wanted) <= AGREE + 5 * apart


def test_static_mode_asks_neither_the_gate_nor_the_trigger_word() -> None:
    world = World.of(2)
    edit = world.edit(STATIC)
    by = edit.coefficients(world.encoding.float())
    assert torch.equal(edit.coefficients(world.encoding.float(), torch.zeros(B, N, 2)).add, by.add)
    twice = edit.coefficients(2 * world.encoding.float())
    torch.testing.assert_close(twice.add, 2 * by.add)
    assert torch.equal(by.add, by.remove)


# ---- strength, order, locks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [1, 3])
def test_strength_is_the_share_of_the_edit(mode: str, count: int) -> None:
    world = World.of(count)
    plain = world.encoding.float() @ world.to_v.float().T
    whole = edited(world, world.edit(mode), "v") - plain
    nothing = world.edit(mode, strength=torch.zeros(count))
    assert torch.equal(edited(world, nothing, "v"), plain) and torch.equal(
        edited(world, nothing, "k"), world.encoding.float() @ world.to_k.float().T
    )
    assert not nothing.coefficients(world.encoding.float()).any()
    ones = edited(world, world.edit(mode, strength=torch.ones(count)), "v") - plain
    assert torch.equal(ones, whole) and whole.abs().max() > 0.1
    if count == 1:
        half = edited(world, world.edit(mode, strength=torch.full((1,), 0.25)), "v") - plain
        torch.testing.assert_close(half, 0.25 * whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_concept_of_strength_zero_is_as_if_it_were_not_there(mode: str) -> None:
    world = World.of(3, alike=1.0)
    with_it = edited(world, world.edit(mode, strength=torch.tensor([1.0, 0.0, 1.0])), "v")
    kept = [0, 2]
    without = replace(
        world,
        target_inputs=world.target_inputs[kept],
        superclass=world.superclass[kept],
        values=world.values[kept],
    )
    assert error(with_it, edited(without, without.edit(mode), "v").double()) <= AGREE


@pytest.mark.parametrize("mode", MODES)
def test_the_order_of_concepts_does_not_matter(mode: str) -> None:
    world = World.of(4, alike=1.0)
    order = [2, 0, 3, 1]
    strength, bias = torch.tensor([1.0, 0.5, 0.8, 1.0]), torch.tensor([0.6, 0.3, 0.5, 0.7])
    turned = replace(
        world,
        target_inputs=world.target_inputs[order],
        superclass=world.superclass[order],
        values=world.values[order],
    )
    one, other = world.edit(mode, bias=bias, strength=strength), turned.edit(mode, bias=bias[order], strength=strength[order])
    by, by_turned = one.coefficients(world.encoding.float()), other.coefficients(world.encoding.float())
    scale = by.remove.abs().max()
    torch.testing.assert_close(by_turned.remove / scale, by.remove[..., order] / scale, rtol=0, atol=1e-6)
    torch.testing.assert_close(by_turned.add, by.add[..., order], rtol=0, atol=1e-6)
    for which in "kv":
        assert error(edited(turned, other, which), edited(world, one, which).double()) <= 1e-6


def test_each_concept_has_its_own_bias_and_temperature() -> None:
    world = World.of(3)
    bias, temperature = torch.tensor([0.2, 0.5, 0.8]), torch.tensor([0.05, 0.15, 0.4])
    by = world.edit(PAPER, bias=bias, temperature=temperature).coefficients(world.encoding.float())
    wanted = torch.sigmoid((world.sims() - bias.double()) / temperature.double())
    torch.testing.assert_close(by.add.double(), wanted, rtol=1e-4, atol=1e-6)


def test_locked_keys_are_a_change_of_the_input() -> None:
    world = World.of(1)
    gates = world.gates()
    changed = world.encoding - world.sims() * world.target_inputs + gates * world.superclass
    assert error(edited(world, world.edit(PAPER), "k"), changed @ world.to_k.T) <= AGREE


def test_trained_keys_are_read_for_trained_concepts_alone() -> None:
    world = World.of(2)
    keys = world.keys.float().clone()
    keys[0] = 1e6
    edit = world.edit(PAPER, keys={LAYER: keys}, keys_trained={LAYER: torch.tensor([False, True])})
    outputs = torch.stack([world.to_k @ world.superclass[0], world.keys[1]])
    wanted = complement(world, world.encoding, [0, 1]) @ world.to_k.T + world.gates() @ outputs
    assert error(edited(world, edit, "k"), wanted) <= AGREE
    # Values know nothing of keys.
    assert torch.equal(edited(world, edit, "v"), edited(world, world.edit(PAPER), "v"))


@pytest.mark.parametrize("mode", [PAPER, EXACT, APPROXIMATE])
def test_keys_at_the_word_are_edited_where_the_encoding_is_like_the_concept_alone(mode: str) -> None:
    world = World.of(2)
    everywhere = world.edit(mode, keys={LAYER: world.keys.float()}, keys_trained={LAYER: torch.tensor([True, True])})
    at_word = replace(everywhere, keys_at_word=torch.tensor([False, True]))
    own = world.sims()[..., 1] >= OWN_SIMILARITY
    assert own.any() and not own.all()
    one, other = (edited(world, edit, "k") for edit in (everywhere, at_word))
    torch.testing.assert_close(other[own], one[own])
    # Elsewhere the keys are those of the first concept's edit alone.
    first = World(world.inverse, *(getattr(world, name)[:1] for name in CONCEPTS), world.to_k, world.to_v, world.encoding)
    alone = first.edit(mode, keys={LAYER: first.keys.float()}, keys_trained={LAYER: torch.tensor([True])})
    torch.testing.assert_close(other[~own], edited(first, alone, "k")[~own], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(other[~own], one[~own], rtol=1e-2)
    assert torch.equal(edited(world, at_word, "v"), edited(world, everywhere, "v"))


def test_trained_keys_can_be_locked_to_a_degree() -> None:
    world = World.of(2)
    trained, locked = (
        world.edit(PAPER, keys={LAYER: world.keys.float()}, keys_trained={LAYER: torch.tensor([each, True])})
        for each in (True, False)
    )
    as_learned, first_locked = (edited(world, edit, "k") for edit in (trained, locked))
    for share in (0.0, 0.3, 1.0):
        got = edited(world, replace(trained, key_lock=torch.tensor([share, 0.0])), "k")
        torch.testing.assert_close(got, as_learned + share * (first_locked - as_learned), rtol=1e-4, atol=1e-4)
    # Keys that were not trained are locked whatever is said.
    assert torch.equal(edited(world, replace(locked, key_lock=torch.tensor([0.3, 0.0])), "k"), first_locked)


def test_without_gates_keys_at_the_word_are_edited_like_others() -> None:
    world = World.of(1)
    edit = world.edit(STATIC, keys={LAYER: world.keys.float()}, keys_trained={LAYER: torch.tensor([True])})
    assert torch.equal(edited(world, replace(edit, keys_at_word=torch.tensor([True])), "k"), edited(world, edit, "k"))


def test_trained_keys_are_not_rounded_to_the_hosts_precision() -> None:
    world = World.of(1)
    edit = world.edit(PAPER, keys={LAYER: world.keys.float()}, keys_trained={LAYER: torch.tensor([True])})
    by = Coefficients(remove=torch.zeros(1, 1, 1), add=torch.ones(1, 1, 1))
    got = edit.key_correction(LAYER, by, rows(world.to_k.half()))
    assert torch.equal(got.flatten(), world.keys.float().flatten())


# ---- precision -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [1, 3])
def test_half_precision_encodings_are_measured_in_float32_under_autocast_too(half: torch.dtype, mode: str, count: int) -> None:
    world = World.of(count)
    edit, encoding = world.edit(mode), world.encoding.to(half)
    wanted, sims, gates = edit.coefficients(encoding.float()), similarity(encoding.float(), edit.probes), None
    gates = gate(sims, edit.bias, edit.temperature)
    weight = world.to_v.float()
    correction = edit.value_correction(LAYER, wanted, rows(weight))
    with torch.autocast("cpu", dtype=half):
        assert (encoding @ edit.probes.T).dtype == half
        assert torch.equal(similarity(encoding, edit.probes), sims) and sims.dtype == torch.float32
        assert torch.equal(edit.gates(encoding), gates) and gates.dtype == torch.float32
        for given in (encoding, encoding.float()):
            by = edit.coefficients(given)
            assert by.remove.dtype == by.add.dtype == torch.float32
            assert torch.equal(by.remove, wanted.remove) and torch.equal(by.add, wanted.add)
        projected = (edit.target_inputs @ weight.T).float()
        got = edit.value_correction(LAYER, wanted, lambda _: projected)
    assert got.dtype == torch.float32
    exact = wanted.add.double() @ world.values - wanted.remove.double() @ projected.double()
    assert ((got.double() - exact).norm() / exact.norm()) <= AGREE
    assert correction.dtype == torch.float32


def test_to_moves_every_tensor_and_nothing_else() -> None:
    world = World.of(2)
    trained = torch.tensor([True, False])
    edit = world.edit(EXACT, keys={LAYER: world.keys.float()}, keys_trained={LAYER: trained}, keys_at_word=trained)
    edit = replace(edit, key_lock=torch.tensor([0.5, 0.0]))
    moved = edit.to("meta")
    assert moved.mode == EXACT
    for name, value in vars(moved).items():
        for tensor in value.values() if isinstance(value, Mapping) else [value]:
            assert isinstance(tensor, str) or tensor.device.type == "meta", name


# ---- gradients -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [1, 3])
def test_gradients_agree_with_finite_differences(mode: str, count: int) -> None:
    world = World.of(count, seed=3)
    encoding = world.encoding[:1, :4].clone()
    edit = world.edit(mode, torch.float64, keys={LAYER: world.keys})
    even, warm = torch.arange(count) % 2 == 0, torch.full((count,), 0.3, dtype=torch.float64)
    edit = replace(edit, keys_trained={LAYER: even}, keys_at_word=even, temperature=warm, key_lock=0.3 * even)
    assert (similarity(encoding, edit.probes) - OWN_SIMILARITY).abs().min() > 1e-4
    gates = edit.gates(encoding)
    assert (gates - GATE_CUTOFF).abs().min() > 1e-4
    named = torch.ones(1, 4, count)
    named[:, 0] = 0

    def outputs(e: Tensor, values: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        changed = replace(edit, values={LAYER: values}, keys={LAYER: keys})
        by = changed.coefficients(e, named)
        k = changed.key_correction(LAYER, by, rows(world.to_k))
        v = changed.value_correction(LAYER, by, rows(world.to_v))
        assert k.dtype == v.dtype == torch.float64
        return e @ world.to_k.T + k, e @ world.to_v.T + v

    inputs = [tensor.clone().requires_grad_() for tensor in (encoding, world.values, world.keys)]
    assert torch.autograd.gradcheck(outputs, inputs, eps=1e-6, atol=1e-7, rtol=1e-5)


def test_gradients_of_removal_agree_with_finite_differences_at_weights_of_zero_and_one_too() -> None:
    world = World.of(3, alike=1.0)
    overlap = world.probes() @ world.target_inputs.T
    sim = world.sims()[:1, :4].clone().requires_grad_()
    weight = torch.tensor([[0, 0, 0], [0, 0.5, 0], [0, 1, 1], [0.3, 0.6, 0.9]], dtype=torch.float64)[None].requires_grad_()
    assert torch.autograd.gradcheck(lambda s, w: removal(s, w, overlap), (sim, weight), eps=1e-6, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_gradients_are_finite_where_gates_are_exactly_zero(strength: float) -> None:
    world = World.of(2)
    named = torch.zeros(B, N, 2)
    named[0, 1:] = 1
    named[1, :, 0] = 1
    edit = world.edit(EXACT, bias=0.1, strength=torch.full((2,), strength), superclass_encodings=world.superclass.float())
    encoding, values = world.encoding.float().requires_grad_(), world.values.float().requires_grad_()
    by = edit.coefficients(encoding, named)
    assert (by.add == 0).any()
    edit = replace(edit, values={LAYER: values})
    parts = [
        edit.value_correction(LAYER, by, rows(world.to_v.float())),
        edit.key_correction(LAYER, by, rows(world.to_k.float())),
    ]
    found = torch.autograd.grad(sum(part.square().sum() + part.sum() for part in parts), [encoding, values])
    assert all(gradient.isfinite().all() for gradient in found)
    assert (found[0][2] == 0).all()
    assert bool((found[0][0, 1:] != 0).any()) == (strength > 0)


# ---- a concept's own word, told by the numbers alone


@pytest.mark.parametrize("weight", [0.6, 1.0, 1.5])
def test_a_concepts_own_word_is_told_from_its_superclass_whatever_they_weigh(weight: float) -> None:
    world = World.of(2, alike=0.0)
    edit = world.edit(EXACT)
    own, supers = world.target_inputs, world.superclass
    encoding = weight * torch.stack([own[0], supers[0], own[1], supers[1], torch.zeros_like(own[0])])[None].float()
    assert edit.own_tokens(encoding)[0].tolist() == [[True, False], [False, False], [False, True], [False, False], [False, False]]


def test_own_words_follow_the_definition_in_float64() -> None:
    world = World.of(3)
    edit, unit = world.edit(EXACT), nn.functional.normalize
    inputs, supers = unit(world.target_inputs, dim=1), unit(world.superclass, dim=1)
    lead = unit(world.encoding, dim=2) @ (inputs - supers).T
    wanted = (world.sims() >= OWN_SIMILARITY) & (lead > OWN_LEAD * (1 - (inputs * supers).sum(1)))
    assert torch.equal(edit.own_tokens(world.encoding.float()), wanted)
    assert 0 < wanted.sum() < wanted.numel()


@pytest.mark.parametrize(("section", "wanted"), [(3, [0, 1, 1, 0, 0, 1]), (6, [0, 1, 1, 1, 1, 1]), (4, [0, 1, 1, 1, 1, 1])])
def test_a_word_reaches_the_tokens_behind_it_in_its_section(section: int, wanted: list[int]) -> None:
    world = World.of(1)
    encoding = torch.zeros(1, 6, D)
    encoding[0, 1] = encoding[0, 5] = world.target_inputs[0].float()
    assert world.edit(EXACT).influenced(encoding, section)[0, :, 0].tolist() == wanted


@pytest.mark.parametrize(
    ("padded", "wanted"), [(2, [1, 1, 1, 1, 0, 0]), (3, [1, 1, 1, 0, 0, 0]), (1, [1, 1, 1, 1, 1, 1]), (0, [1, 1, 1, 1, 1, 1])]
)
def test_encoders_that_look_both_ways_carry_a_word_to_its_whole_prompt_but_for_padding(padded: int, wanted: list[int]) -> None:
    """A single token is never known for padding."""
    world = World.of(1)
    encoding = torch.randn(2, 6, D, generator=torch.Generator().manual_seed(0)) / 100
    encoding[:, 6 - padded :] = 0.01
    encoding[0, 2] = world.target_inputs[0].float()
    reached = world.edit(EXACT).influenced_both_ways(encoding)[..., 0]
    assert reached[0].tolist() == wanted and not reached[1].any()
