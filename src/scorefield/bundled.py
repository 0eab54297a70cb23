"""Models that come with the package, reachable by name wherever a run folder is expected."""

from __future__ import annotations

from pathlib import Path

BUNDLED = ("digits", "digits-fast")
"""`digits`: a density model of 28 x 28 handwritten digits; `digits-fast`: the same, distilled to jump (see their cards)."""

MODELS = Path(__file__).parent / "models"


def run_folder(run: str | Path) -> Path:
    """The folder of a run: the path itself, or that of a bundled model of this name where no such path exists."""
    path = Path(run)
    if str(run) in BUNDLED and not path.exists():
        return MODELS / str(run)
    return path


def results_folder(run: str | Path) -> Path:
    """Where results of a run go unless told otherwise: its folder, or the current one for a bundled or published model."""
    path = Path(run)
    return path if run_folder(run) == path and not is_published(path) else Path()


def is_published(folder: Path) -> bool:
    """Whether `save_pretrained` wrote a folder: it has a model card, and no training state."""
    return all((folder / name).exists() for name in ("run.json", "README.md")) and not [
        *folder.glob("step-*/optimizer*")
    ]
