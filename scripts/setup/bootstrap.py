"""Set up all that the demo and the tests need; what is complete is used again.

`.venv` holds the packages, `.cache/ComfyUI` the host, `.cache/base` the folder that a server works in. COMFYUI_PATH names
an existing ComfyUI to be used instead; its own interpreter is then left as it is.
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
    """Where everything is."""

    comfyui: Path
    """The folder with ComfyUI's main.py."""
    python: Path
    """The interpreter that runs ComfyUI."""
    tools: Path
    """The interpreter that runs the rest: the tests, the demo."""
    base: Path
    """The server's base directory: models, input, output, custom_nodes."""


def prepare(dev: bool = False) -> Setup:
    """Set everything up. `dev` adds the packages that the tests need, always in `.venv`."""
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
    """Where everything is, set up by an earlier `prepare`; nothing is made or changed."""
    setup = _find()
    for path in (setup.comfyui / "main.py", setup.python, setup.base):
        if not path.exists():
            raise SetupError(f"expected a finished set-up, but {path} is missing; run python scripts/test.py or scripts/demo.py.")
    return setup


def fresh_base(setup: Setup, name: str) -> Path:
    """A base directory in the cache that nobody has used, with the pack and all of the demo."""
    base = CACHE / name
    shutil.rmtree(base, ignore_errors=True)
    return stocked_base(setup, base)


def make_base(base: Path) -> None:
    """Make a base directory for a server, with this pack linked into its custom nodes, and the demo's pictures and concepts."""
    lay_out(base)
    _link(base / "custom_nodes" / PACK, ROOT)


def lay_out(base: Path) -> None:
    """Make a base directory's folders, with the demo's pictures and concepts in them."""
    for folder in ("custom_nodes", "models/checkpoints", "models/perfusion", "input", "output"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for source, target in (("pictures", "input"), ("concepts", "models/perfusion")):
        for file in sorted((ROOT / "demo" / source).iterdir()):
            shutil.copyfile(file, base / target / file.name)


def stocked_base(setup: Setup, base: Path, checkpoint: Path | None = None) -> Path:
    """Make a base directory, as `make_base` does, or complete it, and give it a checkpoint, by default the demo's; it."""
    make_base(base)
    share_checkpoint(setup, base, checkpoint)
    return base


def share_checkpoint(setup: Setup, base: Path, source: Path | None = None) -> None:
    """Give another base directory a checkpoint, by default the demo's, without a second copy where the disk can do that."""
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
    """The same, with `.venv` for the tests: development packages never enter a user's ComfyUI."""
    return Setup(setup.comfyui, setup.python, environment.interpreter(VENV), setup.base)


def _host_requirements(folder: Path) -> Path:
    """The requirements of the ComfyUI in use: our pins for the fetched one, its own file for another one."""
    if folder == CACHE / "ComfyUI":
        return HERE / "requirements.txt"
    return folder / "requirements.txt"


def _expand_checkpoint(setup: Setup) -> None:
    """Expand the packed demo base into a stock checkpoint, again whenever the packed file has changed."""
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
    """Make `link` lead to the folder `target`: a symlink, on Windows a junction (which needs no special rights)."""
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
