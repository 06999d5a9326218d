"""The gated rank-1 edit of cross-attention projections (Eq. 3, §4.2, and appendix B for several concepts).

Everything but W e is a low-rank correction whose coefficients depend only on the encoding e. They are computed once per encoding
and shared by all layers; W e itself, and W applied to a target input, are computed by the host's own Linear.

With sim_j(e) = ⟨i*_j, e⟩ / ‖i*_j‖², ⟨a, b⟩ = aᵀ C⁻¹ b, and the gate g_j = σ((sim_j(e) - β_j) / τ_j), an edited projection is

    h = W e - Σ_j remove_j W i*_j + Σ_j add_j o*_j

Shapes: B prompts, N tokens, J concepts, d the width of the encoding, m that of a projection. Coefficients are float32, also for
encodings in half precision; float64 stays float64.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

EXACT = "exact"
PAPER = "paper"
APPROXIMATE = "approximate"
STATIC = "static"
MODES = (EXACT, PAPER, APPROXIMATE, STATIC)
"""How the i* components are removed from the encoding.

`paper`: always and completely, through a basis of the span of all i* (appendix B; Eq. 3 with one concept).
`approximate`: always, each concept independently: e - Σ_j sim_j i*_j. With overlapping concepts this removes too much.
`exact` (beyond the paper): only to the extent that gates are open, so that a closed gate leaves the layer untouched; gates open
only at tokens that a trigger word in the prompt can have influenced.
`static`: no gate, the rank-1 edit of the weights alone (ROME), which is what a LoRA can represent. It is scaled by the gate at
the concept's own encoding, g*_j = σ((1 - β_j) / τ_j): h = W e + Σ_j c_j s_j g*_j (o*_j - W i*_j), with the strength s_j and with
c such that the term s_j g*_j (o*_j - W i*_j) applies fully at i*_j and not at the other i*; c = sim(e) with one concept. The edit
acts in every prompt to the extent that its encodings resemble i*, with or without a trigger word. Training supports it like any
other mode: an exported LoRA should use outputs that were learned without a gate.
"""

GATE_CUTOFF = 1e-3
"""In exact mode, gates below this value are set to exactly 0."""

OVERLAP_SHRINKAGE = 2.5e-7
"""Relative reduction of the overlaps between concepts, which keeps the system solvable when two concepts coincide."""

PINV_RTOL = 1e-4
"""In static mode, singular values of the overlap matrix below this share of its largest are dropped: concepts whose i* differ by
less than about two percent then share their edits, instead of requiring an unbounded edit between them."""

OWN_SIMILARITY = 0.4
"""Where a concept's own tokens are unknown, tokens of lower similarity than this are not taken for them. A concept's own word comes
to about 1 times its weight in the prompt; unrelated words stay below 0.3."""

OWN_LEAD = 0.25
"""A token is taken for a concept's own word only if it is closer to the target input than to the superclass's encoding, by this
share of the distance between the two. Distances are differences of cosines, which a word's weight in the prompt does not change.
"""

Project = Callable[[Tensor], Tensor]
"""The host's own projection: [n, d] -> [n, m]."""


def promote_dtypes(*tensors: Tensor) -> list[Tensor]:
    """Return the tensors in their common promoted dtype, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


def similarity(encoding: Tensor, probes: Tensor) -> Tensor:
    """Return sim_j(e), [..., J], for encodings [..., d] and the concepts' `probes` C⁻¹ i*_j / ‖i*_j‖² [J, d] (§4.2)."""
    with torch.autocast(encoding.device.type, enabled=False):
        encoding, probes = promote_dtypes(encoding, probes)
        return encoding @ probes.T


def gate(sim: Tensor, bias: Tensor, temperature: Tensor) -> Tensor:
    """Return σ((sim - β) / τ), [..., J] (Eq. 3)."""
    sim, bias, temperature = promote_dtypes(sim, bias, temperature)
    return torch.sigmoid((sim - bias) / temperature)


def removal(sim: Tensor, weight: Tensor, overlap: Tensor) -> Tensor:
    """Return the coefficients [..., J] of the i* that remove the share `weight` of each concept's component from an encoding.

    With all weights 1, the remainder has no component along any i* (appendix B: the projection onto the complement of their
    span); with weights of 0 and 1, this holds for the concepts of weight 1 only; with one concept, the result is weight · sim.
    Concepts that coincide share the removal.

    Args:
        sim: [..., J].
        weight: [J] or [..., J], each between 0 and 1.
        overlap: [J, J], overlap[j, k] = sim_j(i*_k); ones on its diagonal.
    """
    if overlap.shape[0] == 1:
        return weight * sim
    sim, weight, overlap = promote_dtypes(sim, weight, overlap)
    one = torch.eye(len(overlap), dtype=overlap.dtype, device=overlap.device)
    system = one + (1 - OVERLAP_SHRINKAGE) * (overlap - one) * weight.unsqueeze(-2)
    return weight * torch.linalg.solve(system, sim.unsqueeze(-1)).squeeze(-1)


def by_position(add: Tensor, outputs: Tensor) -> Tensor:
    """Return Σ_j add_j o*_j[n] at every token n, [B, N, m], for target outputs [J, P, m] that differ by token position.

    A prompt of more than P tokens consists of sections of P tokens, each encoded separately; positions count within a section.
    """
    places = torch.arange(add.shape[1], device=add.device) % outputs.shape[1]
    return torch.einsum("bnj,jnm->bnm", add, outputs[:, places])


@dataclass(frozen=True)
class Coefficients:
    """The coefficients of an encoding, shared by all layers: [B, N, J] each."""

    remove: Tensor
    add: Tensor
    of_keys: "Coefficients | None" = None
    """Those of keys; None if they are the same as those of values."""

    @property
    def keys(self) -> "Coefficients":
        """The coefficients of keys."""
        return self.of_keys or self

    def any(self) -> bool:
        """Return whether any layer's output changes."""
        return bool(self.remove.any() or self.add.any())


@dataclass(frozen=True)
class Edit:
    """J concepts in the form in which they edit the layers.

    Attributes:
        mode: one of MODES.
        target_inputs: i*, float32 [J, d].
        probes: C⁻¹ i* / ‖i*‖², float32 [J, d].
        superclass_encodings: [J, d]; their projections by W_K are the target outputs of locked keys (local key-locking, §4.1).
        bias: β, float32 [J].
        temperature: τ, float32 [J].
        strength: share of the edit that is applied, between 0 and 1, float32 [J].
        values: layer name -> o*_V, [J, m], or [J, P, m] if they differ by token position (see `by_position`).
        keys: layer name -> o*_K, likewise, for layers in which any concept's keys were trained; rows of the others are ignored.
        keys_trained: layer name -> bool [J], for the same layers: whether a concept's keys were trained there.
        keys_at_word: bool [J], whether a concept's keys are edited only at its own word, where its similarity is at least
            OWN_SIMILARITY; static mode, which has no gates, ignores it. None if this applies to no concept.
        key_lock: how far trained keys stay locked to the superclass, [J]: 0 uses them as learned, 1 the locked ones. None is 0 for
            all concepts.
    """

    mode: str
    target_inputs: Tensor
    probes: Tensor
    superclass_encodings: Tensor
    bias: Tensor
    temperature: Tensor
    strength: Tensor
    values: Mapping[str, Tensor]
    keys: Mapping[str, Tensor] = field(default_factory=dict)
    keys_trained: Mapping[str, Tensor] = field(default_factory=dict)
    keys_at_word: Tensor | None = None
    key_lock: Tensor | None = None

    def _exact(self) -> tuple[Tensor, Tensor]:
        """Return the probes and sim_j(i*_k), both float64 on the CPU, since not every device supports float64."""
        probes = self.probes.cpu().double()
        return probes, probes @ self.target_inputs.cpu().double().T

    def _rounded(self, exact: Tensor) -> Tensor:
        return exact.to(self.probes.device, promote_dtypes(self.probes)[0].dtype)

    @cached_property
    def overlap(self) -> Tensor:
        """sim_j(i*_k), [J, J]."""
        return self._rounded(self._exact()[1])

    @cached_property
    def static_probes(self) -> Tensor:
        """[J, d]: row j has the dot product 1 with i*_j and 0 with every other i* (the smallest such row in the metric).

        Concepts of strength 0 have rows of 0 and are ignored. For concepts that coincide, the product 1 is divided among them.
        """
        probes, overlap = self._exact()
        used = (self.strength > 0).cpu().double()
        return self._rounded(torch.linalg.pinv(overlap * used * used[:, None], rtol=PINV_RTOL) @ probes)

    @cached_property
    def static_share(self) -> Tensor:
        """s_j g*_j, [J]: the strength times the gate at the concept's own encoding, where sim is 1."""
        return self.strength * gate(torch.ones_like(self.bias), self.bias, self.temperature)

    @property
    def vectors(self) -> Tensor:
        """The vectors that every layer projects, [2J, d]: the target inputs, then the superclass encodings."""
        return torch.cat([self.target_inputs, self.superclass_encodings])

    def to(self, device: torch.device | str) -> "Edit":
        """Return the same edit with its tensors on `device`."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device)
            return {k: v.to(device) for k, v in value.items()} if isinstance(value, Mapping) else value

        return Edit(**{each.name: move(getattr(self, each.name)) for each in fields(self)})

    def gates(self, encoding: Tensor) -> Tensor:
        """Return each concept's own gate at every token, [B, N, J]."""
        return gate(similarity(encoding, self.probes), self.bias, self.temperature)

    def own_tokens(self, encoding: Tensor) -> Tensor:
        """Return which tokens are each concept's own word, judged from the encoding only, bool [B, N, J].

        The superclass's own word has similarities of up to 0.7, more where a prompt emphasises it, so similarity alone does not
        distinguish the two; but it is closer to the superclass's encoding than to the concept's.
        """
        with torch.autocast(encoding.device.type, enabled=False):
            encoding, inputs, supers = promote_dtypes(encoding, self.target_inputs, self.superclass_encodings)
            unit, inputs, supers = (nn.functional.normalize(each, dim=-1) for each in (encoding, inputs, supers))
            lead = unit @ inputs.T - unit @ supers.T
            apart = 1 - (inputs * supers).sum(1)
        return (similarity(encoding, self.probes) >= OWN_SIMILARITY) & (lead > OWN_LEAD * apart)

    def influenced(self, encoding: Tensor, section: int) -> Tensor:
        """Return which tokens each concept's word can have influenced, judged from the encoding only, float [B, N, J].

        The text encoders are causal: these are the word's own tokens and those after it in the same section. An encoding that is
        not made of sections of `section` tokens counts as a single one.
        """
        own = self.own_tokens(encoding).float()
        length = section if own.shape[1] % section == 0 else own.shape[1]
        return torch.cat([part.cumsum(1) for part in own.split(length, 1)], 1).clamp(max=1)

    def influenced_both_ways(self, encoding: Tensor) -> Tensor:
        """Return the same as `influenced` for text encoders that are not causal: a word reaches all of its prompt.

        Identically encoded padding is not part of it: the last tokens that are equal, if there are several.
        """
        own = self.own_tokens(encoding).any(1, keepdim=True).float()
        ending = (encoding == encoding[:, -1:]).all(2).int().flip(1).cumprod(1).flip(1)
        padding = ending * (ending.sum(1, keepdim=True) > 1)
        return own * (1 - padding)[..., None]

    def coefficients(self, encoding: Tensor, named: Tensor | None = None) -> Coefficients:
        """Return the coefficients for an encoding [B, N, d].

        Args:
            encoding: [B, N, d], any float dtype.
            named: used in exact mode only, [B, N, J], above 0 where the concept's trigger word can have influenced the token;
                None if that is unknown, in which case the gates alone decide.
        """
        if self.mode == STATIC:
            share = self.static_share * similarity(encoding, self.static_probes)
            return Coefficients(share, share)
        sim = similarity(encoding, self.probes)
        opened = gate(sim, self.bias, self.temperature)
        if self.mode == EXACT:
            opened = torch.where(opened >= GATE_CUTOFF, opened, 0)
            if named is not None:
                opened = torch.where(named > 0, opened, 0)
        return Coefficients(*self._shares(sim, opened, self.strength), self._key_coefficients(sim, opened))

    def _key_coefficients(self, sim: Tensor, opened: Tensor) -> Coefficients | None:
        """Return the coefficients of keys if they differ: 0 outside of a concept's own word where `keys_at_word` is set."""
        if self.keys_at_word is None:
            return None
        edited = (sim >= OWN_SIMILARITY) | ~self.keys_at_word
        return Coefficients(*self._shares(sim, opened, self.strength * edited))

    def _shares(self, sim: Tensor, opened: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
        """Return how much of i* is removed and how much of o* is added, [B, N, J] each; `strength` is [J] or [B, N, J]."""
        add = strength * opened
        if self.mode == APPROXIMATE:
            return strength * sim, add
        return removal(sim, add if self.mode == EXACT else strength, self.overlap), add

    def value_correction(self, layer: str, by: Coefficients, project: Project) -> Tensor:
        """Return the correction that is added to W_V e of a layer, [B, N, m]."""
        return self._correction(by, project(self.target_inputs), self.values[layer])

    def key_correction(self, layer: str, by: Coefficients, project: Project) -> Tensor:
        """Return the correction that is added to W_K e of a layer, [B, N, m].

        o*_K is W_K applied to the superclass encoding (§4.1); if the keys were trained, it is between that and what was learned.
        """
        count = len(self.target_inputs)
        projected = project(self.vectors)
        targets = projected[count:]
        if layer in self.keys:
            keys = self.keys[layer]
            rows = (count, -1) if keys.ndim == 2 else (count, 1, -1)
            keys, locked = promote_dtypes(keys, targets.reshape(rows))
            if self.key_lock is not None:
                keys = torch.lerp(keys, locked, self.key_lock.to(keys.dtype).reshape(rows))
            targets = torch.where(self.keys_trained[layer].reshape(rows), keys, locked)
        return self._correction(by.keys, projected[:count], targets)

    @staticmethod
    def _correction(by: Coefficients, projected_inputs: Tensor, target_outputs: Tensor) -> Tensor:
        with torch.autocast(by.add.device.type, enabled=False):
            add, outputs, remove, inputs = promote_dtypes(by.add, target_outputs, by.remove, projected_inputs)
            added = add @ outputs if outputs.ndim == 2 else by_position(add, outputs)
            return added - remove @ inputs
