"""Perfusion: Key-Locked Rank One Editing for Text-to-Image Personalization (Tewel et al. 2023, arXiv 2305.01644).

The method in torch alone, without any host. `gated_edit` holds the mathematics of the edited projections, `covariance` the metric
that they measure in, `concept` what is learned, `concept_file` its file, `stack` several concepts together, `training` the loop
that learns one, `judgement` how good it is, `attention_maps` what can be made of attention. `lora_export` and `foreign_formats`
are the ways to and from other formats, `safe_files` reads and writes.
"""


class PerfusionError(ValueError):
    """Input that cannot be used; the message is one sentence for the user: what was expected, what came, what to do."""
