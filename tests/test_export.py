"""What an export holds, against weights that are changed outright in float64; and files that come all or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from perfusion_core import PerfusionError, lora_export
from perfusion_core.concept import Concept
from perfusion_core.gated_edit import EXACT, STATIC, Edit
from perfusion_core.prompts import TEMPLATES
from perfusion_core.safe_files import read, write_all
from tests.test_edit import LAYER, B, D, M, N, World, least_change, share

OTHER = "other.attn2"
NAMES = {f"{layer}.{which}": f"lora_{layer}_{which}" for layer in (LAYER, OTHER) for which in ("to_k", "to_v")}


def layers_of(world: World) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> its W_K and W_V in float64."""
    return {LAYER: (world.to_k, world.to_v), OTHER: (world.to_v.flip(0), world.to_k.flip(1))}


def projected(world: World, edit: Edit) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer -> W_K and W_V of the edit's vectors, float32, as a host gives them."""
    vectors = edit.vectors.double()
    return {layer: ((vectors @ k.T).float(), (vectors @ v.T).float()) for layer, (k, v) in layers_of(world).items()}


def static_edit(world: World, **changed: object) -> Edit:
    """The concepts' static edit, with two layers."""
    values = {LAYER: world.values.float(), OTHER: world.values.flip(1).float()}
    return replace(world.edit(STATIC), **{"values": values} | changed)


def outputs_of(world: World, edit: Edit, layer: str) -> tuple[Tensor, Tensor]:
    """o*_K and o*_V of a layer, float64."""
    keys = world.superclass @ layers_of(world)[layer][0].T
    if layer in edit.keys:
        keys = torch.where(edit.keys_trained[layer][:, None], edit.keys[layer].double(), keys)
    return keys, edit.values[layer].double()


def word_concept(trigger: str = "<a>", length: int = 1, **changed: object) -> Concept:
    made = Concept(
        trigger,
        "teddy",
        "sd1",
        {"clip_l": torch.randn(length, D)},
        torch.ones(D),
        torch.ones(D),
        torch.ones(D),
        {LAYER: torch.ones(M)},
    )
    return replace(made, **changed)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_a_lora_added_to_the_weights_is_the_static_edit(count: int, trained: bool) -> None:
    world = World.of(count, alike=1.0)
    bias, strength = torch.linspace(0.3, 1.0, count), torch.linspace(1.0, 0.5, count)
    even = torch.arange(count) % 2 == 0
    keys = {"keys": {layer: world.keys.float() for layer in (LAYER, OTHER)}, "keys_trained": {LAYER: even, OTHER: ~even}}
    edit = static_edit(world, bias=bias, strength=strength, **(keys if trained else {}))
    tensors = lora_export.lora(edit, projected(world, edit), NAMES)
    assert len(tensors) == 3 * len(NAMES) and all(tensor.dtype == torch.float32 for tensor in tensors.values())
    for layer, weights in layers_of(world).items():
        for which, weight, outputs in zip(("to_k", "to_v"), weights, outputs_of(world, edit, layer), strict=True):
            name = NAMES[f"{layer}.{which}"]
            up, down, alpha = (tensors[f"{name}.{part}"].double() for part in ("lora_up.weight", "lora_down.weight", "alpha"))
            assert up.shape == (M, count) and down.shape == (count, D) and alpha / count == 1
            wanted = least_change(world, share(bias, strength)[:, None] * (outputs - world.target_inputs @ weight.T))
            assert (up @ down - wanted).norm() <= 1e-5 * wanted.norm()


def test_lower_bias_and_higher_strength_make_a_stronger_lora() -> None:
    world = World.of(1)

    def up(**changed: Tensor) -> Tensor:
        edit = static_edit(world, **changed)
        return lora_export.lora(edit, projected(world, edit), NAMES)[f"{NAMES[f'{LAYER}.to_v']}.lora_up.weight"]

    at_half = up(bias=torch.tensor([1.0]))
    torch.testing.assert_close(up(bias=torch.tensor([0.4])), 2 * at_half * float(share(0.4)))
    torch.testing.assert_close(up(bias=torch.tensor([1.0]), strength=torch.tensor([0.5])), at_half / 2)


def test_the_error_is_the_distance_of_the_layers_outputs() -> None:
    world = World.of(2)
    edit = static_edit(world, bias=torch.tensor([0.3, 0.5]))
    named = torch.ones(B, N, 2)
    named[:, :2, 1] = 0
    keys, values = lora_export.error(edit, world.encoding.float(), named, projected(world, edit))
    wanted = torch.zeros(2, dtype=torch.float64)
    by = replace(edit, mode=EXACT).coefficients(world.encoding.float(), named)
    for layer, weights in layers_of(world).items():
        for i, (weight, outputs) in enumerate(zip(weights, outputs_of(world, edit, layer), strict=True)):
            inputs = world.target_inputs @ weight.T
            plain = world.encoding @ weight.T
            gated = plain - by.remove.double() @ inputs + by.add.double() @ outputs
            update = least_change(world, share(edit.bias)[:, None] * (outputs - inputs))
            wanted[i] += (world.encoding @ (weight + update).T - gated).norm() / (gated - plain).norm() / 2
    torch.testing.assert_close(torch.tensor([keys, values]).double(), wanted, rtol=1e-4, atol=0)


def test_the_error_vanishes_at_the_target_input_with_open_gates_and_is_one_for_a_lora_of_nothing() -> None:
    world = World.of(1)
    edit = static_edit(world, bias=torch.tensor([-100.0]))
    made = projected(world, edit)
    at_target = edit.target_inputs[None]
    assert max(lora_export.error(edit, at_target, torch.ones(1, 1, 1), made)) < 1e-5
    # An encoding at right angles to i* is left alone by the static edit, whatever its gate says.
    across = world.encoding[:1] - world.sims()[:1] @ world.target_inputs
    torch.testing.assert_close(torch.tensor(lora_export.error(edit, across.float(), torch.ones(1, N, 1), made)), torch.ones(2))


def test_outputs_that_differ_by_position_are_averaged_over_the_words_positions() -> None:
    world = World.of(2)
    edit = static_edit(world)
    moving = {layer: torch.randn(2, N, M) for layer in edit.values}
    by_position = replace(edit, values=moving)
    places = torch.tensor([1, 3, 2, 4])  # two prompts for each concept
    held = lora_export.at_positions(by_position, places)
    for layer, outputs in moving.items():
        wanted = torch.stack([outputs[0, [1, 3]].mean(0), outputs[1, [2, 4]].mean(0)])
        torch.testing.assert_close(held.values[layer], wanted)
    assert lora_export.at_positions(edit, places).values[LAYER] is edit.values[LAYER]
    made = projected(world, edit)
    assert len(lora_export.lora(held, made, NAMES)) == 3 * len(NAMES)
    encodings, named = world.encoding[:1].repeat(4, 1, 1), torch.ones(4, N, 2)
    _, values = lora_export.error(by_position, encodings.float(), named, made, held, places)
    by, wanted = replace(by_position, mode=EXACT).coefficients(encodings.float(), named), 0.0
    for layer, (_, weight) in layers_of(world).items():
        inputs = world.target_inputs @ weight.T
        gated = torch.einsum("pnj,jnm->pnm", by.add.double(), moving[layer].double()) - by.remove.double() @ inputs
        update = least_change(world, share(edit.bias)[:, None] * (held.values[layer].double() - inputs))
        apart, moved = (each[torch.arange(4), places].norm() for each in (encodings @ update.T - gated, gated))
        wanted += float(apart / moved) / 2
    assert abs(values / wanted - 1) < 1e-4 and wanted > 0.01


def test_a_gate_that_never_opens_is_refused() -> None:
    world = World.of(1)
    edit = static_edit(world, bias=torch.tensor([3.0]))
    with pytest.raises(PerfusionError, match="lower bias"):
        lora_export.error(edit, world.encoding.float(), torch.ones(B, N, 1), projected(world, edit))


def test_the_places_of_words_are_those_of_their_last_vectors() -> None:
    stack = word_concept(), word_concept("<b>", 3)
    prompts = lora_export.prompts(stack)
    assert len(prompts) == 2 * len(TEMPLATES) and prompts[0] == TEMPLATES[0].format("<a>")
    firsts = torch.arange(len(prompts)) % 5 + 1
    named = torch.zeros(len(prompts), 20, 2)
    for i, first in enumerate(firsts):
        named[i, first:, i // len(TEMPLATES)] = 1
    assert torch.equal(lora_export.at_words(stack, named), firsts + torch.tensor([0] * len(TEMPLATES) + [2] * len(TEMPLATES)))


def test_an_embedding_has_the_keys_that_its_family_is_known_by() -> None:
    one, two = torch.randn(2, 768), torch.randn(2, 1280)
    assert torch.equal(lora_export.embedding({"clip_l": one})["emb_params"], one)
    both = lora_export.embedding({"clip_l": one.half(), "clip_g": two})
    assert set(both) == {"clip_l", "clip_g"} and both["clip_l"].dtype == torch.float32 and torch.equal(both["clip_g"], two)


def test_metadata_names_what_the_files_are_of() -> None:
    picture = b"\xff\xd8\xff\xe0"
    stack = (
        word_concept(details={"author": "Ann", "license": "CC0"}, preview=picture),
        word_concept("<b>", superclass="cat", details={"author": "Ann"}),
    )
    told = lora_export.metadata(stack, ["embedding:x_a", "embedding:x_b"], "lora")
    assert told["modelspec.title"] == "a and b" and told["modelspec.trigger_phrase"] == "embedding:x_a, embedding:x_b"
    assert json.loads(told["trained_words"]) == ["embedding:x_a", "embedding:x_b"] and told["superclass"] == "teddy, cat"
    assert (
        told["modelspec.author"] == "Ann" and told["modelspec.license"] == "CC0" and len(json.loads(told["ssmd_cover_images"])) == 1
    )
    assert not {"modelspec.author", "modelspec.license", "ssmd_cover_images"} & set(
        lora_export.metadata((word_concept(),), ["x"], "lora")
    )


def test_several_files_come_all_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder is wanted")
    content = {"x": torch.ones(2)}, {"a": "b"}
    good, other, bad = tmp_path / "new" / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "taken" / "c.safetensors"
    with pytest.raises(PerfusionError, match=r"c\.safetensors was not saved"):
        write_all({good: content, other: content, bad: content})
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["taken"]
    write_all({good: content, other: content})
    assert all(read(path, 1000)[1] == {"a": "b"} for path in (good, other))
