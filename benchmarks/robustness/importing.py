"""How quickly a server answers other requests while *Import Concept* reads a hostile file."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

from benchmarks.robustness import hostile_pickles as pickles
from scripts.harness.graphs import Graph
from scripts.harness.server import GraphError, Server
from scripts.setup import bootstrap

EACH = 4
"""Number of files with each kind of damage."""
MOST_MS = 200
"""Limit on the server's slowest answer."""
FILE, ASKED = "hostile.pt", "/queue"


def slowest_answers() -> dict[str, float]:
    """Import hostile files on a server; return, for each kind of damage, its slowest answer to other requests, in milliseconds."""
    setup = bootstrap.locate()
    base, found = bootstrap.fresh_base(setup, "importing-base"), {}
    path = base / "models" / "perfusion" / FILE
    with Server(setup, base=base) as server:
        path.write_bytes(pickles.pickled(pickles.theirs()))
        imported(server)  # loads the checkpoint and triggers late imports
        for damage in dict.fromkeys(pickles.DAMAGES):
            for i in range(EACH):
                path.write_bytes(damage(random.Random(i), pickles.pickled(pickles.theirs())))
                found[damage.__name__] = max(found.get(damage.__name__, 0.0), slowest_answer(server, path))
    return found


def slowest_answer(server: Server, path: Path) -> float:
    """Return the server's slowest answer while it imports the file, in milliseconds."""
    done, slowest = threading.Event(), [0.0]

    def ask() -> None:
        while not done.is_set():
            start = time.perf_counter()
            server.get(ASKED)
            slowest[0] = max(slowest[0], 1000 * (time.perf_counter() - start))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        imported(server)
    finally:
        done.set()
        asking.join()
    return slowest[0]


def imported(server: Server) -> None:
    """Import FILE and save the concept, unless it is refused."""
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    given = {"trigger": "<it>", "superclass": "teddy", "number": 1}
    concept = graph.add("PerfusionImport", file_name=FILE, model=model, clip=clip, **given)
    graph.save([concept, 0], "imported", overwrite=True)
    try:
        server.run(graph.nodes)
    except GraphError as error:
        if "Perfusion" not in error.node_class:
            raise
