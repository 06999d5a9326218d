"""The Python environment in `.venv`: created once, filled with pinned packages, reused while the pins stay the same."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.setup.steps import SetupError, child, digest, is_done, mark_done, say, step

FIRST_RUN_GB = 10.0  # .venv 6.2 GB, pip's cache 2.8 GB, the host and its models
BIG_DOWNLOAD = re.compile(r"\s*(?:Downloading|Using cached) (\S+\.whl) \((\d{2,}\.\d MB|\d+\.\d GB)\)")
NETWORK = re.compile(
    "NewConnectionError|Failed to establish|name resolution|Max retries|timed out|ConnectionError|Connection refused|"
    "ProxyError|Network is unreachable|SSLError|Connection reset"
)
NOT_FOUND = re.compile(r"\(from versions: (.*)\)\n.*No matching distribution found for (\S+)")


def ensure(venv: Path, requirements: list[Path], log: Path) -> Path:
    """Install the packages of these requirement files into the environment, and return its interpreter."""
    python = interpreter(venv)
    stamps = {venv / f"installed-{file.stem}": digest(file) for file in requirements}
    if python.exists() and all(is_done(stamp, wanted) for stamp, wanted in stamps.items()):
        return python
    unfinished = venv / "installing"  # a package whose installation was interrupted may look complete to pip
    if unfinished.exists() or not _works(python):
        _check_disk(venv.parent)
        _make(venv)
    with step("Installing packages into .venv (a first run downloads about 3 GB)"):
        pip(python, ["install", *[part for file in requirements for part in ("-r", str(file))]], log, unfinished)
    for stamp, wanted in stamps.items():
        mark_done(stamp, wanted)
    unfinished.unlink(missing_ok=True)
    return python


def interpreter(venv: Path) -> Path:
    """Return the path of a virtual environment's interpreter."""
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def clean_environment() -> dict[str, str]:
    """Return environment variables for a child process, without those that point it to another Python's packages."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    return environment | {"PYTHONUNBUFFERED": "1"}


def run_inside(python: Path, arguments: list[str], folder: Path) -> int:
    """Run this interpreter in a folder, wait for it, and return its exit code."""
    with child(subprocess.Popen([str(python), *arguments], cwd=folder, env=clean_environment())) as process:
        return process.wait()


def pip(python: Path, arguments: list[str], log: Path, unfinished: Path | None = None) -> None:
    """Run pip, keep its complete output in `log`, print its larger downloads, and explain failures in a SetupError.

    The file `unfinished` is created as soon as pip begins to change the environment.
    """
    command = [str(python), "-m", "pip", "--no-input", "--disable-pip-version-check", *arguments, "--progress-bar", "off"]
    log.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            env=clean_environment() | {"PIP_USER": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        with child(process):
            for line in process.stdout or ():
                lines.append(line)
                file.write(line)
                _show(line)
                if unfinished and line.startswith("Installing collected packages"):
                    unfinished.touch()
            process.wait()
    if process.returncode:
        raise SetupError(_explain("".join(lines), log))


def _works(python: Path) -> bool:
    """Whether there is an environment with pip, rather than the remains of an interrupted run."""
    return python.exists() and subprocess.run([str(python), "-c", "import pip"], capture_output=True).returncode == 0


def _make(venv: Path) -> None:
    """Create an empty environment."""
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(
            f"expected Python's own modules venv and ensurepip, but {sys.executable} lacks {' and '.join(missing)}; install "
            "them (on Debian and Ubuntu: apt install python3-venv) or run this command with another Python."
        )
    with step("Making .venv"):
        command = [sys.executable, "-m", "venv", "--clear", str(venv)]
        made = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
        if made.returncode:
            last = (made.stdout + made.stderr).strip().splitlines()[-1:]
            raise SetupError(
                f"expected {sys.executable} to make a virtual environment in {venv}, but it said: {' '.join(last)} "
                "Install Python's venv module or run this command with another Python."
            )


def _check_disk(folder: Path) -> None:
    """Raise SetupError if the downloads would not fit on the disk."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < FIRST_RUN_GB:
        raise SetupError(
            f"expected {FIRST_RUN_GB:.0f} GB of free disk for a first run, but {folder} has {free:.1f} GB; free some or move "
            "the project to a larger disk, then run this command again."
        )


def _show(line: str) -> None:
    """Print those lines of pip that are informative for a waiting user."""
    found = BIG_DOWNLOAD.match(line)
    if found:
        say(f"  {found[1]}, {found[2]}")
    elif line.startswith("Installing collected packages"):
        say("  unpacking")


def _explain(output: str, log: Path) -> str:
    """Return one sentence on why pip failed."""
    rest = f"(pip's whole output: {log})"
    if "No space left on device" in output or "Errno 28" in output:
        return (
            "expected room for the packages, but a disk is full (the project's, or the one with pip's cache or the temporary "
            f"folder); free some, then run this command again {rest}."
        )
    missing = NOT_FOUND.search(output)
    if missing and missing[1] != "none":
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return (
            f"expected {missing[2]} on the package index, but for Python {version} on {sys.platform} it has only {missing[1]}; "
            f"check pip's index settings, or try a Python between 3.10 and 3.13 {rest}."
        )
    if missing or NETWORK.search(output):
        what = missing[2] if missing else "an answer"
        return (
            f"expected {what} from the package index, but it was not reached or knows nothing of it; check the network and "
            f"pip's index and proxy settings, then run this command again {rest}."
        )
    errors = [line.strip() for line in output.splitlines() if "error" in line.lower()] or output.splitlines()
    return f"expected pip to install the packages, but it said: {errors[-1] if errors else 'nothing'} {rest}."
