"""Perfusion: Key-Locked Rank One Editing for Text-to-Image Personalization (Tewel et al. 2023, arXiv 2305.01644).

The method in torch alone, without any host. `edit` holds the mathematics of the edited projections, `covariance` the metric
that they measure in, `concept` what is learned and its file, `training` the loop that learns it, `prompts` the words, `maps`
attention maps, `foreign` the files of other implementations, `export` stock files of a concept, `following` how far prompts are
followed, `files` reading and writing.
"""


class PerfusionError(ValueError):
    """Input that cannot be used; the message is one sentence for the user: what was expected, what came, what to do."""
