"""Compare the judge for real checkpoints with transformers' CLIP on the same file, in a separate process that enters the host.

    python -m benchmarks.fidelity.inside_clip COMFYUI CLIP PICTURE ...

The pictures must have CLIP's input size, 224 x 224 pixels, so that resizing is not part of the comparison. Prints the similarities
by both, each [image and text similarity, prompts, pictures], as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.fidelity import real
from benchmarks.fidelity.methods import Use
from benchmarks.fidelity.trials import Prompt, Trial
from benchmarks.lab import read

PROMPTS = (Prompt("a photo of a {}"), Prompt("a {} at night, in the rain"))
MEAN, SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class EachOnce(real.Clip):
    """Embeds a batch of images once, although all prompts have the same ones."""

    def __init__(self, comfyui: Path, file: Path) -> None:
        super().__init__(comfyui, file)
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def images(self, pictures: torch.Tensor) -> torch.Tensor:
        """See `real.Clip.images`."""
        for given, embedded in self.seen:
            if given is pictures:
                return embedded
        self.seen.append((pictures, super().images(pictures)))
        return self.seen[-1][1]


def main(comfyui: str, clip: str, *pictures: str) -> None:
    """Print the similarities by both implementations."""
    first, *others = map(Path, pictures)
    shown = torch.stack([read(path) for path in (first, *others)])
    trial = Trial(("mine", "teddy"), None, Use(""), (0.0,), PROMPTS)
    # The first picture takes the role of the training pictures, the others that of generated images.
    bed = real.RealBed("", shown.shape[1], (first,), EachOnce(Path(comfyui), Path(clip)))
    scores = bed.judge(trial, [shown[1:]] * len(PROMPTS))
    print(json.dumps([[scores.likeness.tolist(), scores.text.tolist()], by_transformers(Path(comfyui), Path(clip), shown)]))


def by_transformers(comfyui: Path, file: Path, shown: torch.Tensor) -> list:
    """Return the same similarities as computed by transformers."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    vision = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096, "patch_size": 14}
    text = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "eos_token_id": 49407,
    }
    # Without the random weights that a new model gets, which take longer than the comparison and are then replaced.
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=768)).eval()
    model.to_empty(device="cpu")
    with torch.no_grad():
        for positions in model.buffers():
            positions.copy_(torch.arange(positions.shape[-1]).expand_as(positions))
    missing = model.load_state_dict({name: value.float() for name, value in load_file(file).items()}, strict=False).missing_keys
    if any(not name.endswith(("position_ids", "logit_scale")) for name in missing):
        raise ValueError(f"the seeded CLIP lacks {missing[:3]}")
    tokenizer = CLIPTokenizer.from_pretrained(comfyui / "comfy" / "sd1_tokenizer")
    asked = tokenizer([prompt.text.format("teddy") for prompt in PROMPTS], padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        pixels = (shown.movedim(3, 1) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(SPREAD)[:, None, None]
        found = model(**asked, pixel_values=pixels)
    images, texts = found.image_embeds, found.text_embeds
    drawn = images[1:]
    return [(drawn @ images[0]).expand(len(PROMPTS), -1).tolist(), (texts @ drawn.T).tolist()]


if __name__ == "__main__":
    main(*sys.argv[1:])
