"""Set up everything that the demo and the tests need; parts that are already complete are reused.

`.venv` holds the packages, `.cache/ComfyUI` the host, `.cache/base` the server's base directory. The environment variable
COMFYUI_PATH selects an existing ComfyUI instead; packages are then never installed into its own environment.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from scripts.setup import browser, comfyui, environment
from scripts.setup.steps import SetupError, digest, is_done, mark_done, say, step

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".cache"
VENV = ROOT / ".venv"
PACK = "perfusion"
CHECKPOINT = "characters-sd15.safetensors"


@dataclass(frozen=True)
class Setup:
    """The locations of everything that was set up."""

    comfyui: Path
    """The folder with ComfyUI's main.py."""
    python: Path
    """The interpreter that runs ComfyUI."""
    tools: Path
    """The interpreter that runs the tests and the demo."""
    base: Path
    """The server's base directory: models, input, output, custom_nodes."""


def prepare(dev: bool = False) -> Setup:
    """Set everything up. `dev` adds the packages and the browser that the tests need; the packages always go into `.venv`."""
    setup = _find()
    requirements = []
    if setup.python == environment.interpreter(VENV):
        requirements.append(_host_requirements(setup.comfyui))
    elif dev:
        requirements.append(HERE / "requirements.txt")
    if dev:
        requirements.append(HERE / "requirements-dev.txt")
    if requirements:
        environment.ensure(VENV, requirements, CACHE / "pip-install.log")
    if dev:
        browser.ensure(environment.interpreter(VENV), CACHE / "browser-install.log")
    if setup.comfyui == CACHE / "ComfyUI":
        comfyui.fetch(setup.comfyui, environment.interpreter(VENV), CACHE / "pip-download.log")
    make_base(setup.base)
    _expand_checkpoint(setup)
    return setup if not dev else _with_tools(setup)


def locate() -> Setup:
    """Return the locations of what an earlier `prepare` set up, without changing anything; SetupError if something is missing."""
    setup = _find()
    for path in (setup.comfyui / "main.py", setup.python, setup.base):
        if not path.exists():
            raise SetupError(f"expected a finished set-up, but {path} is missing; run python scripts/test.py or scripts/demo.py.")
    return setup


def fresh_base(setup: Setup, name: str) -> Path:
    """Create a fresh base directory in the cache, with the pack and all of the demo's files."""
    base = CACHE / name
    shutil.rmtree(base, ignore_errors=True)
    return stocked_base(setup, base)


def make_base(base: Path) -> None:
    """Create a server's base directory, with this pack linked into its custom nodes, and the demo's pictures and concepts."""
    lay_out(base)
    _link(base / "custom_nodes" / PACK, ROOT)


def lay_out(base: Path) -> None:
    """Create a base directory's folders, with the demo's pictures and concepts in them."""
    for folder in ("custom_nodes", "models/checkpoints", "models/perfusion", "input", "output"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for source, target in (("pictures", "input"), ("concepts", "models/perfusion")):
        for file in sorted((ROOT / "demo" / source).iterdir()):
            shutil.copyfile(file, base / target / file.name)


def stocked_base(setup: Setup, base: Path, checkpoint: Path | None = None) -> Path:
    """Create or complete a base directory as `make_base` does, give it a checkpoint (by default the demo's), and return it."""
    make_base(base)
    share_checkpoint(setup, base, checkpoint)
    return base


def share_checkpoint(setup: Setup, base: Path, source: Path | None = None) -> None:
    """Give another base directory a checkpoint (by default the demo's), as a hard link where the file system allows it."""
    source = source or setup.base / "models" / "checkpoints" / CHECKPOINT
    target = base / "models" / "checkpoints" / source.name
    if source.resolve() == target.resolve():
        return
    target.unlink(missing_ok=True)
    if source.exists():
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)


def _find() -> Setup:
    """Decide which ComfyUI and which interpreters are used."""
    venv_python = environment.interpreter(VENV)
    folder = comfyui.existing()
    python = (comfyui.own_python(folder) if folder else None) or venv_python
    return Setup(folder or CACHE / "ComfyUI", python, python, CACHE / "base")


def _with_tools(setup: Setup) -> Setup:
    """Return the set-up with `.venv` as the interpreter for the tests: development packages never enter a user's ComfyUI."""
    return Setup(setup.comfyui, setup.python, environment.interpreter(VENV), setup.base)


def _host_requirements(folder: Path) -> Path:
    """Return the requirements file of the ComfyUI in use: the project's pins for the fetched one, else the installation's own."""
    if folder == CACHE / "ComfyUI":
        return HERE / "requirements.txt"
    return folder / "requirements.txt"


def _expand_checkpoint(setup: Setup) -> None:
    """Expand the packed demo base into a stock checkpoint, and again whenever the packed file or its code has changed."""
    packed, module = ROOT / "demo" / "base.bin", ROOT / "demo" / "base.py"
    checkpoint = setup.base / "models" / "checkpoints" / CHECKPOINT
    if not (packed.exists() and module.exists()):
        say(f"The demo base {packed.relative_to(ROOT)} is not there: going on without its checkpoint.")
        return
    stamp, wanted = CACHE / "checkpoint.expanded", digest(packed, module)
    if checkpoint.exists() and is_done(stamp, wanted):
        return
    with step("Expanding the demo base into a checkpoint"):
        part = CACHE / "checkpoint.part.safetensors"
        if environment.run_inside(setup.tools, ["-m", "demo.base", str(part)], ROOT):
            raise SetupError(f"expected a checkpoint from {packed}, but demo.base failed (see above); is the file whole?")
        os.replace(part, checkpoint)
    mark_done(stamp, wanted)


def _link(link: Path, target: Path) -> None:
    """Make `link` point to the folder `target`: a symlink, on Windows a junction (which needs no special rights)."""
    if link.exists() and link.resolve() == target:
        return
    if link.is_symlink():
        link.unlink()
    elif os.path.lexists(link):
        try:
            link.rmdir()  # an old junction, or an empty folder
        except OSError:
            raise SetupError(f"expected {link} to be a link to this project, but it is a folder; move it away.") from None
    if os.name == "nt":
        import _winapi

        _winapi.CreateJunction(str(target), str(link))
    else:
        link.symlink_to(target, target_is_directory=True)
