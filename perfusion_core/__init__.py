"""Perfusion: Key-Locked Rank One Editing for Text-to-Image Personalization (Tewel et al. 2023, arXiv 2305.01644).

The method in plain torch, independent of any host. `gated_edit` implements the edited projections, `covariance` their metric,
`concept` the learned concept, `concept_file` the content of its file, `stack` the combination of several concepts, `training` the
training loop, `judgement` quality measures of a concept, and `attention_maps` operations on attention maps. `lora_export` and
`foreign_formats` convert to and from other formats; `torch_archive` and `torch_pickle` read files of torch.save, `safe_files` reads
and writes all others.
"""


class PerfusionError(ValueError):
    """Invalid input; the message is one sentence for the user: what was expected, what was given, what to do."""
