"""Trials: train a concept by a recipe, generate images at several values of its dial, and judge them. Nothing is done twice."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.fidelity.concepts import Concept
from benchmarks.fidelity.fine_tune import Job
from benchmarks.fidelity.methods import FOLLOWED, LORA, PERFUSION, TUNED, Recipe, Use, rare, teach, use
from benchmarks.lab import SAMPLING, Lab, draw
from perfusion_core.concept import Concept as File
from perfusion_core.prompts import TEMPLATES
from perfusion_core.quantization import INT8, UINT4
from perfusion_core.safe_files import write_bytes
from scripts.harness.graphs import Graph, Link
from scripts.setup import bootstrap

T = TypeVar("T")
SEEDS = 4
SCORES = ("likeness", "text", "identity")
"""The parts of `Scores`."""
ROUNDED = {8: INT8, 4: UINT4}
"""Maps the bits of a concept file's numbers to the precision with which it is saved."""
FOLDERS = {PERFUSION: "perfusion", LORA: "loras", TUNED: "checkpoints"}
"""Maps what trains to the folder of models that its files are loaded from."""
PRIORS = 8
"""Pictures that the base draws of the superclass, for each training prompt, for a fine-tune with a prior loss."""
SAMPLES, SAMPLE = 32, 2**18
"""Number of evenly spaced samples of a checkpoint, and their length in bytes, that identify it."""


@dataclass(frozen=True)
class Prompt:
    """A prompt with `{}` for the concept, and what it asks for."""

    text: str
    place: str = ""
    """The place that it asks for, if the judges know it."""
    mood: str = ""
    """The mood that it asks for."""
    carries: bool = False
    """Whether it asks for a balloon."""
    other: str = ""
    """The kind of a second character that it asks for, on the right."""

    @property
    def wide(self) -> bool:
        """Whether its images are two squares side by side."""
        return bool(self.other)


@dataclass(frozen=True)
class Trial:
    """A concept, how it is trained and used, and the values of the dial. Without a recipe, it is the plain word on the base."""

    concept: Concept
    recipe: Recipe | None
    use: Use
    values: tuple[float, ...]
    prompts: tuple[Prompt, ...]
    seed: int = 0
    at: int = 0
    """The training step whose concept is used; 0 for the final result."""

    def name(self) -> str:
        """Return the name of the trained file."""
        return self.recipe.key(self.concept, self.seed) if self.recipe else "-".join(("plain", *self.concept))

    def key(self, value: float) -> str:
        """Return the store's key for the scores at a value of the dial."""
        how = [self.use.told(), [prompt.text for prompt in self.prompts], SEEDS, SAMPLING]
        at = f"/{self.at}" if self.at else ""
        return f"{self.name()}{at}/{hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:8]}/{value:g}"


@dataclass(frozen=True)
class Scores:
    """The judges' scores of images, [prompts, seeds] each, from 0 to 1."""

    likeness: np.ndarray
    """Likeness to the concept."""
    text: np.ndarray
    """Fidelity to the prompt, apart from the concept's own looks."""
    identity: np.ndarray
    """Whether the concept is recognised, 1 or 0; the likeness itself where nothing can recognise it."""


class Bed(Protocol):
    """The setting of trials: a checkpoint, training pictures, and judges."""

    checkpoint: str
    side: int
    """Side in pixels of an image, or of each square of a wide one."""

    def pictures(self, folder: Path, concept: Concept, recipe: Recipe) -> list[str]:
        """Write a recipe's training pictures into `folder`, or choose pictures that the input folder already contains.

        The alpha channel is the mask.

        Returns:
            The pictures' names in the folder.
        """

    def judge(self, trial: Trial, drawn: list[Tensor]) -> Scores:
        """Score the images [seeds, side, side or 2 side, 3] of each of the trial's prompts."""


class Store:
    """Measured scores, kept in a JSON file."""

    def __init__(self, path: Path) -> None:
        self.path, self.writing = path, threading.Lock()
        self.kept: dict[str, dict] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def belongs_to(self, checkpoint: Path) -> str:
        """Return a short digest of samples of the checkpoint; SystemExit if the store's scores are those of another checkpoint."""
        size, found = checkpoint.stat().st_size, hashlib.sha256()
        with checkpoint.open("rb") as file:
            for i in range(SAMPLES):
                file.seek(max(0, size - SAMPLE) * i // (SAMPLES - 1))
                found.update(file.read(SAMPLE))
        short = found.hexdigest()[:12]
        if self.kept.setdefault("checkpoint", {"digest": short})["digest"] != short:
            raise SystemExit(f"{self.path} holds scores of another checkpoint than {checkpoint}; move it away to measure again.")
        return short

    def get(self, trial: Trial, value: float) -> Scores | None:
        """Return the scores of a trial at a value, or None if they were not measured."""
        found = self.kept.get(trial.key(value))
        return None if found is None else Scores(**{name: np.array(found[name], dtype=float) for name in SCORES})

    def missing(self, trial: Trial) -> list[float]:
        """Return the values that were not measured yet."""
        return [value for value in trial.values if trial.key(value) not in self.kept]

    def put(self, trial: Trial, found: Mapping[float, Scores]) -> None:
        """Store scores of a trial, rounded to three digits."""

        def rounded(scores: Scores) -> dict:
            return {name: getattr(scores, name).astype(float).round(3).tolist() for name in SCORES}

        self.keep({trial.key(value): rounded(scores) for value, scores in found.items()})

    def keep(self, found: Mapping[str, dict]) -> None:
        """Store any values under their keys; the file is written atomically."""
        with self.writing:
            self.kept |= found
            lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(self.kept.items()))
            write_bytes(self.path, ("{\n" + lines + "\n}\n").encode())


@functools.cache
def commit() -> str:
    """Return the short hash of the commit that runs; with changes that are not committed, it ends in "-dirty"."""
    git = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(git, cwd=bootstrap.ROOT, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def room(digest: str) -> Path:
    """Return the base directory in which the fidelity benchmark keeps what it trains on a checkpoint of this digest."""
    return bootstrap.CACHE / f"fidelity-{digest}"


def bytes_key(trial: Trial) -> str:
    """Return the store's key for the size of a trial's file."""
    return f"bytes/{trial.name()}"


class Workshop:
    """Runs trials in parallel on servers that share a base directory."""

    def __init__(self, labs: Sequence[Lab], bed: Bed, store: Store, until: float = float("inf")) -> None:
        """`until` is the time, as by `time.time`, after which nothing new is started."""
        self.labs, self.bed, self.store, self.until = labs, bed, store, until
        self.part = ""
        """The part that is measured, under whose name the store keeps the time."""
        self.timing = threading.Lock()
        self.teaching: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    @property
    def lab(self) -> Lab:
        """The lab for work that is not done in parallel."""
        return self.labs[0]

    def base(self, graph: Graph) -> tuple[Link, Link, Link]:
        """Add the nodes that load the base, and return its MODEL, CLIP and VAE."""
        return graph.checkpoint(self.bed.checkpoint)

    def in_time(self) -> bool:
        """Whether something new may be started."""
        return time.time() < self.until

    def run(self, trials: Iterable[Trial]) -> bool:
        """Measure what is missing of these trials; return False if time ran out."""
        return self.side_by_side(self.measure, [trial for trial in trials if self.store.missing(trial)])

    def side_by_side(self, done: Callable[[Lab, T], bool], jobs: Iterable[T]) -> bool:
        """Run jobs in parallel, each with a free lab; return whether `done` was True for all of them."""
        free: SimpleQueue[Lab] = SimpleQueue()
        for lab in self.labs:
            free.put(lab)

        def one(job: T) -> bool:
            lab, start = free.get(), time.time()
            try:
                return done(lab, job)
            finally:
                self.spent(time.time() - start)
                free.put(lab)

        with ThreadPoolExecutor(len(self.labs)) as pool:
            return all(list(pool.map(one, jobs)))

    def spent(self, seconds: float) -> None:
        """Add to the time that the part has taken, and store the commit that it was measured at."""
        if not self.part:
            return
        with self.timing:
            before = self.store.kept.get(f"took/{self.part}", {}).get("seconds", 0)
            self.store.keep({f"took/{self.part}": {"seconds": round(before + seconds), "commit": commit()}})

    def measure(self, lab: Lab, trial: Trial) -> bool:
        """Measure what is missing of a trial; return False if time ran out."""
        missing = self.store.missing(trial)
        if not missing:
            return True
        if not self.in_time():
            return False
        start = time.time()
        if trial.recipe:
            self.taught(trial, lab)
        middle = time.time()
        drawn = self.draw(trial, missing, lab)
        self.store.put(trial, {value: self.bed.judge(trial, each) for value, each in zip(missing, drawn, strict=True)})
        print(f"{trial.name()}: taught {middle - start:.0f} s, drawn {time.time() - middle:.0f} s", flush=True)
        return True

    def taught(self, trial: Trial, lab: Lab | None = None) -> Path:
        """Return the path, within its models folder, of the file trained by the trial's recipe; train it if it does not exist."""
        lab, recipe, name = lab or self.lab, trial.recipe, trial.name()
        folder = lab.server.base / "models" / FOLDERS[recipe.teacher]
        file = Path(f"{name}.safetensors")
        with self.teaching[name]:
            if not (folder / file).exists():
                self.teach(trial, lab, folder / file)
        if trial.at:
            (file,) = (path.relative_to(folder) for path in folder.glob(f"steps/{name}-*/{trial.at:05}.safetensors"))
        return file

    def teach(self, trial: Trial, lab: Lab, file: Path) -> None:
        """Train the trial's concept by its recipe."""
        recipe = trial.recipe
        names = self.shown(trial.concept, recipe)
        file.parent.mkdir(exist_ok=True)
        start = time.time()
        if recipe.teacher == TUNED:
            self.fine_tuned(trial, lab, names, file)
        else:
            self.taught_by_a_node(trial, lab, names, file)
        self.store.keep({bytes_key(trial): {"bytes": file.stat().st_size, "seconds": round(time.time() - start)}})

    def taught_by_a_node(self, trial: Trial, lab: Lab, names: list[str], file: Path) -> None:
        """Train with the pack's or the host's own node on the pictures with these names in the input folder."""
        base, recipe, graph = lab.server.base, trial.recipe, Graph()
        teach(graph, self.base(graph), recipe, trial.concept[1], names, self.bed.side, trial.seed, file.stem)
        lab.server.run(graph.nodes, timeout=36000)
        if recipe.teacher == LORA:
            (made,) = (base / "output" / "loras").glob(f"{file.stem}_*.safetensors")
            shutil.move(made, file)

    def fine_tuned(self, trial: Trial, lab: Lab, names: list[str], file: Path) -> None:
        """Fine-tune all weights on the pictures with these names in the input folder."""
        base, word, widgets = lab.server.base, trial.concept[1], trial.recipe.all_widgets()
        drawn = self.superclass_pictures(lab, word) if widgets["prior"] else []
        job = Job(
            str(lab.server.setup.comfyui), str(base / "models" / "checkpoints" / self.bed.checkpoint), str(file),
            [str(base / "input" / name) for name in names], [str(path) for path in drawn], rare(word), word, self.bed.side,
            trial.seed, **widgets,
        )  # fmt: skip
        job.run(lab.server.setup.python, base, bootstrap.ROOT)

    def superclass_pictures(self, lab: Lab, word: str) -> list[Path]:
        """Return the pictures of the plain word for a prior loss, PRIORS for each training prompt; the base draws them once."""
        folder = lab.server.base / "input" / f"prior-{word}"
        if not folder.exists():
            graph, links = Graph(), []
            model, clip, vae = self.base(graph)
            negative = graph.text(clip, "")
            for i, template in enumerate(TEMPLATES):
                positive = graph.text(clip, template.format(word))
                links.append(draw(graph, model, positive, negative, vae, 5000 + 100 * i, PRIORS, self.bed.side)[1])
            with tempfile.TemporaryDirectory(dir=lab.server.base) as scratch:
                for i, picture in enumerate(torch.cat(lab.pictures(graph, *links))):
                    Image.fromarray((picture.numpy() * 255).round().astype(np.uint8)).save(Path(scratch) / f"{i:03}.png")
                folder.parent.mkdir(exist_ok=True)
                made = Path(shutil.copytree(scratch, f"{folder}.{threading.get_ident()}"))
                with contextlib.suppress(OSError):  # another server was quicker
                    made.rename(folder)
                shutil.rmtree(made, ignore_errors=True)
        return sorted(folder.glob("*.png"))

    def shown(self, concept: Concept, recipe: Recipe) -> list[str]:
        """Put a recipe's training pictures into the input folder, each atomically, and return their names there."""
        base = self.lab.server.base
        with tempfile.TemporaryDirectory(dir=base) as scratch:
            names = self.bed.pictures(Path(scratch), concept, recipe)
            for made, target in ((Path(scratch) / name, base / "input" / name) for name in names):
                if made.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    made.replace(target)
        return names

    def draw(self, trial: Trial, values: Sequence[float], lab: Lab | None = None) -> list[list[Tensor]]:
        """Generate, for each value, images [seeds, side, side or 2 side, 3] of each prompt."""
        lab, graph, links = lab or self.lab, Graph(), []
        file = self.taught(trial, lab) if trial.recipe else None
        if file and trial.use.bits in ROUNDED:
            file = self.rounded(lab, file, trial.use.bits)
        for value in values:
            links += self.pictures(graph, trial, file, value)
        drawn = iter(lab.pictures(graph, *links))
        return [[next(drawn) for _ in trial.prompts] for _ in values]

    def rounded(self, lab: Lab, file: Path, bits: int) -> Path:
        """Write a quantized copy of a concept file, with this many bits, and return its path within its folder."""
        folder, name = lab.server.base / "models" / "perfusion", Path(f"{bits}-bits") / file
        (folder / name).parent.mkdir(exist_ok=True)
        File.load(folder / file).save(folder / name, ROUNDED[bits])
        return name

    def pictures(self, graph: Graph, trial: Trial, file: Path | None, value: float) -> list[Link]:
        """Add the nodes that generate images of each prompt; the noise is the same for every method."""
        model, clip, vae = self.base(graph)
        base, links = (model, clip), []
        for i, prompt in enumerate(trial.prompts):
            if i == 0 or trial.use.dial == FOLLOWED:
                model, clip, name = self.ready(graph, base, trial, file, value, prompt.text)
                negative = graph.text(clip, "")
            text = prompt.text.format(name)
            if trial.use.lock == "global":
                positive: Link = [graph.add("PerfusionTextEncode", clip=clip, text=text), 0]
            else:
                positive = graph.text(clip, text)
            wide = 2 * self.bed.side if prompt.wide else 0
            links.append(draw(graph, model, positive, negative, vae, 7000 + 100 * i, SEEDS, self.bed.side, wide)[1])
        return links

    def ready(
        self, graph: Graph, base: tuple[Link, Link], trial: Trial, file: Path | None, value: float, prompt: str
    ) -> tuple[Link, Link, str]:
        """Return the MODEL and the CLIP for sampling, and the text that names the concept."""
        word = trial.concept[1]
        if trial.recipe is None or file is None:
            return *base, word
        return use(graph, base, trial.recipe, trial.use, file, word, value, self.bed.side, prompt)
