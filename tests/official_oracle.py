"""The networks of the official code recomputed from a state dict under its names: plain functions, float64, no module of ours.

Written from the papers (Song et al. 2021, appendix H; Song & Ermon 2019, 2020) and the layout of the official state dicts. A
test holds it to the recordings of the official code; others hold our networks to it for options that no recording has.
"""

import math

import torch
from torch.nn import functional as F

ACT = {"swish": F.silu, "elu": F.elu, "relu": F.relu, "lrelu": lambda x: torch.where(x > 0, x, 0.2 * x)}


def upfirdn(x, taps, up, down, before, after):
    """Zeros after every entry, zeros around, true convolution, every `down`-th entry (StyleGAN2), from slices."""
    k = torch.tensor(taps, dtype=torch.float64)
    k = (k.outer(k) if k.ndim == 1 else k) / (k.outer(k) if k.ndim == 1 else k).sum() * up**2
    b, c, h, w = x.shape
    z = x.new_zeros(b, c, h * up, w * up)
    z[..., ::up, ::up] = x
    z = F.pad(z, (before, after, before, after))
    n = k.shape[0]
    rows, columns = z.shape[2] - n + 1, z.shape[3] - n + 1
    y = sum(k[n - 1 - i, n - 1 - j] * z[..., i : i + rows, j : j + columns] for i in range(n) for j in range(n))
    return y[..., ::down, ::down]


def fir_down(x, taps):
    p = len(taps) - 2
    return upfirdn(x, taps, 1, 2, (p + 1) // 2, p // 2)


def fir_up(x, taps):
    p = len(taps) - 2
    return upfirdn(x, taps, 2, 1, (p + 1) // 2 + 1, p // 2)


def mean_down(x):
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def repeat_up(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


class _Walk:
    """The official list of modules, taken one after the other."""

    def __init__(self, state):
        self.state = {k: v.double() for k, v in state.items()}
        self.at = -1

    def next(self):
        self.at += 1
        return lambda name: self.state[f"all_modules.{self.at}.{name}"]

    def has(self, name):
        return f"all_modules.{self.at}.{name}" in self.state


def unet(config, state, x, t):
    """`ddpm` and `ncsnpp`: x (B, C, H, W) float64, t (B,) float64 labels or noise levels."""
    model, plus = config["model"], config["model"]["name"] == "ncsnpp"
    act = ACT[model["nonlinearity"].lower()]
    walk = _Walk(state)
    taps = model["fir_kernel"] if plus and model["fir"] else None
    biggan = plus and model["resblock_type"].lower() == "biggan"
    root = math.sqrt(2) if plus and model["skip_rescale"] else 1.0
    progressive, pyramid_in = (
        (model["progressive"].lower(), model["progressive_input"].lower()) if plus else ("none", "none")
    )
    fourier = plus and model["embedding_type"].lower() == "fourier"
    conditional = model["conditional"] or not plus
    nf, size = model["nf"], config["data"]["image_size"]

    def conv(p, name, h, pad=1, **kw):
        prefix = f"{name}." if name else ""
        return F.conv2d(h, p(f"{prefix}weight"), p(f"{prefix}bias"), padding=pad, **kw)

    def norm(p, name, h):
        prefix = f"{name}." if name else ""
        groups = min(h.shape[1] // 4, 32) if plus else 32
        return F.group_norm(h, groups, p(f"{prefix}weight"), p(f"{prefix}bias"), 1e-6)

    def nin(p, name, h):
        return torch.einsum("bchw,cd->bdhw", h, p(f"{name}.W")) + p(f"{name}.b").reshape(1, -1, 1, 1)

    def block(h, e, resample=None):
        p = walk.next()
        y = act(norm(p, "GroupNorm_0", h))
        if resample is not None:
            y, h = resample(y), resample(h)
        y = conv(p, "Conv_0", y)
        if e is not None:
            y = y + F.linear(act(e), p("Dense_0.weight"), p("Dense_0.bias"))[:, :, None, None]
        y = conv(p, "Conv_1", act(norm(p, "GroupNorm_1", y)))
        if walk.has("NIN_0.W"):
            h = nin(p, "NIN_0", h)
        elif walk.has("Conv_2.weight"):
            h = conv(p, "Conv_2", h, 0)
        return (h + y) / root

    def attention(h):
        p = walk.next()
        y = norm(p, "GroupNorm_0", h)
        q, k, v = (nin(p, f"NIN_{i}", y).flatten(2) for i in range(3))
        w = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(q.shape[1]), -1)
        return (h + nin(p, "NIN_3", torch.einsum("bij,bcj->bci", w, v).reshape(h.shape))) / root

    def halve(h):
        return mean_down(h) if taps is None else fir_down(h, taps)

    def double(h):
        return repeat_up(h) if taps is None else fir_up(h, taps)

    def down(h, with_conv):
        p = walk.next()  # has a place in the list with weights or without
        if not with_conv:
            return halve(h)
        if taps is None:
            return conv(p, "Conv_0", F.pad(h, (0, 1, 0, 1)), 0, stride=2)
        n = len(taps)
        return conv(p, "Conv2d_0", upfirdn(h, taps, 1, 1, (n + 1) // 2, n // 2), 0, stride=2)

    def up(h, with_conv):
        p = walk.next()
        if not with_conv:
            return double(h)
        if taps is None:
            return conv(p, "Conv_0", repeat_up(h))
        n = len(taps)
        z = h.new_zeros(*h.shape[:2], 2 * h.shape[2] - 1, 2 * h.shape[3] - 1)
        z[..., ::2, ::2] = h
        y = F.conv2d(z, p("Conv2d_0.weight"), padding=2)  # the transposed convolution with the flipped kernel
        y = 4 * upfirdn(y, taps, 1, 1, (n - 3) // 2 + 1, (n - 4) // 2 + 1)
        return y + p("Conv2d_0.bias").reshape(1, -1, 1, 1)

    def head(h):
        h = act(norm(walk.next(), "", h))
        return conv(walk.next(), "", h)

    e = None
    frequencies = walk.next() if fourier else None  # in the list whether it is used or not
    if fourier and conditional:
        phase = torch.log(t)[:, None] * frequencies("W")[None] * 2 * math.pi
        e = torch.cat([phase.sin(), phase.cos()], 1)
    elif conditional:
        half = nf // 2
        phase = t[:, None] * torch.exp(-math.log(10000) / (half - 1) * torch.arange(half, dtype=torch.float64))
        e = torch.cat([phase.sin(), phase.cos()], 1)
    for last in (False, True) if conditional else ():
        p = walk.next()
        e = F.linear(act(e) if last else e, p("weight"), p("bias"))

    h = x if config["data"]["centered"] else 2 * x - 1
    pyramid = h
    hs = [conv(walk.next(), "", h)]
    levels = len(model["ch_mult"])
    attended = [size // 2**i in model["attn_resolutions"] for i in range(levels)]
    for i in range(levels):
        for _ in range(model["num_res_blocks"]):
            h = block(hs[-1], e)
            hs.append(attention(h) if attended[i] else h)
        if i == levels - 1:
            break
        h = block(hs[-1], e, halve) if biggan else down(hs[-1], model["resamp_with_conv"])
        if pyramid_in == "input_skip":
            pyramid = halve(pyramid)
            merged = conv(walk.next(), "Conv_0", pyramid, 0)
            h = torch.cat([merged, h], 1) if model["progressive_combine"].lower() == "cat" else merged + h
        elif pyramid_in == "residual":
            h = pyramid = (down(pyramid, True) + h) / root
        hs.append(h)

    h = block(attention(block(hs[-1], e)), e)
    output = None
    for i in reversed(range(levels)):
        for _ in range(model["num_res_blocks"] + 1):
            h = block(torch.cat([h, hs.pop()], 1), e)
        if attended[i]:
            h = attention(h)
        if progressive == "output_skip":
            output = head(h) if output is None else double(output) + head(h)
        elif progressive == "residual" and output is None:
            output = head(h)
        elif progressive == "residual":
            h = output = (up(output, True) + h) / root
        if i:
            h = block(h, e, double) if biggan else up(h, model["resamp_with_conv"])
    y = output if progressive == "output_skip" else head(h)
    if model["scale_by_sigma"]:
        sigma = t if fourier else ladder(model)[t.long()]
        y = y / sigma.reshape(-1, 1, 1, 1)
    return y


def ladder(model):
    """The noise level of every label, the largest first."""
    n = model["num_scales"]
    return model["sigma_max"] * (model["sigma_min"] / model["sigma_max"]) ** (torch.arange(n).double() / (n - 1))


def refinenet(config, state, x, t):
    """`ncsn` and `ncsnv2_*`, with every normalisation; t (B,) integer labels."""
    model = config["model"]
    state = {k: v.double() for k, v in state.items()}
    act, kind = ACT[model["nonlinearity"].lower()], model["normalization"]
    labelled = model["name"] == "ncsn"
    stages = {"ncsn": "1 2 3 4", "ncsnv2_64": "1 2 3 4", "ncsnv2_128": "1 2 3 4 5", "ncsnv2_256": "1 2 3 31 4 5"}
    dilation = dict(zip(stages[model["name"]].split()[::-1], (4, 2, *[1] * 6), strict=False))

    def conv(name, h, dilation=1):
        w = state[f"{name}.weight"]
        pad = w.shape[-1] // 2 * dilation
        return F.conv2d(h, w, state.get(f"{name}.bias"), padding=pad, dilation=dilation)

    def normalize(name, h, eps=1e-5):
        n, c = h.shape[:2]
        mean, var = h.mean((2, 3), keepdim=True), h.var((2, 3), keepdim=True, unbiased=False)
        standard = (h - mean) / torch.sqrt(var + eps)
        if labelled:
            rows = state[f"{name}.embed.weight"][t].reshape(n, -1, 1, 1)
            parts = rows.split(c, 1)
        else:
            parts = tuple(
                state[f"{name}.{part}"].reshape(1, c, 1, 1)
                for part in ("gamma", "alpha", "beta", "weight", "bias")
                if f"{name}.{part}" in state
            )
        if kind == "InstanceNorm++":
            m = mean[:, :, 0, 0]
            plus = ((m - m.mean(1, keepdim=True)) / torch.sqrt(m.var(1, keepdim=True) + 1e-5))[:, :, None, None]
            return parts[0] * (standard + parts[1] * plus) + parts[2]
        if kind == "VarianceNorm":
            return parts[0] * h / torch.sqrt(h.var((2, 3), keepdim=True) + eps)
        if kind == "NoneNorm":
            return parts[0] * h + parts[1] if labelled else h
        if kind == "GroupNorm":
            return F.group_norm(h, min(c // 4, 32), parts[0].flatten(), parts[1].flatten(), eps)
        return parts[0] * standard + parts[1] if labelled else standard

    def residual(name, h, first, stage):
        d = dilation[stage]
        y = conv(f"{name}.conv1", act(normalize(f"{name}.normalize1", h)), d)
        y = act(normalize(f"{name}.normalize2", y))
        if first and stage != "1" and d == 1:
            return mean_down(conv(f"{name}.shortcut.conv", h)) + mean_down(conv(f"{name}.conv2.conv", y))
        y = conv(f"{name}.conv2", y, d)
        return (conv(f"{name}.shortcut", h, d) if f"{name}.shortcut.weight" in state else h) + y

    def units(name, h, blocks):
        for i in range(1, blocks + 1):
            start = h
            for j in (1, 2):
                z = normalize(f"{name}.{i}_{j}_norm", h) if labelled else h
                h = conv(f"{name}.{i}_{j}_conv", act(z))
            h = h + start
        return h

    def refine(name, inputs, last):
        hs = [units(f"{name}.adapt_convs.{i}", h, 2) for i, h in enumerate(inputs)]
        h = hs[0]
        if len(hs) > 1:
            hs = [normalize(f"{name}.msf.norms.{i}", z) if labelled else z for i, z in enumerate(hs)]
            hs = [conv(f"{name}.msf.convs.{i}", z) for i, z in enumerate(hs)]
            size = hs[0].shape[2:]
            h = sum(F.interpolate(z, size=size, mode="bilinear", align_corners=True) for z in hs)
        h = path = act(h)
        for i in range(2):
            if labelled:
                path = F.avg_pool2d(normalize(f"{name}.crp.norms.{i}", path), 5, 1, 2)
            else:
                path = F.max_pool2d(path, 5, 1, 2)
            path = conv(f"{name}.crp.convs.{i}", path)
            h = h + path
        return units(f"{name}.output_convs", h, 3 if last else 1)

    h = conv("begin_conv", x if config["data"]["centered"] else 2 * x - 1)
    layers = []
    for stage in stages[model["name"]].split():
        for j in (0, 1):
            h = residual(f"res{stage}.{j}", h, j == 0, stage)
        layers.append(h)
    names = {4: "1 2 3 4", 5: "1 2 3 4 5", 6: "1 2 31 3 4 5"}[len(layers)].split()
    y = None
    for i, name in enumerate(names):
        layer = layers.pop()
        y = refine(f"refine{name}", [layer] if y is None else [layer, y], i == len(names) - 1)
    # The official code hands the number of noise levels to the last normalisation, where plain instance norm takes it for eps.
    eps = model["num_scales"] if kind == "InstanceNorm" and not labelled else 1e-5
    y = conv("end_conv", act(normalize("normalizer", y, eps)))
    return y if labelled else y / ladder(model)[t.long()].reshape(-1, 1, 1, 1)


def network(config, state, x, t):
    """The output of the network that the configuration names."""
    return (unet if config["model"]["name"] in ("ddpm", "ncsnpp") else refinenet)(config, state, x, t)
