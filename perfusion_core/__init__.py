"""Perfusion: Key-Locked Rank One Editing for Text-to-Image Personalization (Tewel et al. 2023, arXiv 2305.01644).

The method in plain torch, independent of any host. `gated_edit` implements the edited projections, `covariance` their metric,
`concept` the learned concept, `concept_file` the content of its file, `schedule` the part of a run in which it acts, `stack` the
combination of several concepts, `training` the training loop, `judgement` quality measures of a concept, and `attention_maps`
operations on attention maps. `lora_export` and
`foreign_formats` convert to and from other formats; `torch_archive` and `torch_pickle` read files of torch.save, `safe_files` reads
and writes all others; `jpeg` looks at a preview's header, and `printable` makes text from outside safe to show.
"""

import logging

from .printable import printable, printable_record

# Added here so that the filter is in place before any module of the pack logs.
logging.getLogger("perfusion").addFilter(printable_record)


class PerfusionError(ValueError):
    """Invalid input; the message is one sentence for the user: what was expected, what was given, what to do.

    Its arguments are the message's lines, of which there is usually one. They are made printable, whatever the input was.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*(printable(line) for line in lines))

    def __str__(self) -> str:
        return "\n  ".join(self.args)
