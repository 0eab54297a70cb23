"""What a reader of the pages has: files and runs of a toy size, made where `<!-- given: NAME -->` asks for them."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from PIL import Image

import scorefield as sf
from cli_tools import tiny_run

TEXT = "the quick brown fox jumps over the lazy dog and writes 100 lines of the theory of a function.\n" * 12


def make(name: str) -> None:
    """Make a file or folder of this name in the current folder.

    Raises:
        AssertionError: nobody has said how.
    """
    key = name.rstrip("/")
    kind = key if key in MAKERS else "." + key.rpartition(".")[2]
    assert kind in MAKERS, f"nobody makes {name}: add it to MAKERS in tests/given.py"
    Path(key).parent.mkdir(parents=True, exist_ok=True)
    MAKERS[kind](Path(key))


def picture(path: Path, size=(28, 28), channels=1, seed=0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)
    Image.fromarray(pixels.squeeze()).save(path)


def pictures(path: Path, size=(40, 32), names=tuple(f"{i % 2}/{i}" for i in range(20))) -> None:
    for seed, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(path / f"{name}.png", size, 3, seed)


def halves(path: Path) -> None:
    """A mask: the upper half is white."""
    mask = np.zeros((28, 28), np.uint8)
    mask[:14] = 255
    Image.fromarray(mask).save(path)


@cache
def store() -> Path:
    """Where runs are kept for the whole session; made once, then copied."""
    import atexit

    folder = Path(mkdtemp(prefix="scorefield-given-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def digits_run(path: Path, classes=False) -> None:
    """A run on the embedded digits that stands for a good one, and for the bundled one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = sf.nn.DiT(1, patch=7, depth=1, width=16, heads=2, num_classes=10 if classes else 0)
    model = sf.ScoreModel(net, sf.VP(), "noise", shape=(1, 28, 28))
    sf.train(model, sf.digits(), out=path, steps=2, batch_size=4, warmup=1, checkpoint_every=1, device="cpu")


def kept(maker):
    """The same, made once a session."""

    def copy(path: Path) -> None:
        there = store() / path.name
        if not there.exists():
            maker(there)
        shutil.copytree(there, path, dirs_exist_ok=True)

    return copy


def table(path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = "\n".join(",".join(f"{v:.3f}" for v in row) for row in rng.normal((0, 5, -2), size=(80, 3)))
    path.write_text(f"height,weight,age\n{rows}\n", "utf-8")


def survey(path: Path) -> None:
    rows = "\n".join(f"{'yes' if i % 3 else 'no'},{'nesw'[i % 4]},{i}" for i in range(64))
    path.write_text(f"answer,where,number\n{rows}\n", "utf-8")


def wave_file(path: Path, seed: int) -> None:
    """A second of noise that sounds now and then."""
    g = torch.Generator().manual_seed(seed)
    loud = (torch.sin(torch.arange(8000) / 500) > 0).float()
    sf.data.write_wave(path, 0.1 * torch.randn(8000, generator=g) * loud + 0.001 * torch.randn(8000, generator=g), 8000)


def recordings(path: Path) -> None:
    for i in range(3):
        for kind in ("clean", "noisy"):
            (path / kind).mkdir(parents=True, exist_ok=True)
            wave_file(path / kind / f"{i}.wav", i + 10 * (kind == "noisy"))


def tiny_unet(cross=False):
    import diffusers

    torch.manual_seed(0)
    options = {"sample_size": 8, "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    if not cross:
        kinds = {
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        }
        return diffusers.UNet2DModel(attention_head_dim=8, **options, **kinds)
    kinds = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    sizes = {"in_channels": 4, "out_channels": 4, "attention_head_dim": 4, "cross_attention_dim": 8}
    return diffusers.UNet2DConditionModel(**options, **sizes, **kinds)


def tiny_vae():
    import diffusers

    return diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8)


def pixel_pipeline(path: Path) -> None:
    import diffusers

    diffusers.DDPMPipeline(tiny_unet(), diffusers.DDPMScheduler()).save_pretrained(path)


def class_pipeline(path: Path) -> None:
    import diffusers

    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, sample_size=8, patch_size=2,
        activation_fn="gelu-approximate", attention_bias=True, norm_type="ada_norm_zero", num_embeds_ada_norm=1000,
        norm_elementwise_affine=False,
    )  # fmt: skip
    diffusers.DiTPipeline(net, tiny_vae(), diffusers.DDIMScheduler()).save_pretrained(path)


def text_folder(path: Path) -> None:
    import diffusers

    tiny_unet(cross=True).save_pretrained(path / "unet")
    tiny_vae().save_pretrained(path / "vae")
    diffusers.DDIMScheduler(clip_sample=False).save_pretrained(path / "scheduler")


def flow_folder(path: Path) -> None:
    import diffusers

    diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=2,
        joint_attention_dim=8, caption_projection_dim=8, pooled_projection_dim=6, out_channels=4, pos_embed_max_size=8,
    ).save_pretrained(path / "transformer")  # fmt: skip
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(path / "scheduler")


FLAGS = {
    "image_size": 16, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2", "attention_resolutions": 8,
    "num_head_channels": 16, "learn_sigma": True, "resblock_updown": True,
}  # fmt: skip


def adm_weights(path: Path) -> None:
    from scorefield.presets.guided import Guided

    torch.save(Guided.from_flags(FLAGS).network().state_dict(), path)


MAKERS = {
    "ddpm-cat-256": pixel_pipeline,
    "DiT-XL-2-256": class_pipeline,
    "stable-diffusion": text_folder,
    "stable-diffusion-3": flow_folder,
    "ffhq_10m.pt": adm_weights,
    "flags.json": lambda path: path.write_text(json.dumps(FLAGS), "utf-8"),
    "images.npy": lambda path: np.save(path, np.random.default_rng(0).integers(0, 256, (32, 1, 8, 8)).astype(np.uint8)),
    "photos": pictures,
    "cifar10/train": lambda path: pictures(path, (32, 32)),
    "cifar10/test": lambda path: pictures(path, (32, 32), ("a/6", "a/7", "b/8", "b/9")),
    "runs/digits": kept(digits_run),
    "runs/labelled": kept(lambda path: digits_run(path, classes=True)),
    "runs/cifar10": kept(lambda path: tiny_run(path, channels=3)),
    "mask.png": halves,
    "m.png": halves,
    "small.png": lambda path: picture(path, (7, 7)),
    "grey.png": lambda path: picture(path, (8, 8)),
    "ratings.npy": lambda path: np.save(path, np.random.default_rng(0).uniform(0, 10, (64, 6)).astype(np.float32)),
    "recordings": recordings,
    ".wav": lambda path: wave_file(path, 9),
    "survey.csv": survey,
    "ink.py": lambda path: path.write_text("def less(x):\n    return -x.mean((1, 2, 3))\n", "utf-8"),
    ".png": picture,
    ".npy": lambda path: np.save(path, np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)),
    ".csv": table,
    ".txt": lambda path: path.write_text(TEXT, "utf-8"),
}
"""By name, else by the end of the name."""
