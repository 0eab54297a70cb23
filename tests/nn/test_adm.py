"""The networks of guided diffusion and the diffusion transformer against those of diffusers, by the names of their weights."""

import pytest
import torch

import scorefield as sf
from scorefield.likelihood.forward.dual import pushforward
from scorefield.nn import ADM, DiT, dit
from scorefield.nn.patches import positions

G = torch.Generator().manual_seed(0)
X, T = torch.randn(2, 3, 8, 8, generator=G), torch.tensor([3.0, 640.25])
LABEL = torch.tensor([1, 4])


def random_(net):
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    return net.eval()


def adm(**options):
    settings = {"nf": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn": (1,), "head_channels": 8, "num_classes": 5}
    return random_(ADM(3, **(settings | options)))


def theirs_adm(net):
    """The UNet2DModel of the same architecture, with the same weights."""
    diffusers = pytest.importorskip("diffusers")
    options, widths = net.config, [int(m * net.nf) for m in net.config["ch_mult"]]
    kind = "resnet" if options["resblock_updown"] else "conv"
    down = ["AttnDownBlock2D" if i in options["attn"] else "ResnetDownsampleBlock2D" for i in range(len(widths))]
    up = ["AttnUpBlock2D" if i in options["attn"] else "ResnetUpsampleBlock2D" for i in reversed(range(len(widths)))]
    if kind == "conv":
        down = [k.replace("ResnetDownsample", "Down") for k in down]
        up = [k.replace("ResnetUpsample", "Up") for k in up]
    model = diffusers.UNet2DModel(
        in_channels=3, out_channels=6 if options["learn_sigma"] else 3, block_out_channels=widths, norm_num_groups=32,
        layers_per_block=options["num_res_blocks"], attention_head_dim=options["head_channels"], down_block_types=down,
        up_block_types=up, resnet_time_scale_shift="scale_shift" if options["scale_shift"] else "default",
        downsample_type=kind, upsample_type=kind, num_class_embeds=options["num_classes"] or None,
        attn_norm_num_groups=32,
    ).eval()  # fmt: skip
    model.load_state_dict(renamed(net))
    return model


def renamed(net):
    """The state dict of an ADM under the names of diffusers."""
    state, out = net.state_dict(), {}
    resblock = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
                "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}  # fmt: skip

    def copy(ours, theirs):
        for part in ("weight", "bias"):
            if f"{ours}.{part}" in state:
                out[f"{theirs}.{part}"] = state[f"{ours}.{part}"]

    def block(ours, theirs):
        for a, b in resblock.items():
            copy(f"{ours}.{a}", f"{theirs}.{b}")

    def attention(ours, theirs, layer):
        copy(f"{ours}.norm", f"{theirs}.group_norm")
        for part in ("weight", "bias"):
            qkv = state[f"{ours}.qkv.{part}"].flatten(1) if part == "weight" else state[f"{ours}.qkv.{part}"]
            if not net.config["new_attention_order"]:  # heads outside, q, k, v inside: bring q, k, v outside
                qkv = qkv.reshape(layer.heads, 3, -1, *qkv.shape[1:]).transpose(0, 1).reshape(qkv.shape)
            for name, value in zip(("to_q", "to_k", "to_v"), qkv.chunk(3), strict=True):
                out[f"{theirs}.{name}.{part}"] = value
            out[f"{theirs}.to_out.0.{part}"] = state[f"{ours}.proj_out.{part}"].squeeze(-1)

    copy("time_embed.0", "time_embedding.linear_1")
    copy("time_embed.2", "time_embedding.linear_2")
    if net.num_classes:
        copy("label_emb", "class_embedding")
    copy("input_blocks.0.0", "conv_in")
    blocks, levels = net.config["num_res_blocks"], net.levels
    at = 1
    for i in range(levels):
        for j in range(blocks):
            block(f"input_blocks.{at}.0", f"down_blocks.{i}.resnets.{j}")
            if len(net.input_blocks[at]) > 1:
                attention(f"input_blocks.{at}.1", f"down_blocks.{i}.attentions.{j}", net.input_blocks[at][1])
            at += 1
        if i < levels - 1:
            block(f"input_blocks.{at}.0", f"down_blocks.{i}.downsamplers.0")
            copy(f"input_blocks.{at}.0.op", f"down_blocks.{i}.downsamplers.0.conv")
            at += 1
    block("middle_block.0", "mid_block.resnets.0")
    attention("middle_block.1", "mid_block.attentions.0", net.middle_block[1])
    block("middle_block.2", "mid_block.resnets.1")
    at = 0
    for i in range(levels):
        for j in range(blocks + 1):
            layers = net.output_blocks[at]
            block(f"output_blocks.{at}.0", f"up_blocks.{i}.resnets.{j}")
            attended = len(layers) > 1 and hasattr(layers[1], "qkv")
            if attended:
                attention(f"output_blocks.{at}.1", f"up_blocks.{i}.attentions.{j}", layers[1])
            last = len(layers) - 1
            if last > attended:
                block(f"output_blocks.{at}.{last}", f"up_blocks.{i}.upsamplers.0")
                copy(f"output_blocks.{at}.{last}.conv", f"up_blocks.{i}.upsamplers.0.conv")
            at += 1
    copy("out.0", "conv_norm_out")
    copy("out.2", "conv_out")
    return out


ADMS = {
    "imagenet": {},
    "unconditional": {"num_classes": 0, "learn_sigma": True},
    "new order": {"new_attention_order": True, "attn": (0, 1)},
    "shift only": {"scale_shift": False},
    "convolutions": {"resblock_updown": False, "ch_mult": (1, 2, 2), "attn": (2,)},
    "deep": {"num_res_blocks": 2, "ch_mult": (1, 1, 2)},
}


@pytest.mark.parametrize("name", ADMS)
def test_adm_is_that_of_diffusers(name):
    net = adm(**ADMS[name])
    label = LABEL if net.num_classes else None
    with torch.no_grad():
        expected = theirs_adm(net)(X, T, class_labels=label).sample
        y, variance = net.both(X, T, label)
        assert torch.equal(net(X, T, label), y)
    torch.testing.assert_close(y, expected[:, :3], rtol=1e-4, atol=1e-4)
    assert (variance is None) == (expected.shape[1] == 3)
    if variance is not None:
        torch.testing.assert_close(variance, expected[:, 3:], rtol=1e-4, atol=1e-4)


def test_the_names_are_those_of_guided_diffusion():
    """Those that the authors' files have, of each kind."""
    names = set(adm(attn=(1,), learn_sigma=True).state_dict())
    assert {
        "time_embed.0.weight", "time_embed.2.bias", "label_emb.weight", "input_blocks.0.0.weight",
        "input_blocks.1.0.in_layers.0.weight", "input_blocks.1.0.in_layers.2.bias", "input_blocks.1.0.emb_layers.1.weight",
        "input_blocks.1.0.out_layers.0.weight", "input_blocks.1.0.out_layers.3.weight", "input_blocks.2.0.in_layers.2.weight",
        "input_blocks.3.0.skip_connection.weight", "input_blocks.3.1.norm.weight", "input_blocks.3.1.qkv.weight",
        "input_blocks.3.1.proj_out.bias", "middle_block.0.in_layers.0.weight", "middle_block.1.qkv.bias",
        "output_blocks.1.2.in_layers.0.weight", "output_blocks.3.0.skip_connection.bias", "out.0.weight", "out.2.weight",
    } <= names  # fmt: skip
    assert not any(".h_upd" in name or ".x_upd" in name for name in names)
    assert "input_blocks.2.0.op.weight" in set(adm(resblock_updown=False).state_dict())


def test_adm_gradients_and_second_order():
    net = adm().double()
    x = X.double().requires_grad_()
    (g,) = torch.autograd.grad(net(x, T.double(), LABEL).square().sum(), x, create_graph=True)
    g.square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nf": 0}, "nf=0"),
        ({"attn": (2,)}, r"attn=\(2,\)"),
        ({"head_channels": 7}, "head_channels=7, heads=4: they do not divide"),
        ({"head_channels": None, "heads": 5}, "heads=5: they do not divide"),
    ],
    ids=str,
)
def test_wrong_options_of_adm_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        adm(**options)


def test_wrong_inputs_of_adm_are_named():
    net = adm()
    for label, message in (
        (None, "needs one of each"), (LABEL.float(), "expected integers"), (LABEL - 2, "from 0 to 4; this network has no null"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^label: .*{message}"):
            net(X, T, label)
    with pytest.raises(ValueError, match="divisible by 2"):
        net(X[..., :7], T, LABEL)
    with pytest.raises(ValueError, match="knows no classes"):
        adm(num_classes=0)(X, T, LABEL)


# --- the transformer


def theirs_dit(net, size):
    diffusers = pytest.importorskip("diffusers")
    options = net.config
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=options["heads"], attention_head_dim=options["width"] // options["heads"], in_channels=3,
        out_channels=6 if options["learn_sigma"] else 3, num_layers=options["depth"], sample_size=size,
        patch_size=options["patch"], num_embeds_ada_norm=options["num_classes"], activation_fn="gelu-approximate",
        attention_bias=True,
    ).eval()  # fmt: skip
    state, out = net.state_dict(), {}

    def copy(ours, theirs):
        for part in ("weight", "bias"):
            if f"{ours}.{part}" in state:
                out[f"{theirs}.{part}"] = state[f"{ours}.{part}"]

    copy("x_embedder.proj", "pos_embed.proj")
    copy("final_layer.adaLN_modulation.1", "proj_out_1")
    copy("final_layer.linear", "proj_out_2")
    for i, block in enumerate(model.transformer_blocks):
        a, b = f"blocks.{i}", f"transformer_blocks.{i}"
        copy("t_embedder.mlp.0", f"{b}.norm1.emb.timestep_embedder.linear_1")
        copy("t_embedder.mlp.2", f"{b}.norm1.emb.timestep_embedder.linear_2")
        copy("y_embedder.embedding_table", f"{b}.norm1.emb.class_embedder.embedding_table")
        copy(f"{a}.adaLN_modulation.1", f"{b}.norm1.linear")
        for part in ("weight", "bias"):
            for name, value in zip("qkv", state[f"{a}.attn.qkv.{part}"].chunk(3), strict=True):
                out[f"{b}.attn1.to_{name}.{part}"] = value
        copy(f"{a}.attn.proj", f"{b}.attn1.to_out.0")
        copy(f"{a}.mlp.fc1", f"{b}.ff.net.0.proj")
        copy(f"{a}.mlp.fc2", f"{b}.ff.net.2")
        block.norm1.emb.time_proj.downscale_freq_shift = (
            0  # as the authors'; diffusers ends its frequencies one step on
        )
    model.load_state_dict(out)
    return model


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_dit_is_that_of_diffusers(patch, learn_sigma):
    net = random_(DiT(3, patch, 2, 24, 3, num_classes=5, learn_sigma=learn_sigma, time_scale=1.0))
    with torch.no_grad():
        expected = theirs_dit(net, 8)(X, timestep=T, class_labels=LABEL).sample[:, :3]
        null = theirs_dit(net, 8)(X, timestep=T, class_labels=torch.tensor([5, 2])).sample[:, :3]
        torch.testing.assert_close(net(X, T, LABEL), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(net(X, T, torch.tensor([-1, 2])), null, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(net(X, T)[0], null[0], rtol=1e-4, atol=1e-4)


def test_dit_takes_any_grid_and_begins_at_zero():
    net = dit("XS", 3, 4, num_classes=2)
    assert not net(torch.randn(1, 3, 8, 20), torch.tensor([0.5])).any()
    net = random_(net)
    wide = net(torch.randn(2, 3, 8, 20), torch.tensor([0.5, 0.1]))
    assert wide.shape == (2, 3, 8, 20)
    assert len(positions(2, 5, 192)) == 10
    wide.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_sizes_of_dit_are_the_paper_s():
    """Table 1 of Peebles & Xie 2023 with patches of 2 on latents of 4 channels and 1000 classes: 33, 130, 458, 675 million."""
    millions = {}
    for size in ("S", "B", "L", "XL"):
        with torch.device("meta"):
            net = dit(size, 4, 2, num_classes=1000, learn_sigma=True)
        millions[size] = round(sum(p.numel() for p in net.parameters()) / 1e6)
    assert millions == {"S": 33, "B": 130, "L": 458, "XL": 675}


def test_wrong_uses_of_dit_are_named():
    with pytest.raises(ValueError, match="size='M' is unknown; choose one of XS, S, B, L, XL"):
        dit("M")
    with pytest.raises(ValueError, match="width=30"):
        DiT(width=30, heads=3)
    net = DiT(3, 4, 1, 8, 2, num_classes=3)
    with pytest.raises(ValueError, match="sides divisible by 4"):
        net(X[..., :6], T)
    for label in (LABEL, LABEL.float(), torch.tensor([0, 1, 2])):
        with pytest.raises(ValueError, match=r"^label: expected integers below 3 of shape \(2,\)"):
            net(X, T, label)
    with pytest.raises(ValueError, match="built without classes"):
        DiT(3, 4, 1, 8, 2)(X, T, LABEL)


@pytest.mark.parametrize("build", [lambda: DiT(1, 2, 1, 16, 2), lambda: ADM(1, 32, (1, 2), 1, (1,), head_channels=16)])
def test_forward_mode_and_half_precision(build):
    net = random_(build()).double()
    model = sf.ScoreModel(net, sf.VP(), shape=(1, 4, 4), clock=None if isinstance(net, DiT) else 999.0)
    x, d, v = torch.randn(3, 2, 1, 4, 4, generator=G).double()
    x.requires_grad_()
    (g,) = torch.autograd.grad(model.velocity(x, 0.3), x, v)
    with torch.no_grad():
        _, tangent = pushforward(lambda z: model.velocity(z, 0.3), x.detach(), d.unsqueeze(0))
    torch.testing.assert_close((tangent[0] * v).sum(), (g * d).sum())
    half = sf.ScoreModel(net.bfloat16(), sf.VP(), "noise", shape=(1, 4, 4))
    assert sf.sample(half, 2, sf.DDIM(), steps=2, seed=0).isfinite().all()
