"""Measure what becomes slower with a library of five thousand concepts.

    python -m benchmarks.performance.library [--concepts N] [--rounds N]

Alternates between two servers, one with the demo's two concepts and one with thousands more, each file with its preview. Times are
medians as seen by a client. Writes `results/library.md`.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import safetensors.torch

from benchmarks.lab import RESULTS
from demo.individuals import STYLES
from perfusion_core import safe_files
from perfusion_core.concept_file import READABLE
from scripts.harness.graphs import Graph
from scripts.harness.server import Server
from scripts.setup import bootstrap, steps

MONSTER = "demo-monster.safetensors"
ASKED = 100
"""Number of the library's files that are requested one by one."""
WORDS = "/perfusion/words"


def fill(folder: Path, count: int) -> int:
    """Write copies of the demo's monster with other words; return the size in bytes of all concepts in the folder."""
    tensors, metadata = safe_files.read(folder / MONSTER, 2**20, READABLE)
    kinds = list(STYLES)
    for i in range(count):
        told = metadata | {"modelspec.trigger_phrase": f"<thing-{i}>", "superclass": kinds[i % len(kinds)]}
        (folder / f"concept_{i:05}.safetensors").write_bytes(safetensors.torch.save(tensors, told))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def timed(act: Callable[[], object], times: int = 5) -> float:
    """Return the median duration of a call in milliseconds."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        act()
        found.append(time.perf_counter() - start)
    return 1000 * median(found)


def bytes_read(server: Server) -> int:
    """Return the number of bytes that the server has read so far, from files and elsewhere."""
    assert server.process is not None
    lines = Path(f"/proc/{server.process.pid}/io").read_text().splitlines()
    return int(lines[0].split()[1])


def graph(seed: int) -> dict:
    """Return a graph that loads a concept."""
    made = Graph()
    made.add("PreviewAny", source=[made.add("PerfusionLoadConcept", concept_name=MONSTER), 1])
    made.add("PreviewAny", source=[made.add("PrimitiveInt", value=seed), 0])
    return made.nodes


def saving(bias: float) -> dict:
    """Return a graph that saves a concept under the next number."""
    made = Graph()
    made.save(made.load(MONSTER, bias=bias), "numbered")
    return made.nodes


def asked(server: Server) -> dict[str, float]:
    """Return the durations in milliseconds of the requests that a page makes to a server that has just started."""
    names = [name for name in server.get("/models/perfusion") if name.startswith(("concept_", "demo-"))]
    some = [urllib.parse.quote(name) for name in random.Random(0).sample(names, min(ASKED, len(names)))]
    before = bytes_read(server)
    found = {"search by trigger word or superclass, the first time": timed(lambda: server.get(WORDS), 1)}
    read = bytes_read(server) - before
    words = json.loads(server.get(WORDS))
    assert len(words) >= len(names) and words[MONSTER] == ["<demo-monster>", "monster"]
    one = server.base / "models" / "perfusion" / MONSTER

    def changed() -> None:
        one.touch()
        server.get(WORDS)

    each = {
        "its metadata": [f"/view_metadata/perfusion?filename={name}" for name in some],
        "its preview": [f"/experiment/models/preview/perfusion/0/{name}" for name in some],
        "its whole file": [f"/perfusion/file?name={name}" for name in some],
    }
    found |= {
        "search again": timed(lambda: server.get(WORDS)),
        "search again after a file has changed": timed(changed),
        "list of nodes": timed(server.object_info),
        "the entry of Load Concept in that list": timed(lambda: server.get("/object_info/PerfusionLoadConcept")),
        "the entry of Import Concept in that list": timed(lambda: server.get("/object_info/PerfusionImport")),
        "list of files": timed(lambda: server.get("/models/perfusion")),
        "the model browser's list": timed(lambda: server.get("/experiment/models/perfusion")),
    }
    for name, paths in each.items():
        calls = iter(paths)
        found[f"one concept: {name}"] = timed(lambda: server.get(next(calls)), len(paths))  # noqa: B023
    numbers = iter(range(1, 100))
    found["a graph that loads a concept"] = timed(lambda: server.run(graph(next(numbers))))
    found["a graph that saves a concept"] = timed(lambda: server.run(saving(next(numbers) / 100)))
    return found | {"KB read for the first search": read / 1024}


def measured(base: Path, setup: bootstrap.Setup) -> dict[str, float]:
    """Return the durations of one server: its start and all requests, in milliseconds."""
    start = time.perf_counter()
    with Server(setup, base=base, threads=1) as server:
        return {"server start": 1000 * (time.perf_counter() - start)} | asked(server)


def page(found: Mapping[str, list[dict[str, float]]], count: int, size: int) -> str:
    """Return the page with the results."""
    few, many = ({name: median(one[name] for one in rounds) for name in rounds[0]} for rounds in found.values())
    rows = [f"| {name} | {few[name]:,.0f} | {many[name]:,.0f} |" for name in few if not name.startswith("KB")]
    read = next(value for name, value in many.items() if name.startswith("KB"))
    return "\n".join(
        [
            "# A library of concepts",
            "",
            f"Written by `python -m benchmarks.performance.library --concepts {count}`: {size / 2**20:.0f} MB in {count} files, "
            "each with its preview. All times are medians in milliseconds.",
            "",
            f"| | 2 concepts | {count + 2} concepts |",
            "| --- | --- | --- |",
            *rows,
            "",
            f"The first search read {read / 1024:.1f} MB of the {size / 2**20:.0f} MB in these files: their headers, in blocks of "
            "4 KB.",
            "",
        ]
    )


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--concepts", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    steps.stop_when_terminated()
    setup = bootstrap.locate()
    bases = {name: bootstrap.fresh_base(setup, f"library-{name}") for name in ("few", "many")}
    size = fill(bases["many"] / "models" / "perfusion", arguments.concepts)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in bases}
    for _ in range(arguments.rounds):
        for name, base in bases.items():
            found[name].append(measured(base, setup))
            print(name, found[name][-1], flush=True)
    told = page(found, arguments.concepts, size)
    print(told)
    (RESULTS / "library.md").write_text(told, encoding="utf-8")


if __name__ == "__main__":
    main()
