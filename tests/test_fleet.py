"""Many concepts on Ray: what is refused before any work, and a real fleet that loses a worker in the middle of a training."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

import perfusion_core
from perfusion_core import PerfusionError
from perfusion_core.concept import Concept
from perfusion_fleet import schedule, table, worker
from perfusion_fleet.command import output_folder, taught
from perfusion_fleet.worker import Answer, Worker
from scripts.harness.graphs import FEW_STEPS, Graph
from scripts.harness.moments import forget_finished
from scripts.harness.server import Server
from scripts.setup.bootstrap import CHECKPOINT, ROOT, Setup

PICTURES = sorted((ROOT / "demo" / "pictures").glob("monster-*.png"))
TINY = {"superclass": "monster", "size": 64, "steps": 6, "batch": 1, "precision": "fp32", "preview_every": 0, "save_every": 2}
"""Columns of concepts that are taught in seconds, and leave a trace of it on the way."""
PREVIEWED = {"preview_steps": FEW_STEPS}
MIDDLE = 2
"""A step at which they do."""
READY = "A worker is ready: process"

Told = dict[str, dict | None]


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[Told], Path]:
    """Makes a folder of concepts, name -> what concept.json says, with a picture and its alpha in each."""

    def make(told: Told) -> Path:
        for i, (name, row) in enumerate(told.items()):
            (tmp_path / "set" / name).mkdir(parents=True)
            shutil.copyfile(PICTURES[i % len(PICTURES)], tmp_path / "set" / name / "a.png")
            if row is not None:
                (tmp_path / "set" / name / "concept.json").write_text(json.dumps(row), encoding="utf-8")
        return tmp_path / "set"

    return make


def common(folder: Path, **told: object) -> None:
    """Say something of all concepts."""
    (folder / "concept.json").write_text(json.dumps(told), encoding="utf-8")


# ---- the table -------------------------------------------------------------------------------------------------------------------


def test_a_folder_holds_concepts_with_what_is_common_to_them(folder: Callable[[Told], Path]) -> None:
    path = folder({"bear": None, "mug": {"superclass": "mug", "trigger": "<cup>", "steps": 9}, ".hidden": None})
    common(path, superclass="teddy", steps=5)
    (bear, mug), faults = table.read(path)
    assert not faults and (bear.name, bear.superclass, bear.trigger, bear.settings) == ("bear", "teddy", "<bear>", {"steps": 5})
    assert (mug.superclass, mug.trigger, mug.settings) == ("mug", "<cup>", {"steps": 9})
    assert [Path(each).name for each in mug.pictures] == ["a.png"] and mug.masks == ("",)


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_table_says_the_same_as_a_folder(folder: Callable[[Told], Path], kind: str) -> None:
    path = folder({"bear": {"superclass": "teddy", "steps": 5}, "mug": {"superclass": "mug", "masks": "none"}})
    file = path.parent / f"table.{kind}"
    if kind == "csv":
        file.write_text("name,pictures,masks,superclass,steps\nbear,set/bear,,teddy,5\nmug,set/mug,none,mug,\n", encoding="utf-8")
    else:
        rows = [
            {"name": "bear", "pictures": "set/bear", "superclass": "teddy", "steps": "5"},
            {"name": "mug", "pictures": "set/mug", "superclass": "mug", "masks": "none"},
        ]
        file.write_text(json.dumps(rows), encoding="utf-8")
    (bear, mug), faults = table.read(file)
    (of_bear, of_mug), _ = table.read(path)
    assert not faults and mug == of_mug and mug.masks == ()
    assert (bear.pictures, bear.masks, bear.settings) == (of_bear.pictures, of_bear.masks, {"steps": "5"})


def test_masks_lie_beside_pictures_or_in_a_folder_or_are_their_alpha(folder: Callable[[Told], Path]) -> None:
    path = folder({"bear": {"superclass": "teddy"}, "cat": {"superclass": "cat", "masks": "cat/masks"}})
    Image.new("RGB", (8, 8)).save(path / "bear" / "b.jpg")
    Image.new("L", (8, 8), 255).save(path / "bear" / "b-mask.png")
    (path / "cat" / "masks").mkdir()
    Image.new("L", (8, 8), 255).save(path / "cat" / "masks" / "a.png")
    (bear, cat), faults = table.read(path)
    assert not faults and bear.masks == ("", str(path / "bear" / "b-mask.png")) and len(bear.pictures) == 2
    assert cat.masks == (str(path / "cat" / "masks" / "a.png"),)


def test_masks_may_be_in_the_folder_of_the_pictures_however_it_is_named(
    folder: Callable[[Told], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder({"bear": {"superclass": "teddy", "masks": "bear"}})
    Image.new("L", (8, 8), 255).save(path / "bear" / "a-mask.png")
    monkeypatch.chdir(path)
    ((bear,), faults) = table.read(Path("."))
    assert not faults and bear.masks == (str((path / "bear" / "a-mask.png").resolve()),)


def test_a_transparent_colour_of_a_palette_cuts_out_an_object(folder: Callable[[Told], Path]) -> None:
    path = folder({"bear": {"superclass": "teddy"}, "cat": {"superclass": "cat"}, "dog": {"superclass": "dog"}})
    Image.new("P", (8, 8)).save(path / "bear" / "a.png", transparency=0)
    Image.new("P", (8, 8)).save(path / "cat" / "a.png")
    Image.new("RGB", (8, 8)).save(path / "dog" / "a.png", transparency=(0, 0, 0))
    (bear, cat, dog), faults = table.read(path)
    assert not faults and bear.masks == ("",) and cat.masks == dog.masks == ()


def test_captions_lie_beside_the_pictures(folder: Callable[[Told], Path]) -> None:
    path = folder({"bear": {"superclass": "teddy"}, "cat": {"superclass": "cat", "captions": "none"}, "dog": {"superclass": "dog"}})
    for name in ("bear", "cat"):
        (path / name / "a.txt").write_text("a photo of <bear>\n on a table ", encoding="utf-8")
    (bear, cat, dog), faults = table.read(path)
    assert not faults and bear.captions == ("a photo of <bear> on a table",) and cat.captions == dog.captions == ()
    shutil.copyfile(PICTURES[0], path / "bear" / "b.png")
    (path / "cat" / "concept.json").write_text('{"captions": "here"}', encoding="utf-8")
    (path / "dog" / "a.txt").write_bytes(b"\xff")
    jobs, faults = table.read(path)
    assert not jobs and [fault.split("; ")[0] for fault in faults] == [
        "bear: 1 of 2 pictures have a caption, but b.png has none",
        "cat: captions must be text files beside the pictures, with the same names",
        "dog: a caption is not UTF-8 text",
    ]


def test_a_quoted_cell_has_several_lines(folder: Callable[[Told], Path]) -> None:
    base = folder({"bear": None}).parent
    (base / "t.csv").write_text('name,pictures,templates\nbear,set/bear,"a {}\nthe {}"\n', encoding="utf-8")
    ((bear,), faults) = table.read(base / "t.csv")
    assert not faults and bear.settings == {"templates": "a {}\nthe {}"}


def test_all_that_is_wrong_with_a_table_is_told_at_once(folder: Callable[[Told], Path]) -> None:
    path = folder({"a b": None, "half": None, "torn": None, "bear": None, "none": None, "said": None})
    Image.new("RGB", (8, 8)).save(path / "half" / "b.png")
    (path / "torn" / "a.png").write_bytes(b"no picture")
    (path / "none" / "a.png").unlink()
    (path / "said" / "concept.json").write_text("{", encoding="utf-8")
    jobs, faults = table.read(path)
    assert [job.name for job in jobs] == ["bear"] and len(faults) == 5
    for fault, wanted in zip(
        faults, ["a b: a concept's name", "half: 1 of 2", "none: there are no", "said: ", "torn: a.png"], strict=True
    ):
        assert fault.startswith(wanted) and fault.endswith(".")
    table_of = path.parent / "table.csv"
    table_of.write_text("name,pictures,superclass\nbear,set/bear,teddy\nBear,set/bear,teddy\n,set/bear,teddy\n", encoding="utf-8")
    assert table.read(table_of)[1] == [
        "A concept without a name: a concept's name must consist of 1 to 64 letters, digits, hyphens and underscores; choose "
        "another one.",
        "bear: 2 concepts have this name; give each its own.",
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "name\n"),
        ("t.csv", "\udcff"),
        ("t.json", "{"),
        ("t.json", "{}"),
        ("t.json", "[1]"),
        ("t.txt", "name"),
        ("u.csv", None),
    ],
)
def test_what_is_no_table_is_refused_in_a_sentence(tmp_path: Path, name: str, content: str | None) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(PerfusionError, match=r"^\S.*\.$"):
        table.read(tmp_path / name)


@pytest.mark.parametrize(("name", "made"), [("set.1/", "set.1"), ("set.1.csv", "set.1"), ("set", "set")])
def test_concepts_go_to_a_folder_named_like_what_lists_them(tmp_path: Path, name: str, made: str) -> None:
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    assert output_folder(tmp_path / name, tmp_path / "host") == tmp_path / "host" / "models" / "perfusion" / made


# ---- the command -----------------------------------------------------------------------------------------------------------------


ALIKE = {**os.environ, "OMP_NUM_THREADS": "1"}
"""The environment of a fleet whose workers compute as the server does: rounding depends on the number of threads."""


@pytest.fixture(scope="module")
def alike(setup: Setup, base_dir: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that computes as the fleet does: in the tests' own interpreter, which has Ray, and in one thread.

    It is the tests' own server where that one does.
    """
    python, in_one_thread = Path(sys.executable), os.environ.get("OMP_NUM_THREADS") == "1"
    if in_one_thread and setup.python == python:
        yield request.getfixturevalue("server")
        return
    with Server(replace(setup, python=python), base=base_dir, threads=1, log_name="fleet.log") as running:
        yield running


def command(setup: Setup, base: Path, concepts: Path, out: Path) -> list[str]:
    given = ["--comfyui", setup.comfyui, "--models", base, "--checkpoint", CHECKPOINT, "--out", out, "--precision", "float32"]
    return [str(part) for part in (sys.executable, "-m", "perfusion_fleet", concepts, *given, "--workers", 2, "--cpu")]


def test_without_ray_the_command_says_how_to_get_it() -> None:
    start = "import sys; sys.modules['ray'] = None; from perfusion_fleet.command import main; "
    code = start + "sys.exit(main(['x', '--checkpoint', 'y']))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stdout.startswith("Failed: perfusion-train needs Ray; install it with: ")
    assert f"-m pip install -e '{ROOT}[fleet]'" in ran.stdout


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray cluster of this machine alone, which asks for a token: its address, and the environment in which it is known."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    known = {**ALIKE, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_USAGE_STATS_ENABLED": "0"}
    known["PYTHONUNBUFFERED"] = "1"
    options = ["--head", "--block", "--port", address.split(":")[1], "--num-cpus", "2", "--include-dashboard", "false"]
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--object-store-memory", str(schedule.STORE)]
    with (tmp_path / "ray.log").open("w") as log, subprocess.Popen(start, stdout=log, stderr=log, env=known) as running:
        end = time.monotonic() + 60
        try:
            while "Ray runtime started" not in (told := (tmp_path / "ray.log").read_text(encoding="utf-8", errors="replace")):
                assert running.poll() is None and time.monotonic() < end, told
                time.sleep(0.1)
            yield address, known
        finally:
            running.terminate()


def test_what_the_node_would_not_take_is_refused_before_any_work(
    setup: Setup, base_dir: Path, folder: Callable[[Told], Path], tmp_path: Path, cluster: tuple[str, dict[str, str]]
) -> None:
    """On a cluster, by its address."""
    rows = {"a": {"step": 3}, "b": {"steps": 0}, "c": {"keep": "worst"}, "d": {"trigger": "d"}, "e": {"flip": "often"}, "f": {}}
    rows["g"] = {"flip": 10**400}
    rows |= {"h": {"shape": "round"}, "i": {}, "j": {"preset": "SDXL"}, "k": {"templates": "a photo"}}
    rows |= {"l": {"preview_prompts": "a {} and a {}"}, "m": {"lock": "word", "edit_mode": "static"}}
    path = folder({name: {"superclass": "teddy", **row} for name, row in rows.items()})
    (path / "f" / "b.png").write_bytes(b"no picture")
    (path / "i" / "a.txt").write_text("a teddy on a table", encoding="utf-8")
    address, known = cluster
    given = [*command(setup, base_dir, path, tmp_path / "out"), "--address", address]
    ran = subprocess.run(given, cwd=ROOT, capture_output=True, text=True, env=known)
    assert ran.returncode == 2 and not (tmp_path / "out").exists(), ran.stdout + ran.stderr
    _, first, *faults = ran.stdout.splitlines()
    assert first == f"Failed: The concepts in {path} cannot be trained:"
    assert [fault.strip()[:30] for fault in faults] == [
        "f: b.png cannot be opened as a",
        "a: step is not a setting of Tr",
        "b: steps should be a whole num",
        "c: keep should be one of last,",
        "d: A trigger word must be in a",
        "e: flip should be a number fro",
        "g: flip should be a number fro",
        "h: shape should be one of squa",
        "i: Caption 1 of 1 should conta",
        "j: preset is not a setting of ",
        "k: Template 1 of 1 should cont",
        "l: Preview prompt 1 of 1 shoul",
        "m: Training needs an edit mode",
    ]


def test_what_ends_three_workers_or_fails_of_itself_is_given_up_and_the_rest_is_done() -> None:
    class Fragile:
        def ready(self) -> str:
            return "here"

        def teach(self, job: table.Job) -> Answer:
            if job.name == "deadly":
                os._exit(1)
            if job.name == "faulty":
                raise ValueError("no such thing")
            return Answer(content=job.name.encode())

    class Carded(Worker):
        """Its card stops computing when it gets the poisonous job, and all that follows in the same process fails."""

        def ready(self) -> str:
            def saved(job: table.Job, *_: object) -> bytes:
                if job.name == "poisonous" or not works:
                    works.clear()
                    raise RuntimeError("an illegal memory access was encountered")
                return job.name.encode()

            works = [True]
            worker.saved, worker.device_computes = saved, lambda: bool(works)
            worker.inside.part = lambda name: perfusion_core
            return "here"

    def run(actor: type, *names: str) -> dict[str, schedule.Outcome]:
        made = [schedule.ray.remote(max_restarts=-1)(actor).remote(*arguments.get(actor, ())) for _ in range(2)]
        jobs = [table.Job(name, (), (), "", "", "", "", {}) for name in names]
        return {each.job.name: each for each in schedule.outcomes(made, jobs, told.append)}

    arguments = {Carded: [worker.Place("", "", "", True, "half")]}
    told, before = [], signal.getsignal(signal.SIGTERM)
    schedule.connect(schedule.LOCAL, 2, cpu=True)
    try:
        found = run(Fragile, "deadly", "first", "faulty", "second")
        carded = run(Carded, "poisonous", "one", "two", "three")
    finally:
        schedule.ray.shutdown()
        signal.signal(signal.SIGTERM, before)  # Ray has one of its own
    assert set(found) == {"deadly", "first", "faulty", "second"} and found["deadly"].tries == 3
    assert found["deadly"].answer.fault.startswith("3 workers were lost while training it")
    assert found["faulty"].answer.fault == "Its training failed: no such thing." and found["faulty"].tries == 1
    assert [found[name].answer.content for name in ("first", "second")] == [b"first", b"second"]
    assert told.count("A worker was lost while training deadly.") == 3
    assert carded["poisonous"].answer.fault.startswith("3 workers were lost while training it")
    assert [carded[name].answer.content for name in ("one", "two", "three")] == [b"one", b"two", b"three"]


def test_no_concept_is_given_up_where_a_worker_is_lost_and_all_are_what_the_server_teaches(
    setup: Setup, alike: Server, folder: Callable[[Told], Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """One worker is killed in the middle of a training, and one concept's mask is black; a second run finds all else done."""
    path = folder({"one": {"seed": 1}, "two": {"seed": 2, "trigger": "<second>", "captioned": 0.5}, "zero": {}})
    (path / "two" / "a.txt").write_text("one <second> on the grass", encoding="utf-8")
    common(path, **TINY, **PREVIEWED)
    Image.new("RGB", (64, 64)).save(path / "zero" / "a-mask.png")
    out = tmp_path / "out"
    given = command(setup, alike.base, path, out)
    shutil.rmtree(alike.base / "models" / "perfusion" / "steps", ignore_errors=True)
    with subprocess.Popen(given, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=ALIKE) as running:
        lines = list(killing_the_first(running, alike.base / "models" / "perfusion" / "steps"))
    told = "\n".join(lines)
    assert running.returncode == 1, told
    assert told.count("A worker was lost") == told.count("A worker was lost while training one.") == 1
    entries = {each["name"]: each for each in json.loads((out / "index.json").read_text(encoding="utf-8"))}
    assert list(entries) == ["one", "two", "zero"]
    assert [each["state"] for each in entries.values()] == ["trained", "trained", "failed"]
    assert entries["one"]["tries"] == 2 and "Mask 1 of 1 is empty" in entries["zero"]["fault"]
    assert "| zero | `<zero>` | monster | failed |" in (out / "index.md").read_text(encoding="utf-8")
    with Image.open(out / "sheet-1.png") as sheet:
        assert sheet.size[0] == 2 * 128 and len(sheet.convert("RGB").getcolors(10**6)) > 1000

    forget_finished(alike.base)
    told_before = len(alike.log())
    for name in ("one", "two"):
        assert entries[name]["loss"] > 0
        alone = load_file(taught_alone(alike, path / name / "a.png", name, json.loads((path / name / "concept.json").read_text())))
        fleets = load_file(out / f"{name}.safetensors")
        assert alone.keys() == fleets.keys() and all(alone[key].equal(fleets[key]) for key in alone)
    assert "Training continues from" not in alike.log()[told_before:]
    assert Concept.load(out / "two.safetensors").trigger == "<second>"

    shutil.rmtree(path / "zero")
    jobs, faults = table.read(path)
    assert not faults and [each.state for each in taught([], jobs, out)] == ["kept"] * 2
    assert "2 already saved, 0 to train" in capsys.readouterr().out


def killing_the_first(running: subprocess.Popen, steps: Path) -> list[str]:
    """What a fleet prints, whose first worker to be ready is killed once its training has saved a concept on the way."""
    lines, end = [], time.monotonic() + 300
    assert running.stdout
    for line in running.stdout:
        lines.append(line)
        if line.startswith(READY) and sum(each.startswith(READY) for each in lines) == 1:
            while not list(steps.glob(f"one-*/{MIDDLE:05}.safetensors")):
                assert time.monotonic() < end and running.poll() is None, lines
                time.sleep(0.05)
            os.kill(int(line.split()[5]), signal.SIGKILL)
    return lines


def taught_alone(server: Server, picture: Path, name: str, row: dict) -> Path:
    """The file that a graph on the server makes of a concept."""
    shutil.copyfile(picture, server.base / "input" / f"{name}.png")
    graph = Graph()
    loaded, options, caption = graph.add("LoadImage", image=f"{name}.png"), {}, picture.with_suffix(".txt")
    if caption.exists():
        said = {"captions": caption.read_text(encoding="utf-8"), "captioned": row.pop("captioned")}
        options = {"options": graph.options(**said, **PREVIEWED)}
    taught = graph.train(*graph.checkpoint(), [loaded, 0], [loaded, 1], **{**TINY, "save_every": 0, **row, **options})
    graph.save([taught, 0], name, overwrite=True)
    server.run(graph.nodes)
    return server.base / "models" / "perfusion" / f"{name}.safetensors"
