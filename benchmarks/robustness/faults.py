"""Test the pack under faults of disks and machines.

    python -m benchmarks.robustness.faults [PART ...]

Programs are killed while they write, servers while they train; disks are full or read-only, folders are deleted and files replaced
under a running server, its clock runs backwards, and two servers share a folder. Afterwards each file must be the old one or the
new one, and a training must give bit-identical results to an undisturbed one. Writes `results/faults.md` part by part; parts that
are not requested keep their last results. The exit status is 1 if any case failed.

Runs only on Linux, because it mounts small disks: `unshare` gives this program a mount namespace of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks.lab import RESULTS
from benchmarks.robustness import killed
from perfusion_core import PerfusionError, safe_files
from perfusion_core.captions import captions
from perfusion_core.concept import Concept
from perfusion_core.concept_file import READABLE
from scripts.harness.graphs import Graph, latents
from scripts.harness.moments import Moment, base_with_spy, forget_finished, progress, queued_until
from scripts.harness.server import GraphError, Server
from scripts.setup import bootstrap, steps

STEPS, CHECKPOINT_EVERY = 30, 25
DISK = "8m"
MONSTER, ROBOT = "demo-monster.safetensors", "demo-robot.safetensors"
ELSEWHERE = "PERFUSION_MOUNTS_OF_ITS_OWN"


@dataclass(frozen=True)
class Row:
    """One kind of fault: the number of cases, the number that went as expected, and the message to the user or a note."""

    what: str
    cases: int
    good: int
    told: str = ""


# ---- graphs --------------------------------------------------------------------------------------------------------------------


def training(prefix: str) -> tuple[dict, str]:
    """Return a graph that trains from one picture, long enough for one checkpoint, and the id of its training node."""
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    images, masks = graph.pictures(1)
    train = graph.train(model, clip, vae, images, masks, steps=STEPS, batch=1, at_once=1)
    graph.save([train, 0], prefix, overwrite=True)
    return graph.nodes, train


def saving(name: str, prefix: str, overwrite: bool = False, bias: float = 0.6) -> dict:
    """Return a graph that saves a concept under another name."""
    graph = Graph()
    graph.save(graph.load(name, bias=bias), prefix, overwrite=overwrite)
    return graph.nodes


def exporting(prefix: str) -> dict:
    """Return a graph that exports a concept."""
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    graph.add("PerfusionExport", model=model, clip=clip, concept=graph.load(MONSTER), filename_prefix=prefix, what="both")
    return graph.nodes


def measuring(count: int) -> dict:
    """Return a graph that measures a text encoder over `count` captions given by the user."""
    graph = Graph()
    own = {"captions": "\n".join(captions(count)), "positions": "unpadded"}
    graph.add("PreviewAny", source=[graph.add("PerfusionCovariance", clip=graph.checkpoint()[1], **own), 1])
    return graph.nodes


def drawn(server: Server, name: str) -> torch.Tensor:
    """Sample a latent with a concept."""
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    model, clip = graph.apply(model, clip, graph.load(name))
    (latent,) = latents(server, graph, graph.sample(model, graph.text(clip, "a <it>"), graph.text(clip, ""), steps=2))
    return latent


def said(server: Server, graph: dict) -> str:
    """Run a graph and return its error message; empty if it succeeded."""
    try:
        server.run(graph)
    except GraphError as error:
        return "; ".join(error.messages)
    return ""


# ---- the bench -----------------------------------------------------------------------------------------------------------------


def held(folder: Path) -> dict[str, bytes]:
    """Read all files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Disk:
    """A small disk (tmpfs) mounted at a folder, which starts with the folder's content."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.filler = folder, folder / "filler"

    def __enter__(self) -> Disk:
        before = held(self.folder)
        self.folder.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", self.folder], check=True)
        for name, content in before.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(content)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)

    def fill(self) -> None:
        """Fill the disk to the last byte."""
        with contextlib.suppress(OSError), self.filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass

    def empty(self) -> None:
        """Free the space that `fill` took."""
        self.filler.unlink()

    def protect(self) -> None:
        """Make the disk read-only."""
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)

    def open(self) -> None:
        """Make the disk writable again."""
        subprocess.run(["mount", "-o", "remount,rw", self.folder], check=True)


class Bench:
    """A base directory, its servers, and the concept that an undisturbed training gives."""

    def __init__(self) -> None:
        self.setup = bootstrap.locate()
        self.base = base_with_spy(self.setup, "faults-base")
        self.folder = self.base / "models" / "perfusion"
        self.work = self.folder / ".work"
        self.wanted: Concept | None = None

    def server(self, name: str = "server") -> Server:
        """Return a server that is not started yet; the state of a finished training is deleted, so that none resumes from it."""
        forget_finished(self.base)
        return Server(self.setup, base=self.base, threads=1, log_name=f"{name}.log")

    def undisturbed(self, server: Server) -> Concept:
        """Return the concept of an undisturbed training, which is run once."""
        if self.wanted is None:
            server.run(training("undisturbed")[0])
            self.wanted = Concept.load(self.folder / "undisturbed.safetensors")
            server.free()
        return self.wanted

    def same(self, server: Server, prefix: str = "disturbed") -> bool:
        """Return whether a training, not the end of an earlier one, gave the undisturbed concept bit for bit; delete its file."""
        path = self.folder / f"{prefix}.safetensors"
        found = Concept.load(path)
        path.unlink()
        return identical(found, self.undisturbed(server)) and f"continues from step {STEPS}." not in server.log()

    # ---- killed ----------------------------------------------------------------------------------------------------------------

    def killed(self) -> list[Row]:
        """Kill programs while they write."""
        rows = []
        for name, kind in killed.kinds().items():
            found = killed.run(kind)
            print(*found.wrong, sep="\n", end="")
            states = ", ".join(f"{state} {count}×" for state, count in sorted(found.counts.items()))
            told = f"found: {states}; {found.scratch} temporary files, none of them listed"
            rows.append(Row(f"killed while writing: {name}", found.points(), found.points() - len(found.wrong), told))
        return rows

    def resumed(self) -> list[Row]:
        """Kill a server three times while it trains, then resume."""
        graph, train = training("resumed")
        server, rows = self.server(), []
        moments: dict[str, tuple[Moment, int]] = {
            "while the text encoder was measured": (lambda told: told["type"] == "progress" and told["data"]["max"] >= 1000, 0),
            "at step 10": (progress(train, STEPS, 10), 10),
            f"at step {STEPS - 2}": (progress(train, STEPS, STEPS - 2), STEPS - 2),
        }
        gone_on = 0
        for name, (moment, step) in moments.items():
            server.start()
            queued_until(server, graph, moment)
            server.kill()
            whole = all(readable(path) for path in self.folder.rglob("*.safetensors"))
            kept = CHECKPOINT_EVERY * (step // CHECKPOINT_EVERY)
            good = whole and len(list(self.work.glob("training-*"))) == (kept > 0)
            rows.append(Row(f"server killed {name}", 1, good, f"{step - kept} steps lost; every file is intact"))
            gone_on = kept
        with server:
            server.run(graph)
            told = f"Training continues from step {gone_on}."
            good = told in server.log() and self.same(server, "resumed") and not list(self.work.glob("training-*"))
            return [*rows, Row("the same graph after a fresh start: bit-identical to the undisturbed concept", 1, good, told)]

    # ---- disks -----------------------------------------------------------------------------------------------------------------

    def disks(self) -> list[Row]:
        """Save to full disks and to read-only folders, then again once there is room."""
        with self.server() as server, contextlib.ExitStack() as opened:
            self.undisturbed(server)
            disks = [opened.enter_context(Disk(self.base / "models" / name)) for name in ("perfusion", "loras", "embeddings")]
            rows = []
            for which, shut, open_again in (("full disk", Disk.fill, Disk.empty), ("read-only folder", Disk.protect, Disk.open)):
                server.run(saving(MONSTER, "there", overwrite=True, bias=0.1 + len(rows) / 100))
                graphs = {
                    "Save Concept, a new file": saving(ROBOT, f"new, {which}"),
                    "Save Concept, over an old file": saving(ROBOT, "there", overwrite=True, bias=0.2 + len(rows) / 100),
                    "Export Concept": exporting(which.replace(" ", "-")),
                    "Measure Text Encoder": measuring(200 + len(rows)),
                }
                if shut is Disk.fill:
                    graphs["Train Concept, which continues, then Save Concept"] = training("disturbed")[0]
                for name, graph in graphs.items():
                    for disk in disks:
                        shut(disk)
                    before = [held(disk.folder) for disk in disks]
                    sentence = said(server, graph)
                    untouched = before == [held(disk.folder) for disk in disks]
                    for disk in disks:
                        open_again(disk)
                    after = said(server, graph)
                    good = "was not saved: " in sentence and untouched and not after
                    rows.append(Row(f"{which}: {name}; repeated once writing works again", 1, good, sentence + after))
            good = "Training continues without this checkpoint." in server.log() and self.same(server)
            return [*rows, Row("the training that met the full disk: bit-identical to the undisturbed concept", 1, good)]

    # ---- changes under a running server ----------------------------------------------------------------------------------------

    def changes(self) -> list[Row]:
        """Delete folders, replace files and turn the clock back under a running server."""
        with self.server() as server:
            self.undisturbed(server)
            return [*self.deleted(server), *self.replaced(server), *self.trained(server), *self.backwards(server)]

    def deleted(self, server: Server) -> list[Row]:
        """Delete the folder of concepts while nothing runs."""
        aside = self.base / "aside"
        self.folder.rename(aside)
        sentence = said(server, saving(MONSTER, "gone"))
        listed = "PerfusionLoadConcept" in server.object_info()
        rows = [Row("folder deleted: Load Concept", 1, listed and "There is no concept" in sentence, sentence)]
        graph = Graph()
        model, clip, vae = graph.checkpoint()
        images, masks = graph.pictures(1)
        graph.save([graph.train(model, clip, vae, images, masks, steps=1, batch=1, at_once=1), 0], "anew")
        sentence = said(server, graph.nodes)
        good = not sentence and readable(self.folder / "anew_00001.safetensors")
        rows.append(Row("folder deleted: Train Concept and Save Concept recreate it", 1, good, sentence))
        shutil.rmtree(self.folder)
        aside.rename(self.folder)
        return rows

    def replaced(self, server: Server) -> list[Row]:
        """Replace a concept's file between jobs."""
        path, spare = self.folder / "it.safetensors", self.folder.parent / "spare.safetensors"
        one, other = (replace(Concept.load(self.folder / name), trigger="<it>") for name in (MONSTER, ROBOT))
        one.save(path, torch.float32)
        times = path.stat()
        first = drawn(server, path.name)
        rows = []
        for name, moved in (("a newer", 1), ("an older", -(10**9)), ("an equally old", 0)):
            other.save(spare, torch.float16)
            os.utime(spare, ns=(times.st_atime_ns, times.st_mtime_ns + moved))
            os.replace(spare, path)
            changed = not torch.equal(drawn(server, path.name), first)
            one.save(spare, torch.float32)
            os.utime(spare, ns=(times.st_atime_ns, times.st_mtime_ns))
            os.replace(spare, path)
            good = changed and torch.equal(drawn(server, path.name), first)
            rows.append(Row(f"concept replaced by {name} file, then restored: each version is used", 1, good))
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        sentence = said(server, saving(path.name, "half"))
        rows.append(Row("concept replaced by half a file", 1, "not a complete safetensors file" in sentence, sentence))
        path.unlink()
        return rows

    def trained(self, server: Server) -> list[Row]:
        """Replace or delete what a training depends on while it runs."""
        checkpoint = self.base / "models" / "checkpoints" / bootstrap.CHECKPOINT
        original = checkpoint.with_name("original")
        (measured,) = self.work.glob("covariance-*")
        kept = measured.read_bytes()

        def other_model() -> None:
            checkpoint.rename(original)
            shutil.copyfile(self.folder / MONSTER, checkpoint)  # not a model

        rows = []
        for name, disturb in (("model's file replaced", other_model), ("folder of concepts deleted", self.remove)):
            server.free()
            graph, train = training("disturbed")
            prompt = queued_until(server, graph, progress(train, STEPS, 10))
            disturb()
            server.wait(prompt)
            rows.append(Row(f"{name} at step 10 of a training: bit-identical to the undisturbed concept", 1, self.same(server)))
            if original.exists():
                original.replace(checkpoint)
        bootstrap.lay_out(self.base)
        measured.write_bytes(kept)
        return rows

    def remove(self) -> None:
        """Delete the folder of concepts with all its contents."""
        shutil.rmtree(self.folder)

    def backwards(self, server: Server) -> list[Row]:
        """Let each reading of the clock be a minute earlier than the previous one, with files dated in the future."""
        server.free()
        server.run({"1": {"class_type": "MeasuringClock", "inputs": {"seconds": 60}}})
        for path in (*self.folder.rglob("*"), self.folder):
            os.utime(path, (2 * 10**9, 2 * 10**9))
        server.run(training("disturbed")[0])
        rows = [
            Row(
                "clock runs backwards, files from the future: training is bit-identical to the undisturbed one",
                1,
                self.same(server),
            )
        ]
        for bias in (0.1, 0.2, 0.3):
            server.run(saving(MONSTER, "counted", bias=bias))
        listed = json.dumps(server.object_info()["PerfusionLoadConcept"])
        good = sum(f"counted_{i:05}.safetensors" in listed for i in (1, 2, 3))
        return [*rows, Row("clock runs backwards, files from the future: three saved concepts, each present and listed", 3, good)]

    # ---- two servers -----------------------------------------------------------------------------------------------------------

    def shared(self) -> list[Row]:
        """Run two servers with one folder of models."""
        with self.server("one") as one, self.server("other") as other:
            self.undisturbed(one)
            return [self.read_while_written(one, other), self.both_save(one, other), self.both_teach(one, other)]

    def read_while_written(self, one: Server, other: Server) -> Row:
        """Let one server overwrite a file repeatedly while the other one and this program read it."""
        one.run(saving(MONSTER, "shared", overwrite=True))
        path, reads, over = self.folder / "shared.safetensors", [], threading.Event()

        def reading() -> None:
            while not over.is_set():
                reads.append(readable(path))

        def writing() -> None:
            for i in range(20):
                one.run(saving((ROBOT, MONSTER)[i % 2], "shared", overwrite=True, bias=i / 100))

        wrong = []

        def loading() -> None:
            for i in range(20):
                wrong.extend(filter(None, [said(other, saving(path.name, f"read-{i}"))]))

        reader = threading.Thread(target=reading)
        reader.start()
        together(writing, loading)
        over.set()
        reader.join()
        print(*wrong, sep="\n", end="")
        told = "20 writes by one server; loads by the other and by this program"
        return Row("two servers: a file read while it is written", 20 + len(reads), 20 - len(wrong) + sum(reads), told)

    def both_save(self, one: Server, other: Server) -> Row:
        """Let both servers save new files with the same name prefix."""
        each = 20

        def save(server: Server) -> Callable[[], None]:
            def saves() -> None:
                for i in range(each):
                    server.run(saving(MONSTER, "both", bias=0.3 + i / 100))

            return saves

        together(save(one), save(other))
        found = [path for path in self.folder.glob("both_*.safetensors") if readable(path)]
        return Row("two servers: new files with one name, none overwritten", 2 * each, len(found))

    def both_teach(self, one: Server, other: Server) -> Row:
        """Let both servers run the same training."""
        one.free()
        together(lambda: one.run(training("by-one")[0]), lambda: other.run(training("by-other")[0]))
        good = self.same(one, "by-one") + self.same(other, "by-other")
        return Row("two servers: the same training in both, bit-identical to the undisturbed concept", 2, good)


def identical(one: Concept, other: Concept) -> bool:
    """Whether all numbers of two concepts are bit-identical."""
    tensors = [[*each.word.values(), each.target_input, each.probe, *each.values.values()] for each in (one, other)]
    return all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


def readable(path: Path) -> bool:
    """Whether a file is complete and readable; an error is printed."""
    try:
        safe_files.read(path, 2**30, READABLE)
    except PerfusionError as error:
        print(error)
        return False
    return True


def together(*acts: Callable[[], object]) -> None:
    """Run functions in parallel threads; raise the first exception that any of them raised."""
    raised = []

    def doing(act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=doing, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


# ---- the page ------------------------------------------------------------------------------------------------------------------

PARTS = {
    "killed": "Killed while writing",
    "resumed": "A server killed while training",
    "disks": "Full and read-only disks",
    "changes": "Changes under a running server",
    "shared": "Two servers with one folder",
}


def page(told: dict[str, list[Row]]) -> str:
    """Return the page with all results."""
    lines = [
        "# Faults",
        "",
        f"Written by `python -m benchmarks.robustness.faults`. Disks are in-memory file systems of {DISK[:-1]} MB, filled to "
        "the last byte or mounted read-only.",
        "",
    ]
    for part, title in PARTS.items():
        if part in told:
            lines += [f"## {title}", "", "| what | cases | as expected | found or reported |", "| --- | --- | --- | --- |"]
            lines += [f"| {row.what} | {row.cases} | {int(row.good)} | {row.told} |" for row in told[part]] + [""]
    return "\n".join(lines)


def main() -> int:
    """Run the requested parts and write the page after each; return 1 if any case failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="parts to run; by default all")
    arguments = parser.parse_args()
    if ELSEWHERE not in os.environ:
        command = ["unshare", "--map-root-user", "--mount", sys.executable, "-m", "benchmarks.robustness.faults", *sys.argv[1:]]
        os.execvpe(command[0], command, os.environ | {ELSEWHERE: "1"})
    steps.stop_when_terminated()
    kept, bench = RESULTS / "faults.json", Bench()
    told = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    found = {part: [Row(**row) for row in rows] for part, rows in told.items()}
    for part in arguments.parts or PARTS:
        found[part] = getattr(bench, part)()
        told[part] = [asdict(row) for row in found[part]]
        kept.write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")
        (RESULTS / "faults.md").write_text(page(found), encoding="utf-8")
    print(page(found))
    return 0 if all(row.good == row.cases for rows in found.values() for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
