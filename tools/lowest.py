"""Whether the floors of pyproject.toml are true: installs the lowest version of every dependency and runs some of everything.

    python tools/lowest.py                                        # the core
    python tools/lowest.py --extras plot sklearn diffusers        # and extras
    python tools/lowest.py --keep torch==2.13.0                   # where a floor cannot be had

It makes an environment in a temporary folder with a space in its path, installs there, and prints what happened.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[1]

SMOKE = """
import torch, scorefield as sf
model = sf.load("digits")
x = sf.sample(model, 2, steps=2, seed=0)
assert x.shape == (2, 1, 28, 28) and x.isfinite().all()
small = sf.ScoreModel(sf.nn.MLP(2, width=16), sf.VP(), "noise", shape=(2,))
data = torch.randn(64, 2)
run = sf.train(small, data, out="run", steps=3, batch_size=8, device="cpu")
run = sf.train(small, data, out="run", steps=6, batch_size=8, device="cpu")
model = sf.load("run")
lp = sf.log_prob(model, data[:4], trace="exact")
assert lp.nats.isfinite().all()
z = sf.encode(model, data[:4])
assert (sf.decode(model, z) - data[:4]).abs().max() < 1e-3
y = sf.sample(model | sf.Posterior(sf.Mask(torch.tensor([True, False])), torch.zeros(2), noise=0.1), 3, steps=4)
net = sf.nn.UNet(1, 8, (1, 2), 1, ())
sf.log_prob(sf.ScoreModel(net, sf.VP(), shape=(1, 8, 8)), torch.randn(1, 1, 8, 8), solver=sf.Heun(), steps=3, probes=2)
p = sf.discrete.Absorbing(5)
sf.sample(sf.discrete.JumpModel(sf.nn.Transformer(6, 5, width=8, depth=1), p, (4,), clock=None), 2, steps=3)
"""
MORE = {
    "plot": "import scorefield as sf; gm = sf.GaussianMixture([[0.0, 0.0]], 1.0, None, sf.VP()); "
    "from scorefield.diagnose import report; report(gm, gm.sample(50, seed=0), only=['start']).write('d.html')",
    "sklearn": "import numpy as np, scorefield as sf; "
    "sf.ScoreDensity(steps=0).fit(np.random.randn(80, 2)).score(np.zeros((1, 2)))",
    "diffusers": "import diffusers, scorefield as sf; u = diffusers.UNet2DModel(sample_size=8, block_out_channels=(8, 8), "
    "norm_num_groups=4, down_block_types=('DownBlock2D',) * 2, up_block_types=('UpBlock2D',) * 2); "
    "m = sf.pretrained.from_diffusers(u, diffusers.DDIMScheduler()); sf.sample(m, 2, steps=2)",
    "train": "import torchmetrics, torch.utils.tensorboard; import numpy as np; np.save('x.npy', np.random.randn(64, 2)); "
    "from scorefield.cli import main; assert main(['train', 'vectors', '--data', 'x.npy', '--steps', '2', '--out', 't']) == 0",
    "hub": "import datasets, scorefield as sf; d = datasets.Dataset.from_dict({'x': [[0.0, 1.0]] * 8}); import huggingface_hub",
}
"""Python that an extra must run."""
COMMANDS = [
    "--version",
    "sample -n 4 --steps 2",
    "likelihood digits --data digits -n 1 --tolerance 0.1",
    "sample --help",
    "presets",
]


def floors(extras: list[str]) -> list[str]:
    """The dependencies as NAME==FLOOR."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for extra in extras for d in project["optional-dependencies"][extra])]
    by_name = {re.split(r"[=<>\[]", d)[0]: d for d in wanted}  # an extra may ask for more than the core
    return [re.sub(r">=", "==", d) for d in by_name.values()]


def ask(words: list[str], folder: Path) -> tuple[bool, str]:
    """Whether a program succeeds, and the end of what it says."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=1200)
    text = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return done.returncode == 0, text[-1] if text else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", nargs="*", default=[], choices=sorted(MORE))
    parser.add_argument("--keep", nargs="*", default=[], metavar="NAME==VERSION", help="versions in place of floors")
    options = parser.parse_args()
    kept = {word.partition("==")[0].lower(): word for word in options.keep}
    pins = [kept.get(re.split(r"[=<>\[]", pin)[0].lower(), pin) for pin in floors(options.extras)]
    failed = 0
    with tempfile.TemporaryDirectory(prefix="lowest versions ") as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        python = str(folder / "venv" / "bin" / "python")
        print("installing", *pins, flush=True)
        ok, said = ask([python, "-m", "pip", "install", "-q", *pins, str(ROOT)], folder)
        if not ok:
            print(f"cannot be installed together: {said}")
            return 1
        (folder / "smoke.py").write_text(SMOKE, "utf-8")
        tries = {f"scorefield {c}": [python, "-m", "scorefield", *c.split()] for c in COMMANDS}
        tries["training, densities, codes, posteriors, jumps"] = [python, "smoke.py"]
        tries |= {f"extra {extra}": [python, "-c", MORE[extra]] for extra in options.extras}
        for title, words in tries.items():
            ok, said = ask(words, folder)
            failed += not ok
            print("works " if ok else "FAILS ", title, "" if ok else f"({said})", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
