"""Sharing a model: a folder of safetensors and JSON with a model card, and the Hugging Face hub.

The folder is that of a run with one checkpoint of averaged weights, so every command and `load` read it.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from scorefield.bundled import is_published, run_folder
from scorefield.data.dataset import Range
from scorefield.errors import CheckpointError, InputError, ScorefieldError
from scorefield.files import atomic_folder, flush
from scorefield.model import ScoreModel
from scorefield.sde import GaussianSDE
from scorefield.training.checkpoint import save_checkpoint
from scorefield.training.describe import bare, describe_model
from scorefield.training.run import FORMAT, RUN_FILE, chosen_checkpoint, load, read_run

CARD = "README.md"
FIGURES = "evaluation.json"
PICTURE = "samples.png"
FETCHED = (RUN_FILE, FIGURES, "step-*/ema.safetensors", "step-*/state.json", "step-*/SHA256SUMS")
"""All that is fetched from a hub: no file that could hold code."""


def save_pretrained(
    source: ScoreModel | str | Path,
    folder: str | Path,
    *,
    licence: str | None = None,
    title: str | None = None,
    preset: str | None = None,
    figures: Mapping[str, Any] | None = None,
    levels: int | None = 256,
) -> Path:
    """Write a model's folder: run.json, step-NNNNNN/ema.safetensors with checksums, README.md.

    Optimiser state and data are left out, as is the path of the data but for its last part.

    Main arguments:
        source: a run, with its averaged weights and the figures of its last `evaluate`; or a model, with its weights.
        folder: new, empty, or written by an earlier call, which is replaced.
        licence: for the card, as the hub spells it, such as apache-2.0.
        title: of the card; the folder's name unless given. preset: name of the configuration that it was trained with.

    Other arguments:
        figures: `Evaluation.values()` in place of the run's own.
        levels: of the data, for a model: 256 for 8-bit images in the SDE's range, None for data used as it was.

    Raises:
        InputError: a folder that holds something else, a licence that is none, or a model with parts of the user's own
            that JSON cannot describe.
        CheckpointError: the run has no intact checkpoint.
        OutputError: the folder cannot be written to.
    """
    target = Path(folder)
    _check_publishable(target, licence)
    picture = None
    if isinstance(source, ScoreModel):
        about = _describe(source, source.sde.range if levels else None, levels)
        weights, step = bare(source).state_dict(), 0
    else:
        info = read_run(source)
        about = json.loads((info.path / RUN_FILE).read_text("utf-8"))
        about["data"]["name"] = _last_part(about["data"]["name"])
        checkpoint = chosen_checkpoint(info.path)
        if checkpoint is None:
            raise CheckpointError(f"{source} has no checkpoint yet; train it first")
        weights, step = dict(checkpoint.tensors["ema"]), checkpoint.step
        figures = _own_figures(info.path) if figures is None else figures
        picture = info.path / PICTURE if (info.path / PICTURE).exists() else None
    _check_parts(about)
    size = sum(value.numel() for value in weights.values())
    card = model_card(about, title or target.name, step, size, licence, preset, figures, picture is not None)
    with atomic_folder(target) as part_folder:
        save_checkpoint(
            part_folder, step, {"ema": weights}, {"ema_updates": step, "seconds": 0.0, "scaler": None}, None
        )
        contents = {RUN_FILE: json.dumps(about, indent=1), CARD: card}
        if figures is not None:
            contents[FIGURES] = json.dumps(figures, indent=1)
        for name, text in contents.items():
            with open(part_folder / name, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                flush(file)
        if picture is not None:
            shutil.copyfile(picture, part_folder / PICTURE)
    return target


def from_pretrained(
    name: str | Path,
    *,
    revision: str | None = None,
    net: nn.Module | None = None,
    sde: GaussianSDE | None = None,
    clock: Any = None,
    device: str | torch.device = "cpu",
) -> ScoreModel:
    """A model from a folder or from the Hugging Face hub, ready to sample (eval mode).

    Only JSON and safetensors are read, the classes named in JSON are looked up in a closed set of scorefield's own, and
    nothing else is fetched: the files of a stranger run no code.

    Main arguments:
        name: a folder (of `save_pretrained`, or of a run), the bundled "digits", or a hub name such as somebody/model.
        revision: a branch, tag or commit of the hub.
        net, sde, clock: as in `load`.

    Raises:
        CheckpointError: nothing there, files that are damaged or do not describe a model.
        InputError: the hub cannot be reached, or huggingface_hub is not installed.
    """
    folder = fetch(name, revision=revision)
    try:
        return load(folder, net=net, sde=sde, clock=clock, device=device)
    except ScorefieldError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError, RecursionError) as error:
        raise CheckpointError(f"{name} does not describe a model ({error}); ask whoever wrote it") from error


def fetch(name: str | Path, *, revision: str | None = None) -> Path:
    """The folder of that name, or a copy from the hub (in the hub's cache) that every command takes for a run.

    Raises:
        CheckpointError: neither a folder nor a name that a hub could know.
        InputError: the hub cannot be reached or has no such model, or huggingface_hub is not installed.
    """
    if (folder := run_folder(name)).is_dir():
        return folder
    if not re.fullmatch(r"[\w][\w.-]*(/[\w][\w.-]*)?", str(name)):
        raise CheckpointError(f"{name} is neither a folder nor a name of the hub (OWNER/NAME); check the path")
    hub = _hub()
    try:
        return Path(hub.snapshot_download(str(name), revision=revision, allow_patterns=list(FETCHED)))
    except Exception as error:  # network, permissions, names: the hub has a class for each
        raise InputError(
            f"cannot fetch {name}: {' '.join(str(error).split())}; check the name and the network"
        ) from error


def push_to_hub(
    source: ScoreModel | str | Path,
    repo: str,
    *,
    private: bool | None = None,
    message: str | None = None,
    api: Any = None,
    **card: Any,
) -> str:
    """Publish a run or a model on the Hugging Face hub, with its card; returns the address.

    Main arguments:
        source, card: as for `save_pretrained`.
        repo: OWNER/NAME; made if it does not exist. private: of a new one.
        message: of the commit.

    Other arguments:
        api: a `huggingface_hub.HfApi`, for a hub or token of one's own.

    Raises:
        InputError: the hub refuses, cannot be reached, or huggingface_hub is not installed; and as for `save_pretrained`.
    """
    if not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", repo):
        raise InputError(f"{repo!r} is not a name of the hub; give OWNER/NAME")
    api = _hub().HfApi() if api is None else api
    with TemporaryDirectory() as place:
        folder = save_pretrained(source, Path(place) / repo.rpartition("/")[2], **card)
        try:
            address = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message or "Upload with scorefield")
        except Exception as error:  # network, permissions, names: the hub has a class for each
            raise InputError(f"cannot push to {repo}: {' '.join(str(error).split())}; check name and token") from error
    return str(address)


def _check_publishable(target: Path, licence: str | None) -> None:
    """Refuse a folder that holds something else, and a licence that the hub does not know how to spell."""
    if target.exists() and not (target.is_dir() and (not any(target.iterdir()) or _is_ours(target))):
        raise InputError(f"{target} holds something else; choose a new folder")
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise InputError(f"licence={licence!r} is not a name of the hub; give one such as apache-2.0, mit or cc-by-4.0")


def _own_figures(run: Path) -> dict[str, Any] | None:
    """The figures of a run's last `evaluate`, without the paths of what they were taken from."""
    if not (run / FIGURES).exists():
        return None
    figures: dict[str, Any] = json.loads((run / FIGURES).read_text("utf-8"))
    return {**figures, **{name: _last_part(figures[name]) for name in ("data", "features") if name in figures}}


def _check_parts(about: Mapping[str, Any]) -> None:
    """Refuse a model with parts that JSON cannot describe."""
    for part in ("net", "sde", "clock"):
        if isinstance(about["model"][part], Mapping) and "custom" in about["model"][part]:
            raise InputError(
                f"the {part} is a class of your own ({about['model'][part]['custom']}), which JSON cannot describe; "
                "use one of scorefield's"
            )


def model_card(
    about: Mapping[str, Any],
    title: str,
    step: int,
    size: int,
    licence: str | None,
    preset: str | None,
    figures: Mapping[str, Any] | None,
    picture: bool = False,
) -> str:
    """The text of README.md: what the model is, how to use it, its figures, its licence."""
    shape = tuple(about["shape"])
    head = ["---", "library_name: scorefield", *([f"license: {licence}"] if licence else [])]
    head += ["tags:", "- score-based", "- diffusion"]
    if len(shape) == 3 and shape[0] in (1, 3):
        head.append("pipeline_tag: unconditional-image-generation")
    rows = _card_rows(about, step, size, preset)
    parts = ["\n".join([*head, "---"]), f"# {_line(title)}"]
    if picture:
        parts.append(f"![samples]({PICTURE})")
    parts.append(
        "A score model (Song et al. 2021, *Score-Based Generative Modeling through Stochastic Differential Equations*)."
    )
    parts.append(_table(("", ""), [(name, _line(value)) for name, value in rows.items() if value]))
    parts.append(
        "```python\nimport scorefield as sf\n\n"
        f'model = sf.from_pretrained("{_line(title)}")          # or OWNER/NAME of the hub, or the folder\n'
        "x = sf.sample(model, 16, seed=0)\n```"
    )
    if figures and figures.get("figures"):
        parts += _card_figures(figures)
    if licence:
        parts += ["## Licence", licence]
    return "\n\n".join(part for part in parts if part) + "\n"


def _card_rows(about: Mapping[str, Any], step: int, size: int, preset: str | None) -> dict[str, str]:
    """What a model is, a line each; empty ones are left out."""
    data, levels, classes = about["data"], about["levels"], about["classes"]
    items = " x ".join(map(str, about["shape"])) or "of any shape"
    items += f", {levels} levels" if levels else ""
    items += f", {len(classes)} classes" if classes else ""
    return {
        "SDE": _call(about["model"]["sde"]),
        "network": f"{about['model']['net']['class']}, {size:,} weights",
        "items": items,
        "range": "as stored" if about["range"] is None else f"{about['range'][0]:g} to {about['range'][1]:g}",
        "data": f"{data['name']}, {data['size']:,} items" if data["size"] else str(data["name"]),
        "preset": preset or "",
        "steps": f"{step:,}" if step else "",
        "scorefield": about["scorefield"],
    }


def _card_figures(figures: Mapping[str, Any]) -> list[str]:
    """The figures of `evaluate` with their intervals."""
    table = []
    for name, e in figures["figures"].items():
        width = f"{1.96 * e['stderr']:.2g}" if math.isfinite(e["stderr"]) else ""
        table.append((name, f"{e['value']:.5g}", width, str(e["n"])))
    against = f"{figures['samples']} samples against {figures['reference']} items, features: {figures['features']}"
    sampler = f"{against}; sampler {figures['sampler']}" if "sampler" in figures else against
    return ["## Figures", _table(("", "value", "± (95 %)", "n"), table), _line(sampler) if figures["features"] else ""]


def _describe(model: ScoreModel, interval: Range | None, levels: int | None) -> dict[str, Any]:
    from scorefield import __version__

    return {
        "format": FORMAT,
        "scorefield": __version__,
        "model": describe_model(model),
        "data": {"name": "unknown", "size": 0, "fingerprint": "", "range": None},
        "shape": list(model.shape or ()),
        "range": None if interval is None else list(interval),
        "levels": levels,
        "classes": [],
        "config": {},
    }


def _last_part(path: object) -> str:
    """What a path names; where it lies is nobody's business."""
    return re.split(r"[/\\]", str(path).rstrip("/\\"))[-1]


def _is_ours(folder: Path) -> bool:
    """Whether an earlier call wrote the folder; a run that is still trained has weights that would be lost."""
    return is_published(folder)


def _call(described: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in described["arguments"].items())
    return f"{described['class']}({arguments})"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise InputError("the hub needs the package huggingface_hub; install scorefield[hub]") from None
    return huggingface_hub
