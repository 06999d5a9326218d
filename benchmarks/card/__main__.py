"""Measure the pack on this machine's graphics card; everything takes eight minutes.

    python -m benchmarks.card [--comfyui DIR] [--rehearse] [--out DIR]
    python -m benchmarks.card --pack FILE

Uses SD1.5's layout at 512 pixels with seeded weights in half precision, with and without the host's dynamic VRAM, and with each of
its attention flags. Writes `results/card.md`, which describes in words what failed, and exits with 1 if anything did. `--rehearse`
runs the same on the CPU with a small model. `--pack` writes an archive with which the command needs no network and no set-up.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.card.job import Job

ROOT = Path(__file__).resolve().parents[2]
ATTENTION = (
    "--use-pytorch-cross-attention",
    "--use-split-cross-attention",
    "--use-quad-cross-attention",
    "--use-sage-attention",
    "--use-flash-attention",
)
ON_THE_CARD = ("same", "repeated", "taught", "presets", "beside_lora", "covariance")
LIMITS = {"losses apart": 0.05, "learned apart": 0.3}
"""How far half precision may differ from float32 on the CPU after a few steps."""


def plan(rehearsal: bool) -> dict[str, tuple[bool, list[str], list[str]]]:
    """Return name -> (whether on the CPU, flags, parts) of each process, in order."""
    if rehearsal:  # in one process, because all of it is on the processor
        return {"the card": (True, [], ["reference", *ON_THE_CARD])}
    jobs = {"the processor": (True, [], ["reference"]), "the card": (False, [], list(ON_THE_CARD))}
    jobs["without dynamic VRAM"] = (False, ["--disable-dynamic-vram"], ["same", "taught"])
    return jobs | {flag: (False, [flag], ["same"]) for flag in ATTENTION}


def run(comfyui: Path, folder: Path, rehearsal: bool) -> dict[str, dict]:
    """Run all processes and return what each measured; for one that ends without a result, "failed" has its last message."""
    found = {}
    for name, (cpu, flags, parts) in plan(rehearsal).items():
        base = folder / "base"
        (base / "models").mkdir(parents=True, exist_ok=True)
        given = [*flags, "--base-directory", str(base)]
        job = Job(str(comfyui), str(folder / "seeded.safetensors"), str(folder / "reference.pt"), cpu, given, parts, rehearsal)
        (folder / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.card.job", str(folder / "job.json")]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        try:
            found[name] = json.loads(ran.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            found[name] = {"failed": {"the process": (ran.stderr.strip().splitlines() or ["no message"])[-1]}}
        print(name, json.dumps(found[name]), flush=True)
    return found


def faults(found: dict[str, dict]) -> list[str]:
    """Return a sentence for each problem."""
    told = []
    for name, parts in found.items():
        told += [f"With {name}, {part} failed: {why}" for part, why in parts.get("failed", {}).items()]
        for precision, apart in parts.get("same", {}).items():
            told += [
                f"With {name} in {precision}, {what!r} (compared with the processor) is {apart[what]:.3g}; the limit is {most}."
                for what, most in LIMITS.items()
                if not apart[what] <= most
            ]
        if not parts.get("taught", {}).get("base the same to the bit", True):
            told.append(f"With {name}, the base generates a different picture after a training than before it.")
    return told


def page(found: dict[str, dict]) -> str:
    """Return the page's text."""
    lines = ["# On a graphics card", "", "Written by `python -m benchmarks.card`.", ""]
    wrong = faults(found)
    lines += [*(f"- {each}" for each in wrong), ""] if wrong else ["Everything is as expected.", ""]
    for name, parts in found.items():
        lines += [f"## {name[0].upper()}{name[1:]}", "", "| what | measured |", "| --- | --- |"]
        for part, values in parts.items():
            lines += [f"| {part}: {what} | {shown(value)} |" for what, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def shown(value: object) -> str:
    """Format a measured value as a table cell."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(each)}" for name, each in value.items())
    return ", ".join(map(shown, value)) if isinstance(value, list) else str(value)


def main() -> int:
    """Measure and write the page, or write the archive."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="the host's folder; by default that of the set-up")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for card.md")
    parser.add_argument("--rehearse", action="store_true", help="run on the CPU, with a small model")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="only write the archive")
    arguments = parser.parse_args()
    if arguments.pack:
        from benchmarks.card import archive

        print(f"{arguments.pack}: {archive.write(arguments.pack):.1f} MB; unpack it and run sh card/run.sh")
        return 0
    comfyui = arguments.comfyui
    if comfyui is None:
        from scripts.setup import bootstrap

        comfyui = bootstrap.locate().comfyui
    with tempfile.TemporaryDirectory() as folder:
        found = run(comfyui.resolve(), Path(folder), arguments.rehearse)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "card.md").write_text(page(found), encoding="utf-8")
    print("\n".join(faults(found)) or "Everything is as expected.")
    return 1 if faults(found) else 0


if __name__ == "__main__":
    sys.exit(main())
