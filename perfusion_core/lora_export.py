"""Export of a stack of concepts to standard file formats: a LoRA of rank J, and a textual-inversion embedding for each word.

A LoRA has no gate, so it contains the static edit (`gated_edit.STATIC`). In every layer ΔW = U P for the keys and for the values,
where the columns of U [m, J] are s_j g*_j (o*_j - W i*_j) and the rows of P [J, d] are the static probes; with one concept
ΔW = s g* (o* - W i*) (C⁻¹ i*)ᵀ / ‖i*‖². The LoRA is computed from one model's W i*, so it is specific to that model.
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
"""Layer -> (W_K v, W_V v), [2J, m] each, for the `vectors` v of an edit."""


def corrections(edit: Edit, by: Coefficients, layer: str, projected: Projected) -> tuple[Tensor, Tensor]:
    """Return the corrections that are added to W_K e and to W_V e of a layer, [..., m] each, for coefficients [..., J]."""
    keys, values = projected[layer]
    inputs = values[: len(edit.target_inputs)]
    return edit.key_correction(layer, by, lambda _: keys), edit.value_correction(layer, by, lambda _: inputs)


def lora(edit: Edit, projected: Projected, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors of a LoRA file of rank J, float32; alpha equals the rank, which gives the scale 1.

    Args:
        edit: the concepts.
        projected: projections of the edit's `vectors` by the model that the LoRA is for.
        names: `<layer>.to_k` and `<layer>.to_v` -> their names in the file.
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
    """Return the training prompts with each concept's trigger word."""
    return [template.format(concept.trigger) for concept in stack for template in TEMPLATES]


def at_words(stack: Stack, own: Tensor) -> Tensor:
    """Return the position of the word's last vector in each of `prompts`, int [P].

    `own` is [P, N, J], 1 at the vectors of concept j's word.
    """
    which = torch.arange(len(stack)).repeat_interleave(len(TEMPLATES))
    lengths = torch.tensor([len(next(iter(concept.word.values()))) for concept in stack])
    return own[torch.arange(len(which)), :, which].argmax(1) + lengths[which] - 1


def at_positions(edit: Edit, places: Tensor) -> Edit:
    """Return an edit whose outputs do not differ by token position, as a LoRA needs them: means over the positions of the words.

    `places` is as returned by `at_words`.
    """

    def averaged(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        words = places.reshape(len(edit.target_inputs), -1)
        return {
            layer: each
            if each.ndim == 2
            else torch.stack([one[at % len(one)].mean(0) for one, at in zip(each, words, strict=True)])
            for layer, each in outputs.items()
        }

    return replace(edit, values=averaged(edit.values), keys=averaged(edit.keys))


def error(
    edit: Edit, encodings: Tensor, named: Tensor, projected: Projected, held: Edit | None = None, places: Tensor | None = None
) -> tuple[float, float]:
    """Return the LoRA's error against the gated concepts: ‖h_static - h_gated‖ / ‖h_gated - W e‖, mean over layers, for K and V.

    0 is the gated (exact) edit itself, 1 the distance of the unedited model from it. Over whole prompts, much of the error comes
    from the padding after the words, where gates are slightly open and encodings are unlike i*.

    Args:
        edit: the concepts.
        encodings: [P, N, d], of prompts that contain the trigger words.
        named: [P, N, J], above 0 at tokens that trigger words can have influenced.
        projected: projections of the edit's `vectors`.
        held: the static edit that the LoRA contains, if it differs from that of `edit`.
        places: int [P], the only position of each prompt that counts; all of them by default.

    Raises:
        PerfusionError: no gate opens in these prompts, so there is nothing to compare with.
    """
    static = replace(held or edit, mode=STATIC)
    part = ... if places is None else (torch.arange(len(places)), places)
    by_static, gated = (one.coefficients(encodings, named) for one in (static, replace(edit, mode=EXACT)))
    if not gated.any():
        raise PerfusionError(
            "The concept's gate never opens, so there is nothing to export; give it a lower bias with Concept Settings."
        )
    found = []
    for layer in edit.values:
        made = (corrections(one, by, layer, projected) for one, by in ((static, by_static), (edit, gated)))
        found.append([float((one - other)[part].norm() / other[part].norm()) for one, other in zip(*made, strict=True)])
    keys, values = torch.tensor(found).mean(0).tolist()
    return keys, values


def embedding(word: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a textual-inversion file, named after the encoders, or `emb_params` if there is only one encoder."""
    tensors = {name: vectors.float() for name, vectors in word.items()}
    return tensors if len(tensors) > 1 else {"emb_params": next(iter(tensors.values()))}


def metadata(stack: Stack, words: list[str], kind: str) -> dict[str, str]:
    """Return a file's metadata, as ModelSpec 1.0.1 and the host's model browser expect it.

    Args:
        stack: the concepts.
        words: the text that stands for each of them in prompts.
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
