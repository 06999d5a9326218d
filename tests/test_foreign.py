"""Concepts of other implementations: what is imported does what it did there, and hostile files are refused in one sentence."""

import io
import os
import pickle
import random
import subprocess
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from perfusion_pytorch import EmbeddingWrapper, Rank1EditModule, merge_embedding_wrappers, merge_rank1_edit_modules, save
from torch import Tensor, nn

from perfusion_core import PerfusionError
from perfusion_core.concept import Concept
from perfusion_core.concept_file import POSITIONS
from perfusion_core.foreign_formats import BIAS, CHENDARYEN, MAX_BYTES, PERFUSION_PYTORCH, TEMPERATURE, load, read
from perfusion_core.gated_edit import APPROXIMATE, EXACT, GATE_CUTOFF, PAPER, Edit
from perfusion_core.stack import edit_of

torch.set_num_threads(1)  # with tensors this small, threads only wait for each other

B, D, WORD = 2, 24, 12
AGREE = 1e-5
LAYERS = {
    f"{block}.transformer_blocks.0.attn2": width
    for block, width in {
        "input_blocks.1.1": 16,
        "input_blocks.4.1": 32,
        "middle_block.1": 40,
        "output_blocks.3.1": 32,
        "output_blocks.9.1": 16,
    }.items()
}
MIDDLE_LAST = [name for name in LAYERS if "middle" not in name] + [name for name in LAYERS if "middle" in name]
REAL = Path(__file__).parent / "data" / "chendaryen.ckpt"
REAL_LAYERS = {"input_blocks.1.1.transformer_blocks.0.attn2": 2, "middle_block.1.transformer_blocks.0.attn2": 1}


@dataclass(frozen=True)
class Base:
    """The frozen part of a model: a metric and the projections of each layer; float32 numbers held in float64."""

    inverse: Tensor
    weights: dict[str, dict[str, Tensor]]

    @classmethod
    def of(cls, seed: int = 0) -> "Base":
        generator = torch.Generator().manual_seed(seed)
        spread = torch.linalg.qr(torch.randn(D, D, generator=generator).double()).Q * torch.linspace(0.4, 2.5, D).double()
        inverse = torch.linalg.inv(spread @ spread.T).float().double()
        inverse = (inverse + inverse.T) / 2
        weights = {
            layer: {which: torch.randn(m, D, generator=generator).double() for which in ("to_k", "to_v")}
            for layer, m in LAYERS.items()
        }
        return cls(inverse, weights)

    def sim(self, encoding: Tensor, target_input: Tensor) -> Tensor:
        """⟨i*, e⟩ / ‖i*‖² in float64, [B, N, 1]."""
        measured = self.inverse @ target_input.double()
        return (encoding.double() @ measured)[..., None] / (measured @ target_input.double())


def encodings(inputs: Tensor, tokens: int = POSITIONS, seed: int = 1) -> Tensor:
    """Encodings [B, tokens, D] that hold the target inputs [J, D] to all degrees."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(B, tokens, len(inputs), generator=generator) * 1.3
    share[:, ::3] = 0
    return share @ inputs.float() + 0.7 * torch.randn(B, tokens, D, generator=generator)


def edited(base: Base, edit: Edit, layer: str, which: str, encoding: Tensor, named: Tensor | None = None) -> Tensor:
    """h of one projection in float32."""
    weight = base.weights[layer][which].float()
    correction = edit.key_correction if which == "to_k" else edit.value_correction
    by = edit.coefficients(encoding, named)
    return encoding @ weight.T + correction(layer, by, lambda vectors: vectors @ weight.T)


def error(got: Tensor, wanted: Tensor) -> float:
    """The largest relative error of a token."""
    assert got.shape == wanted.shape
    return float(((got.double() - wanted.double()).norm(dim=-1) / wanted.double().norm(dim=-1)).max())


def as_concept(path: Path, base: Base, number: int = 1, trigger: str = "<it>") -> Concept:
    """The file's concept, as the node puts it together."""
    found = read(path, LAYERS, D, WORD, number)
    inverse = base.inverse if found.inverse is None else found.inverse.double()
    return found.concept(trigger, "teddy", "sd1", "clip_l", torch.randn(D), inverse)


# ---- perfusion-pytorch -------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """A layer's two edited projections, as perfusion-pytorch wraps them."""

    def __init__(self, base: Base, layer: str) -> None:
        super().__init__()
        for which in ("to_k", "to_v"):
            linear = nn.Linear(D, LAYERS[layer], bias=False)
            linear.weight.data.copy_(base.weights[layer][which])
            wrapped = Rank1EditModule(linear, C=torch.linalg.inv(base.inverse).float(), is_key_proj=which == "to_k")
            wrapped.C_inv.copy_(base.inverse)
            setattr(self, which, wrapped)


class Peer(nn.Module):
    """A model of perfusion-pytorch whose modules come in this order, with a concept after a few steps of its own training."""

    def __init__(self, base: Base, order: list[str], seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words = EmbeddingWrapper(nn.Embedding(9, WORD), superclass_embed_id=3)
        self.words.concepts.data.normal_()
        self.layers = nn.ModuleDict({layer.replace(".", "/"): Attention(base, layer) for layer in order})
        for _ in range(4):
            concept, superclass = torch.randn(2, POSITIONS, D) + torch.randn(D), torch.randn(2, POSITIONS, D)
            for module in self.edits():
                module.train()(concept, concept_indices=torch.tensor([5, 9]), text_enc_with_superclass=superclass)
        for module in self.edits():
            module.eval()
            if not module.is_key_proj:
                module.concept_outputs.data += torch.randn(module.concept_outputs.shape)

    def edits(self) -> list[Rank1EditModule]:
        return [module for module in self.modules() if isinstance(module, Rank1EditModule)]

    def edit(self, layer: str, which: str) -> Rank1EditModule:
        return getattr(self.layers[layer.replace(".", "/")], which)


@pytest.mark.parametrize("order", [list(LAYERS), MIDDLE_LAST], ids=["as the host", "middle last"])
@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_a_concept_of_perfusion_pytorch_does_what_it_did_there(order: list[str], seed: int, tmp_path: Path) -> None:
    base = Base.of(seed)
    with torch.enable_grad():
        peer = Peer(base, order, seed)
    save(peer, str(tmp_path / "teddy.pt"))
    concept = as_concept(tmp_path / "teddy.pt", base)
    assert torch.equal(concept.word["clip_l"], peer.words.concepts) and list(concept.values) == list(LAYERS)
    assert (concept.bias, concept.temperature) == (peer.edits()[0].eval_beta, peer.edits()[0].eval_temperature)
    assert concept.training == {"imported": PERFUSION_PYTORCH}
    concept.save(tmp_path / "ours.safetensors", torch.float32)
    encoding, worst = encodings(concept.target_input[None]), 0.0
    for imported in (concept, Concept.load(tmp_path / "ours.safetensors")):
        for mode in (PAPER, APPROXIMATE):
            edit = edit_of((imported,), mode)
            for layer in LAYERS:
                for which in ("to_k", "to_v"):
                    wanted = peer.edit(layer, which)(encoding)
                    worst = max(worst, error(edited(base, edit, layer, which, encoding), wanted))
                    assert error(encoding @ base.weights[layer][which].float().T, wanted) > 0.1
    assert worst <= AGREE


@torch.no_grad()
def test_each_concept_of_a_merged_file_of_perfusion_pytorch_can_be_imported(tmp_path: Path) -> None:
    base = Base.of()
    with torch.enable_grad():
        peers = [Peer(base, list(LAYERS), seed) for seed in (1, 2)]
    merged = nn.Module()
    merged.words = merge_embedding_wrappers(*(peer.words for peer in peers))
    merged.layers = nn.ModuleList(merge_rank1_edit_modules(*pair).eval() for pair in zip(*(p.edits() for p in peers), strict=True))
    save(merged, str(tmp_path / "two.pt"))
    stack = tuple(as_concept(tmp_path / "two.pt", base, number, f"<{number}>") for number in (1, 2))
    encoding = encodings(torch.stack([concept.target_input for concept in stack]))
    names = [(layer, which) for layer in LAYERS for which in ("to_k", "to_v")]
    for (layer, which), module in zip(names, merged.layers, strict=True):
        for i, concept in enumerate(stack):
            got = edited(base, edit_of((concept,), PAPER), layer, which, encoding)
            assert error(got, module(encoding, concept_id=i)) <= AGREE
        got = edited(base, edit_of(stack, APPROXIMATE), layer, which, encoding)
        assert error(got, module(encoding, concept_id=(0, 1))) <= AGREE
    for number in (0, 3):
        with pytest.raises(PerfusionError, match=f"contains 2 concepts, but number {number}"):
            as_concept(tmp_path / "two.pt", base, number)


# ---- ChenDarYen's --------------------------------------------------------------------------------------------------------------


def checkpoint(base: Base, seed: int = 0, old: bool = False, vectors: int = 1) -> dict[str, Any]:
    """What that code's `on_save_checkpoint` leaves; an old one does not tell the superclass."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    words = nn.ParameterDict({"*": nn.Parameter(normal(vectors, WORD))})
    superclass = normal(POSITIONS, D)
    outputs = OrderedDict()
    for layer, weights in base.weights.items():
        # Keys are W_K of the superclass prompts at each position; values began there too.
        outputs[f"{layer}.to_k.target_output"] = (superclass.double() @ weights["to_k"].T).float()
        outputs[f"{layer}.to_v.target_output"] = nn.Parameter(3 * normal(POSITIONS, LAYERS[layer]))
    told = {} if old else {"initializer_words": ["teddy"]}
    return {
        "global_step": 400,
        "C_inv": base.inverse.float(),
        "target_input": 2 * normal(D),
        "embedding": told | {"string_to_token": {"*": 265}, "string_to_param": words},
        "target_output": outputs,
    }


def published(base: Base, saved: dict[str, Any], layer: str, which: str, encoding: Tensor) -> Tensor:
    """That code's published formula for one concept in float64: h = W (e - sim i*) + σ((sim - β) / τ) o*[n]."""
    sim = base.sim(encoding, saved["target_input"])
    opened = torch.sigmoid((sim - BIAS) / TEMPERATURE)
    rest = encoding.double() - sim * saved["target_input"].double()
    outputs = saved["target_output"][f"{layer}.{which}.target_output"].detach().double()
    sections = encoding.shape[1] // POSITIONS
    return rest @ base.weights[layer][which].T + opened * outputs.repeat(sections, 1)


@pytest.mark.parametrize("sections", [1, 2, 3])
@pytest.mark.parametrize("seed", range(2))
def test_a_concept_of_chendaryens_does_what_it_did_there_in_every_section(seed: int, sections: int, tmp_path: Path) -> None:
    base = Base.of(seed)
    saved = checkpoint(base, seed)
    torch.save(saved, tmp_path / "teddy.ckpt")
    concept = as_concept(tmp_path / "teddy.ckpt", base)
    assert concept.training == {"imported": CHENDARYEN} and concept.word["clip_l"].shape == (1, WORD)
    concept.save(tmp_path / "ours.safetensors", torch.float32)
    encoding = encodings(concept.target_input[None], POSITIONS * sections)
    for imported in (concept, Concept.load(tmp_path / "ours.safetensors")):
        for mode in (PAPER, APPROXIMATE):
            for layer in LAYERS:
                for which in ("to_k", "to_v"):
                    wanted = published(base, saved, layer, which, encoding)
                    assert error(edited(base, edit_of((imported,), mode), layer, which, encoding), wanted) <= AGREE


def test_several_concepts_of_chendaryens_take_out_their_span(tmp_path: Path) -> None:
    base = Base.of()
    saved = [checkpoint(base, seed) for seed in (3, 4)]
    stack = []
    for i, each in enumerate(saved):
        torch.save(each, tmp_path / f"{i}.ckpt")
        stack.append(as_concept(tmp_path / f"{i}.ckpt", base, trigger=f"<{i}>"))
    inputs = torch.stack([each["target_input"] for each in saved]).double()
    # That code's basis: rows of U, with C⁻¹ = Uᵀ U; QR of U i*, and back.
    upper = torch.linalg.cholesky(base.inverse).T
    flat = torch.linalg.qr(upper @ inputs.T).Q
    basis = torch.linalg.solve(upper, flat).T
    encoding = encodings(inputs)
    rest = encoding.double() - sum((encoding.double() @ base.inverse @ u)[..., None] * u for u in basis)
    for layer in LAYERS:
        for which in ("to_k", "to_v"):
            wanted = rest @ base.weights[layer][which].T
            for each in saved:
                opened = torch.sigmoid((base.sim(encoding, each["target_input"]) - BIAS) / TEMPERATURE)
                wanted = wanted + opened * each["target_output"][f"{layer}.{which}.target_output"].detach().double()
            assert error(edited(base, edit_of(tuple(stack), PAPER), layer, which, encoding), wanted) <= AGREE


def test_exact_mode_blends_by_position_and_closes_to_the_last_bit(tmp_path: Path) -> None:
    base = Base.of()
    saved = checkpoint(base)
    torch.save(saved, tmp_path / "teddy.ckpt")
    edit = edit_of((as_concept(tmp_path / "teddy.ckpt", base),), EXACT)
    encoding = encodings(saved["target_input"][None], 2 * POSITIONS)
    named = (torch.arange(2 * POSITIONS) % POSITIONS >= 5).float()[None, :, None].expand(B, -1, 1)
    sim = base.sim(encoding, saved["target_input"])
    opened = torch.sigmoid((sim - BIAS) / TEMPERATURE) * named
    opened = torch.where(opened >= GATE_CUTOFF, opened, 0)
    for layer in LAYERS:
        for which in ("to_k", "to_v"):
            weight = base.weights[layer][which]
            outputs = saved["target_output"][f"{layer}.{which}.target_output"].detach().double().repeat(2, 1)
            wanted = encoding.double() @ weight.T + opened * (outputs - sim * (weight @ saved["target_input"].double()))
            got = edited(base, edit, layer, which, encoding, named)
            assert error(got, wanted) <= AGREE
            closed = opened[..., 0] == 0
            assert closed.any() and torch.equal(got[closed], (encoding @ weight.float().T)[closed])


def test_concepts_with_and_without_positions_and_with_locked_keys_work_together(tmp_path: Path) -> None:
    base = Base.of()
    saved = checkpoint(base)
    torch.save(saved, tmp_path / "one.ckpt")
    with_positions = as_concept(tmp_path / "one.ckpt", base, trigger="<a>")
    torch.manual_seed(7)
    target = 2 * torch.randn(D)
    plain = Concept(
        trigger="<b>",
        superclass="cat",
        family="sd1",
        word=with_positions.word,
        target_input=target,
        probe=(base.inverse @ target.double()).float(),
        superclass_encoding=torch.randn(D),
        values={layer: torch.randn(m) for layer, m in LAYERS.items()},
        bias=0.5,
    )
    edit = edit_of((with_positions, plain), APPROXIMATE)
    encoding = encodings(torch.stack([with_positions.target_input, target]))
    sim = base.sim(encoding, target)
    opened = torch.sigmoid((sim - 0.5) / 0.15)
    for layer in LAYERS:
        for which in ("to_k", "to_v"):
            weight = base.weights[layer][which]
            output = plain.values[layer].double() if which == "to_v" else weight @ plain.superclass_encoding.double()
            wanted = published(base, saved, layer, which, encoding) - sim * (weight @ target.double()) + opened * output
            assert error(edited(base, edit, layer, which, encoding), wanted) <= AGREE


def test_a_word_of_several_vectors_and_old_files_are_taken(tmp_path: Path) -> None:
    base = Base.of()
    for old in (False, True):
        torch.save(checkpoint(base, old=old, vectors=3), tmp_path / "three.ckpt")
        found = read(tmp_path / "three.ckpt", LAYERS, D, WORD)
        assert found.word.shape == (3, WORD) and found.superclass == ("" if old else "teddy")


def test_a_checkpoint_with_omegaconfs_own_objects_is_read_without_them() -> None:
    """The file was written with OmegaConf 2.1.1: `initializer_words` comes out of `OmegaConf.create`, as that code passes it on."""
    content = REAL.read_bytes()
    assert b"omegaconf.listconfig" in content and b"omegaconf.dictconfig" in content and b"ParameterDict" in content
    found = read(REAL, REAL_LAYERS, 4, 4)
    assert (found.kind, found.superclass) == (CHENDARYEN, "teddy")
    assert {layer: tuple(o.shape) for layer, o in found.values.items()} == {k: (POSITIONS, m) for k, m in REAL_LAYERS.items()}
    assert found.word.shape == (1, 4) and found.inverse.shape == (4, 4)
    # What was let in for this file stays out for everyone else.
    with pytest.raises(pickle.UnpicklingError):
        torch.load(REAL, weights_only=True)


# ---- positions in our own file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_positions_survive_in_our_file(dtype: torch.dtype, tmp_path: Path) -> None:
    base = Base.of()
    torch.save(checkpoint(base), tmp_path / "teddy.ckpt")
    concept = as_concept(tmp_path / "teddy.ckpt", base)
    concept.save(tmp_path / "teddy.safetensors", dtype)
    back = Concept.load(tmp_path / "teddy.safetensors")
    assert back.layers == LAYERS
    for layer in LAYERS:
        assert back.values[layer].shape == (POSITIONS, LAYERS[layer])
        assert torch.equal(back.values[layer], concept.values[layer].to(dtype).float())
        assert torch.equal(back.keys[layer], concept.keys[layer].to(dtype).float())


# ---- files that are refused --------------------------------------------------------------------------------------------------


def sentence(path: Path, number: int = 1) -> str:
    """The one sentence that refuses a file; anything but a PerfusionError fails the test."""
    with pytest.raises(PerfusionError) as caught:
        as_concept(path, Base.of(), number)
    text = str(caught.value)
    assert text.endswith(".") and len(text) < 500 and text.isprintable(), text
    return text


class Probe:
    """Would make a file if it were unpickled by an unsuspecting reader."""

    def __init__(self, mark: Path, call: Callable) -> None:
        self.mark, self.call = mark, call

    def __reduce__(self) -> tuple:
        arguments = {
            os.mkdir: (str(self.mark),),
            subprocess.call: (["touch", str(self.mark)],),
            eval: (f"open({str(self.mark)!r}, 'w')",),
        }
        return self.call, arguments[self.call]


@pytest.mark.parametrize("call", [os.mkdir, subprocess.call, eval])
@pytest.mark.parametrize("where", ["top", "word", "configuration"])
def test_code_in_a_file_is_never_run(call: Callable, where: str, tmp_path: Path) -> None:
    saved, mark = checkpoint(Base.of()), tmp_path / "was-run"
    probe = Probe(mark, call)
    if where == "top":
        saved["more"] = probe
    elif where == "word":
        saved["embedding"]["string_to_param"] = {"*": probe}
    else:
        saved["embedding"]["initializer_words"] = [probe]
    torch.save(saved, tmp_path / "hostile.ckpt")
    assert "could run code, so it was not opened" in sentence(tmp_path / "hostile.ckpt")
    assert not mark.exists()
    torch.load(tmp_path / "hostile.ckpt", weights_only=False)
    assert mark.exists()


class Greedy:
    """Asks for memory when it is unpickled, with what torch deems safe."""

    def __init__(self, call: tuple) -> None:
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("call", [(bytearray, (2**40,)), (torch.FloatStorage, (2**40,)), (torch.Tensor, (2**40,))])
def test_a_file_that_asks_for_memory_is_refused(call: tuple, tmp_path: Path) -> None:
    torch.save(checkpoint(Base.of()) | {"more": Greedy(call)}, tmp_path / "greedy.ckpt")
    assert "more than plain tensors" in sentence(tmp_path / "greedy.ckpt")


def test_stand_ins_take_what_is_called_and_run_nothing(tmp_path: Path) -> None:
    """`builtins.dict` and the like are let in for OmegaConf's sake; calling them makes an empty thing."""
    data = b"\x80\x02cbuiltins\ndict\nX\x01\x00\x00\x00a\x85R."
    with zipfile.ZipFile(tmp_path / "odd.pt", "w") as archive:
        archive.writestr("odd/data.pkl", data)
        archive.writestr("odd/version", "3\n")
        archive.writestr("odd/byteorder", "little")
    assert "not a concept from perfusion-pytorch or" in sentence(tmp_path / "odd.pt")


def test_refuses_what_is_too_large_before_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "huge.ckpt"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert f"more than the limit of {MAX_BYTES}" in sentence(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("huge/data.pkl", bytes(MAX_BYTES + 1))
    assert path.stat().st_size < MAX_BYTES / 100
    assert "unpacks to more than" in sentence(path)


def test_refuses_every_truncation_and_other_kinds(tmp_path: Path) -> None:
    torch.save(checkpoint(Base.of()), tmp_path / "good.ckpt")
    whole, path = (tmp_path / "good.ckpt").read_bytes(), tmp_path / "short.ckpt"
    for length in [*range(0, 40), *range(40, len(whole), 997), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert "not a complete torch.save file" in sentence(path)
    for content in (pickle.dumps(checkpoint(Base.of())["embedding"]["string_to_token"]), b"\x80\x02.", b"hello" * 99):
        path.write_bytes(content)
        assert "not a complete torch.save file" in sentence(path)
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    assert "in the format that torch.save used before torch 1.6" in sentence(path)
    assert "cannot be read" in sentence(tmp_path / "missing.ckpt") and "cannot be read" in sentence(tmp_path)


def test_refuses_files_of_other_things(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    for content in ({"state_dict": {"a": torch.ones(3)}}, torch.ones(3), [1, 2], {1: 2, None: 3}, "text", {"C_inv": torch.eye(3)}):
        torch.save(content, path)
        assert "not a concept from perfusion-pytorch or" in sentence(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_changed_byte_in_the_pickle_gives_a_concept_or_a_sentence(tmp_path: Path) -> None:
    torch.save(checkpoint(Base.of()), tmp_path / "good.ckpt")
    rng, refused = random.Random(0), 0
    with zipfile.ZipFile(tmp_path / "good.ckpt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in entries if name.endswith("data.pkl"))
    for _ in range(400):
        broken = bytearray(entries[pickled])
        for _ in range(rng.choice((1, 1, 2, 5))):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        with zipfile.ZipFile(tmp_path / "broken.ckpt", "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, bytes(broken) if name == pickled else content)
        try:
            assert edit_of((as_concept(tmp_path / "broken.ckpt", Base.of()),), EXACT).probes.isfinite().all()
        except PerfusionError as caught:
            refused += 1
            assert str(caught).isprintable() and str(caught).endswith(".")
    assert 200 < refused < 400


def changed(keys: tuple, value: object) -> Callable[[dict], None]:
    """Sets a part of what is saved; a callable value is given the old one."""

    def change(saved: Any) -> None:
        for key in keys[:-1]:
            saved = saved[key]
        saved[keys[-1]] = value(saved[keys[-1]]) if callable(value) else value

    return change


KEYS = ("target_output", f"{next(iter(LAYERS))}.to_k.target_output")
TOKEN = ("embedding", "string_to_param", "*")


def poisoned(value: float) -> Callable[[Tensor], Tensor]:
    def poison(tensor: Tensor) -> Tensor:
        made = tensor.detach().double() if value > 1e300 and value != float("inf") else tensor.detach().clone().contiguous()
        made.view(-1)[-1] = value
        return made

    return poison


WRONG = [
    (("C_inv",), torch.eye(D + 1), "C_inv has the shape"),
    (("C_inv",), [1, 2], "C_inv has the shape"),
    (("C_inv",), lambda t: t.int(), "C_inv contains torch.int32"),
    (("C_inv",), poisoned(float("nan")), "NaN"),
    (("C_inv",), lambda t: -t, "not have a positive length in the metric of its inverse covariance"),
    (("C_inv",), lambda t: t.to_sparse(), "more than plain tensors"),
    (("C_inv",), lambda t: t.to("meta"), "more than plain tensors"),
    (("C_inv",), torch.ones(1).expand(10**5, 10**5), "C_inv has the shape"),
    (("target_input",), torch.zeros(D), "not have a positive length in the metric of its inverse covariance"),
    (("target_input",), torch.ones(1, D), "target input has the shape"),
    (("target_input",), poisoned(float("inf")), "NaN"),
    (("target_input",), poisoned(1e305), "too large for float32"),
    (("target_input",), lambda t: t.bool(), "target input contains torch.bool"),
    (("target_input",), "text", "target input has the shape"),
    (("embedding",), 7, "embedding of exactly one word"),
    (("embedding", "string_to_param"), {}, "embedding of exactly one word"),
    (("embedding", "string_to_param"), {"*": torch.ones(1, WORD), "+": torch.ones(1, WORD)}, "embedding of exactly one word"),
    (TOKEN, torch.ones(33, WORD), "1 to 32 vectors"),
    (TOKEN, torch.ones(0, WORD), "1 to 32 vectors"),
    (TOKEN, torch.ones(1, WORD + 1), "word has the shape"),
    (TOKEN, torch.ones(1, WORD).long(), "word contains torch.int64"),
    (("target_output",), [], "target outputs are not those"),
    (("target_output",), lambda t: dict(list(t.items())[1:]), "target outputs are not those"),
    (("target_output", "more"), torch.ones(1), "target outputs are not those"),
    (KEYS, torch.ones(16), "target_output has the shape"),
    (KEYS, torch.ones(POSITIONS + 1, 16), "target_output has the shape"),
    (KEYS, torch.ones(POSITIONS, 17), "target_output has the shape"),
    (KEYS, poisoned(float("nan")), "NaN"),
    (KEYS, lambda t: t.to(torch.float8_e4m3fn), "more than plain tensors"),
]


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(("keys", "value", "words"), WRONG, ids=range(len(WRONG)))
def test_refuses_wrong_parts_of_chendaryens(keys: tuple, value: object, words: str, tmp_path: Path) -> None:
    saved = checkpoint(Base.of())
    saved["embedding"]["string_to_param"] = dict(saved["embedding"]["string_to_param"])
    saved["target_output"].setdefault("more", None) if keys[-1] == "more" else None
    changed(keys, value)(saved)
    torch.save(saved, tmp_path / "wrong.ckpt")
    assert words in sentence(tmp_path / "wrong.ckpt")


PEER_WRONG = [
    (("embed_params",), None, "contains no word"),
    (("embed_params",), torch.ones(1, WORD + 1), "word has the shape"),
    (("embed_params",), torch.ones(WORD), "target input has the shape"),
    (("embed_params",), poisoned(float("nan")), "NaN"),
    (("key_value_params",), {}, "not pairs"),
    (("key_value_params",), lambda t: t[:-1], "edits 9 projections, but this model has 10"),
    (("key_value_params", 3), [torch.ones(1, D)], "not pairs"),
    (("key_value_params", 0, 0), torch.ones(1, D + 1), "target input has the shape"),
    (("key_value_params", 0, 0), lambda t: t + 0.1, "target inputs of its layers differ"),
    (("key_value_params", 0, 1), torch.ones(1, 17), "the widths of its projections"),
    (("key_value_params", 0, 1), torch.ones(2, 16), "target output of"),
    (("key_value_params", 0, 1), lambda t: t.long(), "contains torch.int64"),
    (("key_value_params", 5, 1), poisoned(float("inf")), "NaN"),
    (("C_inv",), torch.zeros(D, D), "not have a positive length in the metric of its inverse covariance"),
]


@pytest.mark.parametrize(("keys", "value", "words"), PEER_WRONG, ids=range(len(PEER_WRONG)))
def test_refuses_wrong_parts_of_perfusion_pytorchs(keys: tuple, value: object, words: str, tmp_path: Path) -> None:
    save(Peer(Base.of(), list(LAYERS)), str(tmp_path / "good.pt"))
    saved = torch.load(tmp_path / "good.pt", weights_only=True)
    changed(keys, value)(saved)
    torch.save(saved, tmp_path / "wrong.pt")
    assert words in sentence(tmp_path / "wrong.pt")


def test_a_file_without_a_metric_says_so_and_one_in_half_precision_is_taken(tmp_path: Path) -> None:
    saved = checkpoint(Base.of())
    del saved["C_inv"]
    saved["target_output"] = {name: each.detach().half() for name, each in saved["target_output"].items()}
    torch.save(saved, tmp_path / "bare.ckpt")
    found = read(tmp_path / "bare.ckpt", LAYERS, D, WORD)
    assert found.inverse is None and found.values[next(iter(LAYERS))].dtype == torch.float32


def test_a_foreign_tensor_does_not_keep_the_files_memory(tmp_path: Path) -> None:
    saved = checkpoint(Base.of())
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    (tmp_path / "good.ckpt").write_bytes(buffer.getvalue())
    found = read(tmp_path / "good.ckpt", LAYERS, D, WORD)
    assert found.target_input.untyped_storage().nbytes() == 4 * D
    assert load(tmp_path / "good.ckpt").keys() == saved.keys()
