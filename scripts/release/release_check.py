"""Run the release checks that one machine allows: `python -m scripts.release.release_check` in the set-up's environment.

Prints one line for each check; the exit status is 1 if any failed. The project's own checks come first (with `--own`, only these),
followed by two third-party tools, comfy-import-guard and comfy-test. The tools are installed once from the package index into an
environment of their own; later runs download nothing. They examine a copy of the files that would be published, in
`.cache/release`, where their complete output is kept.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.generate import foreign_file
from scripts.generate.make_workflows import SHORT
from scripts.harness.server import Server
from scripts.harness.workflow import set_widget
from scripts.setup import bootstrap, comfyui, environment, steps
from scripts.setup.bootstrap import CACHE, CHECKPOINT, PACK, ROOT, VENV

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PASSED, KNOWN, LEFT_OUT, FAILED = "passed", "known", "left out", "FAILED"
TOOLS = ("comfy-import-guard==1.3.0", "comfy-test==0.4.15")
WORK = CACHE / "release"

# ---- published files -----------------------------------------------------------------------------------------------------------

LARGE = 1_000_000
KNOWN_LARGE = {"demo/base.bin"}
PLACEHOLDER, PLACEHOLDER_HOST = "to-be-filled-in", ".invalid/"  # no address ends in .invalid, RFC 2606
UNRELEASED = "(not yet released)"
KEPT = "tests/data/workflows"
# The classifiers from which the registry takes systems and accelerators, as comfy-cli 1.23.0 accepts them.
SYSTEMS = re.compile(r"Operating System :: (Microsoft|POSIX|MacOS|OS Independent)")
ACCELERATORS = {"GPU :: NVIDIA CUDA", "GPU :: AMD ROCm", "GPU :: Intel Arc", "NPU :: Huawei Ascend", "GPU :: Apple Metal"}
NAME = re.compile(r"[A-Za-z](?:[-_.]?[A-Za-z0-9])*")
VERSION = re.compile(r"\d+\.\d+\.\d+")
BOUNDS = re.compile(r"(==|>=|<=|!=|~=|>|<)\d+\.\d+\.\d+")
# Packages that the host provides in a build for the user's graphics card, and that pip would replace.
HOSTS_OWN = re.compile(r"torch|nvidia|triton|xformers|comfy", re.I)
HOMES = rb"/(?:home|Users)/[\w.-]+/|[A-Za-z]:\\{1,2}Users\\"
RUNS_PIP = re.compile(r"""["']pip["']""")


def published(root: Path) -> list[Path]:
    """Return the files that `comfy node publish` would include, uncommitted ones too, as paths relative to the root."""
    taken = _git(root, "--cached", "--others", "--exclude-standard")
    if (root / ".comfyignore").is_file():
        taken -= _git(root, "--cached", "--others", "--ignored", "--exclude-from=.comfyignore")
    return sorted(Path(name) for name in taken if (root / name).is_file())


def _git(root: Path, *options: str) -> set[str]:
    """Return the paths that `git ls-files` lists with these options."""
    listed = subprocess.run(["git", "ls-files", "-z", *options], cwd=root, capture_output=True, text=True, encoding="utf-8")
    if listed.returncode:
        raise steps.SetupError(f"expected a git checkout in {root}, as only that tells what is published, but: {listed.stderr}")
    return set(listed.stdout.split("\0")) - {""}


def metadata(root: Path) -> dict[str, Any]:
    """Return the contents of pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


# ---- the project's own checks: each returns the problems it found --------------------------------------------------------------


def wrong_version(root: Path) -> list[str]:
    """Check that the version is the newest one in the changelog."""
    top = re.search(r"^## (\S+)", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    newest, own = top and top[1], metadata(root)["project"].get("version")
    return [] if newest == own else [f"pyproject.toml says {own}, the top of CHANGELOG.md {newest}"]


def missing_metadata(root: Path) -> list[str]:
    """Check that the metadata that the registry needs is present and in the registry's form."""
    told = metadata(root)
    project, comfy = told["project"], told.get("tool", {}).get("comfy", {})
    urls, licence = project.get("urls", {}), project.get("license", {})
    name, kinds = project.get("name", ""), project.get("classifiers", [])
    environments = {kind.removeprefix("Environment :: ") for kind in kinds if kind.startswith("Environment :: ")}
    bounds = comfy.get("requires-comfyui", "").split(",")
    fine = {
        "project.name": NAME.fullmatch(name) and len(name) < 100 and "comfy" not in name.lower(),
        "project.version": VERSION.fullmatch(project.get("version", "")),
        "project.description": project.get("description"),
        "project.requires-python": project.get("requires-python"),
        "project.license": isinstance(licence, dict) and (root / licence.get("file", "missing")).is_file(),
        "project.classifiers, systems": any(SYSTEMS.match(kind) for kind in kinds),
        "project.classifiers, accelerators": environments <= ACCELERATORS,
        **{f"project.urls.{key}": urls.get(key, "").startswith("https://") for key in ("Repository", "Documentation", "Issues")},
        "tool.comfy.PublisherId": comfy.get("PublisherId"),
        "tool.comfy.DisplayName": comfy.get("DisplayName"),
        "tool.comfy.Icon": re.search(r"^https://.+\.(svg|png|jpg|gif)$", comfy.get("Icon", "")),
        "tool.comfy.requires-comfyui": all(BOUNDS.fullmatch(each.strip()) for each in bounds),
    }
    return [f"{key} is missing or not in the registry's form" for key, good in fine.items() if not good]


def replaced_packages(root: Path) -> list[str]:
    """Check that installing the pack does not replace the host's own torch and related packages."""
    return [f"{each} is the host's to bring" for each in metadata(root)["project"]["dependencies"] if HOSTS_OWN.match(each)]


def large_files(root: Path) -> list[str]:
    """Check that no large file is published by mistake."""
    sizes = {path.as_posix(): (root / path).stat().st_size for path in published(root)}
    return [f"{name} has {size / 1e6:.1f} MB" for name, size in sizes.items() if size > LARGE and name not in KNOWN_LARGE]


def machine_paths(root: Path) -> list[str]:
    """Check that no published file contains a path of the machine where it was created."""
    here = {f"{folder.as_posix()}/" for folder in (root.resolve(), ROOT, Path.home())} - {"//"}
    places = b"|".join([HOMES, *(re.escape(place.encode()) for place in sorted(here))])
    pattern, found = re.compile(rb"(?<![\w./-])(?:" + places + rb")"), []
    for path in published(root):
        match = pattern.search((root / path).read_bytes())
        if match:
            found.append(f"{path.as_posix()} names {match[0].decode()}")
    return found


def forbidden_calls(root: Path) -> list[str]:
    """Check for code that the registry's standards forbid: eval and exec, several statements on a line, pip at run time."""
    sources = [path.as_posix() for path in published(root) if path.suffix == ".py"]
    rules = ["--select", "S102,S307,E702", "--output-format", "concise", "--quiet", "--no-cache"]
    command = [str(environment.interpreter(VENV)), "-m", "ruff", "check", *rules, *sources]
    told = subprocess.run(command, cwd=root, capture_output=True, text=True, encoding="utf-8")
    if told.returncode not in (0, 1):
        return [f"ruff did not run: {told.stderr.strip()}"]
    pips = [f"{name} runs pip" for name in sources if RUNS_PIP.search((root / name).read_text(encoding="utf-8"))]
    return [line for line in told.stdout.splitlines() if re.match(r"\S+:\d+:\d+: ", line)] + pips


def left_to_fill_in(root: Path) -> list[str]:
    """Check that no placeholders are left and the released workflows are kept; docs/releasing.md says what to fill in."""
    told = metadata(root)
    values = {f"project.urls.{key}": value for key, value in told["project"].get("urls", {}).items()}
    values |= {f"tool.comfy.{key}": value for key, value in told.get("tool", {}).get("comfy", {}).items()}
    found = [key for key, value in values.items() if value == PLACEHOLDER or PLACEHOLDER_HOST in str(value)]
    if UNRELEASED in (root / "CHANGELOG.md").read_text(encoding="utf-8"):
        found.append(f"{UNRELEASED} in CHANGELOG.md")
    shipped, kept = (
        {path.name: path.read_bytes() for path in folder.glob("*.json")}
        for folder in (root / "workflows", root / KEPT / told["project"]["version"])
    )
    return found + ([f"copies in {KEPT}"] if shipped != kept else [])


OWN: dict[str, Callable[[Path], list[str]]] = {
    "version": wrong_version,
    "metadata": missing_metadata,
    "dependencies": replaced_packages,
    "file sizes": large_files,
    "machine's paths": machine_paths,
    "forbidden calls": forbidden_calls,
    "filled in": left_to_fill_in,
}

# ---- the third-party tools -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    status: str
    told: str = ""

    def __str__(self) -> str:
        """Return the result as one line."""
        return f"{self.status:<9} {self.name}" + (f": {' '.join(self.told.split())}" if self.told else "")


TEACHER = "train_a_concept.json"
"""Runs first, because other workflows use the concept that it saves."""
NOT_RUN = {
    "comfy-test install": "clones ComfyUI from GitHub and builds an environment for it; ours: scripts/test.py sets one up.",
    "comfy-test coverage": "looks for NODE_CLASS_MAPPINGS, which a pack with comfy_entrypoint does not have; ours: "
    "tests/test_presentation.py, every node is used by a workflow.",
    "comfy-test execution": "records the runs of execution_light in a browser, and needs the route /validate, which another "
    "pack on GitHub adds; ours: tests/test_workflows.py, tests/test_page.py.",
    "comfy-test static_capture": "takes screenshots and checks nothing; ours: tests/test_page.py.",
}
MISREAD = (
    "{0} complaints about widgets' values, none about links or definitions: its reader does not know the host's COMBO, the value "
    "after a seed or notes, continues in the wrong place, and refuses the host's own templates too; ours: "
    "tests/test_workflows.py, tests/test_page.py."
)
BEYOND_CP1252 = "formulas in sources have characters that cp1252 lacks; Python reads sources as UTF-8, on Windows too."
AUTOCAST = (
    "{0} uses of torch.autocast, where it wants comfy.ops: the host has already built its modules when training and measuring run "
    "them in another precision, and edits switch autocast off to stay in float32. Its other complaints are about files that the "
    "host does not load."
)
LOADED = re.compile(r"(__init__\.py|(nodes|perfusion_core)/)")
"""Files of the pack that the host imports."""

# comfy-test as its authors call it, with two changes. There is no browser: execution_light passes whatever its screenshots show,
# and may install system packages to take them. And nodes are created as the host creates them, on the CPU and from
# comfy_entrypoint.
COMFY_TEST = '''
import sys
from comfy_test.orchestration.levels import instantiation
from comfy_test.reporting import screenshot

class NoPictures:
    def __init__(self, *args, **options): pass
    def start(self, *args, **options): pass
    stop = capture = start

screenshot.WorkflowScreenshot = NoPictures
screenshot.ensure_dependencies = lambda **options: True
screenshot.check_dependencies = lambda: None

BEFORE = """
import asyncio, sys
sys.argv = ["main.py", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
async def nodes_of(module):
    return await (await module.comfy_entrypoint()).get_node_list()
"""
OLD = 'getattr(module, "NODE_CLASS_MAPPINGS", {{}})'
NEW = "{{node.define_schema().node_id: node for node in asyncio.run(nodes_of(module))}}"
assert OLD in instantiation.INSTANTIATION_SCRIPT
instantiation.INSTANTIATION_SCRIPT = BEFORE + instantiation.INSTANTIATION_SCRIPT.replace(OLD, NEW)

from comfy_test.cli import main
sys.exit(main())
'''


def tools() -> Path:
    """Install both tools if necessary and return their interpreter.

    It also sees .venv's packages, because comfy-test imports the pack.
    """
    home, log = CACHE / "release-venv", CACHE / "release-install.log"
    python, stamp, wanted = environment.interpreter(home), home / "installed", " ".join(TOOLS)
    if python.exists() and steps.is_done(stamp, wanted):
        return python
    with steps.step("Installing comfy-import-guard and comfy-test into .cache/release-venv"):
        ours = str(environment.interpreter(VENV))
        _call([ours, "-m", "venv", "--clear", str(home)])
        environment.pip(python, ["install", *TOOLS], log)
        ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
        (Path(_call([str(python), "-c", ask]).strip()) / "host.pth").write_text(_call([ours, "-c", ask]), encoding="utf-8")
    steps.mark_done(stamp, wanted)
    return python


def stage(setup: bootstrap.Setup) -> Path:
    """Create a fresh base directory with the demo's files and a copy of the files to be published; return the copy's folder."""
    base, pack, rooms = WORK / "base", WORK / "base" / "custom_nodes" / PACK, Path("models", "perfusion", ".work")
    # Measuring a text encoder takes minutes. The measurements name their encoder, so they can be reused.
    measured = {path.name: path.read_bytes() for old in (setup.base, base) for path in (old / rooms).glob("covariance-*")}
    shutil.rmtree(WORK, ignore_errors=True)
    for path in published(ROOT):
        (pack / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, pack / path)
    bootstrap.lay_out(base)
    bootstrap.share_checkpoint(setup, base)
    (base / rooms).mkdir()
    for name, content in measured.items():
        (base / rooms / name).write_bytes(content)
    return pack


def import_guard(python: Path, setup: bootstrap.Setup, pack: Path) -> Finding:
    """Run comfy-import-guard: what the pack uses of `comfy` must exist and be called correctly.

    The tool reads the host from a git repository, so one is created from the host's files.
    """
    version = comfyui.version_of(setup.comfyui)
    tag = f"v{version}" if version else "host"
    host = WORK / "guard" / "ComfyUI"
    shutil.copytree(setup.comfyui / "comfy", host / "comfy", ignore=shutil.ignore_patterns("__pycache__"))
    nobody = ["-c", "user.name=release check", "-c", "user.email=nobody@example.invalid", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "--force", "."], [*nobody, "commit", "--quiet", "-m", tag], ["tag", tag]):
        _call(["git", *command], host)
    options = ["--offline", "--quiet", "--json", "--cache-dir", str(host.parent)]
    command = [str(python), "-m", "comfy_import_guard.cli", "check", "--comfy-dir", str(pack.parent), "--target", tag, *options]
    ran = _run(command, pack.parent, "import_guard")
    name = f"comfy-import-guard, ComfyUI {tag.removeprefix('v')}"
    try:
        (found,) = json.loads(ran.stdout)["packs"]
    except (ValueError, KeyError):
        return Finding(name, FAILED, ran.stdout + ran.stderr)
    bad = [row for kind in ("breaking", "signature_drift", "unresolvable", "soft") for row in found[kind]]
    told = [f"{found['verdict']}, {found['references']} references in {found['python_files']} files"]
    told += [f"{row['status']} {row['dotted']} ({row['file']}:{row['line']})" for row in bad]
    return Finding(name, PASSED if found["verdict"] == "SAFE" else FAILED, "; ".join(told))


def comfy_test(python: Path, setup: bootstrap.Setup, pack: Path) -> Iterator[Finding]:
    """Run comfy-test's levels one by one; in a single run, an early failure would hide the later ones."""
    yield from _syntax(python, pack)
    with Server(setup, base=pack.parents[1]) as server:
        names = _shorten(pack, server.object_info())
        for level in ("registration", "javascript", "instantiation", "validation"):
            yield _judge(level, _level(python, pack, level, server))
        for part in ([TEACHER], [name for name in names if name != TEACHER]):
            ran = _level(python, pack, "execution_light", server, part)
            if ran.returncode == 0 and part == [TEACHER]:
                models = server.base / "models" / "perfusion"
                foreign_file.write(server.base, models / foreign_file.CONCEPT, foreign_file.FOREIGN)
            yield _judge("execution_light", ran, f"{len(part)} workflow(s), without screenshots")
    yield from (Finding(name, LEFT_OUT, why) for name, why in NOT_RUN.items())


def _syntax(python: Path, pack: Path) -> Iterator[Finding]:
    """Run the level "syntax". It stops at the first kind of complaint, so it is rerun on a copy without the cause of that one."""
    ran = _level(python, pack, "syntax")
    if ran.returncode and "can't encode on Windows (cp1252)" in ran.stdout:
        yield Finding("comfy-test syntax, characters", KNOWN, BEYOND_CP1252)
        copy = WORK / "cp1252" / PACK
        shutil.copytree(pack, copy)
        for source in copy.rglob("*.py"):
            text = source.read_text(encoding="utf-8").encode("cp1252", "replace").decode("cp1252")
            source.write_text(text, encoding="utf-8")
        ran = _level(python, copy, "syntax")
    blamed = blamed_patterns(ran.stdout)
    loaded = [what for file, what in blamed if LOADED.match(file)]
    if ran.returncode and blamed and all(what.startswith("torch.autocast") for what in loaded):
        yield Finding("comfy-test syntax, patterns", KNOWN, AUTOCAST.format(len(loaded)))
    else:
        yield _judge("syntax", ran)


def blamed_patterns(told: str) -> list[tuple[str, str]]:
    """Return file and complaint of each forbidden pattern that the output of the level "syntax" reports."""
    found, file = [], ""
    for line in told.partition("Error: Forbidden patterns found")[2].splitlines():
        head, complaint = re.fullmatch(r"(\S+\.py):", line), re.fullmatch(r"  Line \d+: (.+)", line)
        file = head[1].replace("\\", "/") if head else file
        if complaint:
            found.append((file, complaint[1]))
    return found


def _shorten(pack: Path, object_info: dict) -> list[str]:
    """Make the copy's workflows fast, delete those that need another checkpoint than the demo's, and return the others' names."""
    names = []
    for path in sorted((pack / "workflows").glob("*.json")):
        workflow = json.loads(path.read_text(encoding="utf-8"))
        loaders = [node for node in workflow["nodes"] if node["type"] == "CheckpointLoaderSimple"]
        if not loaders or any(loader["widgets_values"] != [CHECKPOINT] for loader in loaders):
            path.unlink()
            continue
        for node in workflow["nodes"]:
            for widget, value in SHORT.get(node["type"], {}).items():
                set_widget(workflow, node["id"], widget, value, object_info)
        path.write_text(json.dumps(workflow), encoding="utf-8")
        names.append(path.name)
    return names


def _level(
    python: Path, pack: Path, level: str, server: Server | None = None, workflows: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one level of comfy-test on the pack in this folder, in attach mode, so that it does not fetch and build a host."""
    named = f"[test.workflows]\ncpu = {json.dumps(workflows)}\ntimeout = 900\n" if workflows else ""
    config = f'[test]\nlevels = ["{level}"]\n{named}[test.platforms]\nplatforms = ["linux-cpu", "macos-cpu", "windows-cpu"]\n'
    (pack / "comfy-test.toml").write_text(config, encoding="utf-8")
    logs = server.log_file.parent if server else WORK
    variables = {"COMFY_TEST_LOGS_DIR": str(logs), "COMFY_TEST_WORKSPACE_DIR": str(WORK)}
    if server:
        variables["PYTHONPATH"] = str(server.setup.comfyui)
    address = server.address if server else "http://127.0.0.1:9"
    return _run([str(python), "-c", COMFY_TEST, "run", "--server-url", address], pack, level, variables)


def _judge(level: str, ran: subprocess.CompletedProcess[str], told: str = "") -> Finding:
    """Turn a run of comfy-test into a result."""
    name = f"comfy-test {level}"
    if ran.returncode == 0:
        said = re.findall(r"^(?:All \d+ node\(s\) .+|Found \d+ registered nodes|No import errors detected)$", ran.stdout, re.M)
        return Finding(name, PASSED, told or ", ".join(said))
    error = re.search(r"^Error: (.*?)(?=^Session log|\Z)", ran.stdout + ran.stderr, re.M | re.S)
    blamed = re.findall(r"\[(schema|graph|introspection)\] Node", error[1] if error else "")
    if level == "validation" and set(blamed) == {"schema"}:
        return Finding(name, KNOWN, MISREAD.format(len(blamed)))
    return Finding(name, FAILED, f"{told} {(error[1] if error else ran.stderr)[:400]} ({WORK / 'logs' / level}.log)")


def _run(command: list[str], folder: Path, name: str, variables: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a tool and append its output to a log of this name."""
    told = environment.clean_environment() | {"PYTHONIOENCODING": "utf-8", "PYTHONDONTWRITEBYTECODE": "1"} | (variables or {})
    ran = subprocess.run(command, cwd=folder, env=told, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8")
    (WORK / "logs").mkdir(parents=True, exist_ok=True)
    with (WORK / "logs" / f"{name}.log").open("a", encoding="utf-8") as log:
        log.write(ran.stdout + ran.stderr)
    return ran


def _call(command: list[str], folder: Path | None = None) -> str:
    """Run a command and return its output; SetupError if it fails."""
    ran = subprocess.run(command, cwd=folder, env=environment.clean_environment(), capture_output=True, text=True, encoding="utf-8")
    if ran.returncode:
        raise steps.SetupError(f"expected {' '.join(command[:3])} … to run, but it said: {(ran.stdout + ran.stderr).strip()}")
    return ran.stdout


# ---- all checks ----------------------------------------------------------------------------------------------------------------


def findings(own_only: bool) -> Iterator[Finding]:
    """Run all checks in order and yield their results."""
    for name, check in OWN.items():
        wrong = check(ROOT)
        yield Finding(name, FAILED if wrong else PASSED, "; ".join(wrong))
    if not own_only:
        setup = bootstrap.locate()
        python, pack = tools(), stage(setup)
        yield import_guard(python, setup, pack)
        yield from comfy_test(python, setup, pack)


def main() -> int:
    """Run the checks and print the results; return 1 if any failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--own", action="store_true", help="run only our own checks, which take a second")
    failed = 0
    for finding in findings(parser.parse_args().own):
        steps.say(str(finding))
        failed += finding.status == FAILED
    steps.say(f"{failed} failed." if failed else "Nothing failed.")
    return int(failed > 0)


if __name__ == "__main__":
    steps.exit_with(main)
