"""A stack of concepts as files of the stock kind: a LoRA of rank J, and an embedding for each word.

A LoRA has no gate: it holds the static edit (`gated_edit.STATIC`). In every layer ΔW = U P for the keys and for the values, where
the columns of U [m, J] are s_j g*_j (o*_j - W i*_j) and the rows of P [J, d] are the static probes; with one concept
ΔW = s g* (o* - W i*) (C⁻¹ i*)ᵀ / ‖i*‖². The LoRA is made of one model's W i*, so it is that model's.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from . import PerfusionError
from .gated_edit import EXACT, STATIC, Coefficients, Edit
from .prompts import TEMPLATES
from .stack import Stack

Projected = Mapping[str, tuple[Tensor, Tensor]]
"""Layer -> (W_K v, W_V v), [2J, m] each, of an edit's `vectors`."""


def corrections(edit: Edit, by: Coefficients, layer: str, projected: Projected) -> tuple[Tensor, Tensor]:
    """What is added to W_K e and to W_V e of a layer, [..., m] each, for coefficients [..., J]."""
    keys, values = projected[layer]
    inputs = values[: len(edit.target_inputs)]
    return edit.key_correction(layer, by, lambda _: keys), edit.value_correction(layer, by, lambda _: inputs)


def lora(edit: Edit, projected: Projected, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of a LoRA file of rank J, float32, whose alpha gives the scale 1.

    Args:
        edit: the concepts.
        projected: of their `vectors`, by the model that the LoRA is for.
        names: `<layer>.to_k` and `<layer>.to_v` -> what the file calls them.
    """
    moved = Coefficients(*2 * [edit.static_share.diag()])
    tensors = {}
    for layer in edit.values:
        for which, rows in zip(("to_k", "to_v"), corrections(edit, moved, layer, projected), strict=True):
            name = names[f"{layer}.{which}"]
            tensors[f"{name}.lora_up.weight"] = rows.T.float()
            tensors[f"{name}.lora_down.weight"] = edit.static_probes.float().clone()
            tensors[f"{name}.alpha"] = torch.tensor(float(len(rows)))
    return tensors


def prompts(stack: Stack) -> list[str]:
    """The prompts of training, with each concept's trigger word."""
    return [template.format(concept.trigger) for concept in stack for template in TEMPLATES]


def at_words(stack: Stack, named: Tensor) -> Tensor:
    """Where in each of `prompts` its word's last vector stands, int [P]; `named` is [P, N, J], 1 from its first vector on."""
    which = torch.arange(len(stack)).repeat_interleave(len(TEMPLATES))
    lengths = torch.tensor([len(next(iter(concept.word.values()))) for concept in stack])
    return named[torch.arange(len(which)), :, which].argmax(1) + lengths[which] - 1


def error(edit: Edit, encodings: Tensor, named: Tensor, projected: Projected) -> tuple[float, float]:
    """How far the LoRA is from the gated concepts: ‖h_static - h_gated‖ / ‖h_gated - W e‖, mean over layers, for K and for V.

    0 is the gated (exact) edit itself, 1 as far from it as the model without any edit. Over whole prompts much of it comes from
    the padding after the words, where gates stand open a little and encodings are unlike i*.

    Args:
        edit: the concepts.
        encodings: [P, N, d], of prompts that name them.
        named: [P, N, J], where trigger words can have reached.
        projected: of the edit's `vectors`.

    Raises:
        PerfusionError: no gate opens in these prompts, so there is nothing to be near to.
    """
    static, gated = (replace(edit, mode=mode).coefficients(encodings, named) for mode in (STATIC, EXACT))
    if not gated.any():
        raise PerfusionError(
            "The concept's gate never opens, so there is nothing to export; give it a lower bias with Concept Settings."
        )
    found = []
    for layer in edit.values:
        pairs = zip(*(corrections(edit, by, layer, projected) for by in (static, gated)), strict=True)
        found.append([float((one - other).norm() / other.norm()) for one, other in pairs])
    keys, values = torch.tensor(found).mean(0).tolist()
    return keys, values


def embedding(word: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a textual-inversion file: under the encoders' names, or the usual one where there is one encoder."""
    tensors = {name: vectors.float() for name, vectors in word.items()}
    return tensors if len(tensors) > 1 else {"emb_params": next(iter(tensors.values()))}


def metadata(stack: Stack, words: list[str], kind: str) -> dict[str, str]:
    """A file's metadata, as ModelSpec 1.0.1 and the host's model browser want it.

    Args:
        stack: the concepts.
        words: what stands for each of them in prompts.
        kind: "lora" or "textual-inversion".
    """
    told = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{stack[0].family}/{kind}",
        "modelspec.title": " and ".join(concept.trigger.strip("<>") for concept in stack),
        "modelspec.trigger_phrase": ", ".join(words),
        "modelspec.base_model": stack[0].family,
        "trained_words": json.dumps(words, ensure_ascii=False),
        "superclass": ", ".join(concept.superclass for concept in stack),
    }
    for name in ("author", "license"):
        given = dict.fromkeys(concept.details[name] for concept in stack if concept.details.get(name))
        told |= {f"modelspec.{name}": ", ".join(given)} if given else {}
    previews = [base64.b64encode(concept.preview).decode() for concept in stack if concept.preview]
    return told | ({"ssmd_cover_images": json.dumps(previews)} if previews else {})
