"""An environment of its own for each other trainer and evaluator, made once outside the tree.

Knows: which release is installed where, and what it lacks on a machine whose torch has no CUDA.
Does not know: how they are called.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

TORCH = "torch>=2.9,<2.14"
PACKAGES = {
    "trl": ["trl==1.16.0", "peft==0.21.2", "transformers==5.24.0", "bitsandbytes==0.50.2", "pillow", TORCH],
    "llamafactory": ["llamafactory==0.9.5", TORCH],
    "lmms": ["lmms_eval==0.7.3", "transformers==5.24.0", "decord==0.6.0", "filelock<4", TORCH],
}
"""lmms-eval imports decord for its LLaVA and a module of filelock that 4 no longer has, and asks for neither."""
CUDA_BUILDS = {"llamafactory": ("torchvision", "torchaudio"), "lmms": ("torchvision",)}


def python_of(name: str, folder: Path) -> Path:
    """The interpreter of an environment, which is made when it is not there yet."""
    place, done = folder / name, folder / name / "made.txt"
    python = place / "bin" / "python"
    if not done.is_file():
        print(f"making the environment {place}: {', '.join(PACKAGES[name])}", file=sys.stderr, flush=True)
        venv.create(place, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES[name]], check=True)
        _without_cuda(python, CUDA_BUILDS.get(name, ()))
        done.write_text("\n".join(PACKAGES[name]) + "\n")
    return python


def _without_cuda(python: Path, builds: Sequence[str]) -> None:
    """torchvision and torchaudio come from the registry as CUDA builds, which a CPU torch cannot load.

    Without torchvision transformers prepares images by Pillow, as it does for us. LLaMA-Factory imports torchaudio
    whatever it is used for; an empty module stands in for it, since no row has sound.
    """
    for name in builds:
        if subprocess.run([python, "-c", f"import {name}"], capture_output=True).returncode:
            subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", name], check=True)
            if name == "torchaudio":
                where = "import sysconfig; print(sysconfig.get_path('purelib'))"
                folder = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True)
                (Path(folder.stdout.strip()) / "torchaudio.py").write_text('"""No sound here."""\n')
