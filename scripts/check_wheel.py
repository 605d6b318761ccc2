"""Build the sdist and from it the wheel, look inside, and run the installed command from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MUST_HOLD = (
    "pruning/py.typed",
    "eval/py.typed",
    "pruning/recipes/quickstart.yaml",
    "pruning/recipes/models/digits-dit/transformer/diffusion_pytorch_model.safetensors",
    "pruning/recipes/models/digits-unet/unet/diffusion_pytorch_model.safetensors",
    "pruning/recipes/models/digits-classifier/model.safetensors",
)


def call(*command: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    """Run a command and return what it printed; stop with its output if it fails."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def build(folder: Path) -> Path:
    """Build the sdist of the working tree and the wheel of the sdist; return the wheel."""
    builder = (sys.executable, "-m", "build", "--no-isolation")
    call(*builder, "--sdist", "--outdir", str(folder), str(ROOT), cwd=folder)
    [sdist] = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [source] = (path for path in folder.iterdir() if path.is_dir())
    call(*builder, "--wheel", "--outdir", str(folder), str(source), cwd=folder)
    [wheel] = folder.glob("*.whl")
    return wheel


def look_inside(wheel: Path) -> None:
    """Assert the top-level names and the files that are easily lost."""
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    if top != {"pruning", "eval"}:
        raise SystemExit(
            f"{wheel.name}: top-level names must be exactly eval and pruning, found {sorted(top)}"
        )
    missing = [name for name in MUST_HOLD if name not in names]
    if missing:
        raise SystemExit(f"{wheel.name}: missing {', '.join(missing)}")


def try_command(wheel: Path, folder: Path) -> None:
    """Install the wheel beside nothing else and run the command from an empty folder."""
    site, empty = folder / "site", folder / "empty"
    empty.mkdir()
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel))
    call(*pip, cwd=folder)
    env = {**os.environ, "PYTHONPATH": str(site)}
    where = call(sys.executable, "-c", "import pruning; print(pruning.__file__)", cwd=empty, env=env)
    if not where.startswith(str(site)):
        raise SystemExit(f"the installed package was not the one that ran: {where}")
    command = str(site / "bin" / "sinkprune")
    for arguments in (["--help"], ["ls"], ["run", "quickstart", "--dry-run"]):
        call(command, *arguments, cwd=empty, env=env)


def main() -> None:
    """Check the packaging."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build(folder)
        look_inside(wheel)
        try_command(wheel, folder)
        print(f"{wheel.name}: {wheel.stat().st_size:,} bytes, top level eval and pruning, the command runs")


if __name__ == "__main__":
    main()
