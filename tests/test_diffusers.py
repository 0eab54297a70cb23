"""Models of diffusers as score models: their predictions at the nodes, their samplers through ours, folders, refusals."""

import json
import math
import sys

import pytest
import torch

import scorefield as sf
from scorefield.errors import CheckpointError, InputError
from scorefield.ladder import DDPMScore, TableSDE
from scorefield.pretrained import autoencoder, from_diffusers, load_diffusers, save_diffusers, scheduler_grid
from scorefield.pretrained.diffusers_names import diffusers_rules
from scorefield.sdes import VE, RectifiedFlow

diffusers = pytest.importorskip("diffusers")


def unet(**options):
    torch.manual_seed(0)
    settings = {
        "sample_size": 8, "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }  # fmt: skip
    return diffusers.UNet2DModel(**(settings | options)).eval()


def conditional_unet():
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        attention_head_dim=4, cross_attention_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip


def dit(kind="DiTTransformer2DModel", out_channels=8):
    torch.manual_seed(0)
    options = {"norm_type": "ada_norm_zero", "num_embeds_ada_norm": 5, "norm_elementwise_affine": False}
    net = getattr(diffusers, kind)(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=out_channels, num_layers=2, sample_size=8,
        patch_size=2, activation_fn="gelu-approximate", attention_bias=True, **options,
    )  # fmt: skip
    return awake(net)


def sd3():
    torch.manual_seed(0)
    net = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=2,
        joint_attention_dim=8, caption_projection_dim=8, pooled_projection_dim=6, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    return awake(net)


def awake(net):
    """Layers that start at zero get weights, so that the network looks at its input."""
    for p in net.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return net.eval()


G = torch.Generator().manual_seed(3)
TEXT = {"encoder_hidden_states": torch.randn(2, 3, 8, generator=G)}
POOLED = TEXT | {"pooled_projections": torch.randn(2, 6, generator=G)}
CLASSES = {"class_labels": torch.tensor([1, 4])}
NETWORKS = {
    "unet": (unet, {}),
    "unet with a table of times": (lambda: unet(time_embedding_type="learned", num_train_timesteps=1000), {}),
    "unet with classes": (lambda: unet(num_class_embeds=5), CLASSES),
    "unet with text": (conditional_unet, TEXT),
    "dit": (dit, CLASSES),
    "transformer": (lambda: dit("Transformer2DModel", 4), CLASSES),
}
SCHEDULES = {
    "linear": {},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "zero terminal SNR": {"rescale_betas_zero_snr": True},
}


def scheduler(prediction="epsilon", schedule="linear", **options):
    return diffusers.DDIMScheduler(clip_sample=False, prediction_type=prediction, **(SCHEDULES[schedule] | options))


def state(net, n=2):
    g = torch.Generator().manual_seed(7)
    return torch.randn(n, net.config.in_channels, 8, 8, generator=g)


def call(net, x, label, cond):
    """What the network itself returns, without the channels of a learned variance."""
    first = "sample" if "UNet" in type(net).__name__ else "hidden_states"
    with torch.no_grad():
        y = net(**{first: x, "timestep": torch.as_tensor(label).expand(len(x))}, **cond).sample
    return y[:, : x.shape[1]]


def their_noise(net, plan, x, label, cond):
    """The noise that diffusers predicts: its network, and the conversions written in its DDIM."""
    y = call(net, x, label, cond)
    a = plan.alphas_cumprod[label].double()
    x, y = x.double(), y.double()
    if plan.config.prediction_type == "epsilon":
        return y
    if plan.config.prediction_type == "sample":
        return (x - a.sqrt() * y) / (1 - a).sqrt()
    return a.sqrt() * y + (1 - a).sqrt() * x


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_noise_at_the_nodes_by_schedule(prediction, schedule):
    net, plan = unet(), scheduler(prediction, schedule)
    model, x = from_diffusers(net, plan), state(net)
    for label in (0, 1, 17, 400, 998, 999):
        with torch.no_grad():
            ours = model.noise(x, (label + 1) / 1000)
        torch.testing.assert_close(ours.double(), their_noise(net, plan, x, label, {}), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noise_at_the_nodes_by_network(name, prediction):
    build, cond = NETWORKS[name]
    net, plan = build(), scheduler(prediction)
    model, x = from_diffusers(net, plan), state(net)
    assert model.shape == (net.config.in_channels, 8, 8)
    for label in (0, 400, 999):
        with torch.no_grad():
            ours = model.noise(x, (label + 1) / 1000, **cond)
        torch.testing.assert_close(ours.double(), their_noise(net, plan, x, label, cond), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("prediction", "options"),
    [
        ("epsilon", {}),
        ("v_prediction", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
        ("epsilon", {"set_alpha_to_one": False, "steps_offset": 1, "beta_schedule": "scaled_linear"}),
    ],
    ids=["plain", "zero terminal SNR", "stable"],
)
def test_ddim_is_their_ddim(name, prediction, options):
    build, cond = NETWORKS[name]
    net, plan = build(), scheduler(prediction, **options)
    model, x = from_diffusers(net, plan), state(net)
    grid = scheduler_grid(plan, 10)
    assert len(grid) == 11
    ends = {"t_start": float(grid[0]), "t_min": float(grid[-1])}
    ours = sf.sample(model, 2, sf.DDIM(), grid=grid, x_init=x, denoise=False, **ends, **cond)
    theirs = x
    for label in plan.timesteps:
        y = call(net, theirs, label, cond)
        theirs = plan.step(y, label, theirs).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_flow_matching_is_their_euler():
    net, plan = sd3(), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    model, x = from_diffusers((net, plan)), state(net)
    assert model.sde == RectifiedFlow()
    with torch.no_grad():
        y = call(net, x, 300.0, POOLED)
        torch.testing.assert_close(model.velocity(x, 0.3, **POOLED), y, rtol=1e-5, atol=1e-5)
    grid = scheduler_grid(plan, 20)
    ours = sf.sample(model, 2, sf.Euler(), grid=grid, x_init=x, t_start=1.0, t_min=0.0, **POOLED)
    theirs = x
    for label in plan.timesteps:
        y = call(net, theirs, label, POOLED)
        theirs = plan.step(y, label, theirs).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_edm_preconditioning_is_theirs():
    net = unet()
    for kind in ("epsilon", "v_prediction"):
        plan = diffusers.EDMEulerScheduler(prediction_type=kind, sigma_data=0.7)
        model, x = from_diffusers(net, plan), state(net)
        sigma = torch.tensor([1.3])
        inputs, label = plan.precondition_inputs(x, sigma), plan.precondition_noise(sigma)
        t = math.log(1.3 / 0.002) / math.log(80 / 0.002)
        with torch.no_grad():
            theirs = plan.precondition_outputs(x, net(inputs, label.expand(2)).sample, sigma)
            torch.testing.assert_close(model.denoise(x, t), theirs, rtol=1e-5, atol=1e-5)


def test_variance_exploding_is_theirs():
    net = unet(time_embedding_type="fourier")
    model = from_diffusers(net, diffusers.ScoreSdeVeScheduler(sigma_min=0.02, sigma_max=30.0))
    x = state(net)
    assert model.sde == VE(0.02, 30.0)
    sigma = model.sde.sigma(0.6)
    with torch.no_grad():
        theirs = net(x, sigma.float().expand(2)).sample
        torch.testing.assert_close(model.score(x, 0.6), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_table_is_an_sde(schedule):
    plan = scheduler(schedule=schedule)
    sde = from_diffusers(unet(), plan).sde
    table = plan.alphas_cumprod.double()
    nodes = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(sde.alpha(nodes) ** 2, table, rtol=1e-12, atol=1e-16)
    torch.testing.assert_close(sde.sigma(nodes) ** 2, 1 - table, rtol=1e-12, atol=1e-16)
    assert float(sde.alpha(0.0)) == 1.0
    assert float(sde.sigma(0.0)) == 0.0
    assert (float(sde.alpha(1.0)) == 0.0) == (schedule == "zero terminal SNR")
    fine = torch.linspace(0, 1, 20_011, dtype=torch.float64)
    assert (sde.alpha(fine).diff() < 0).all()
    assert (sde.log_snr(fine[1:-1]).diff() < 0).all()
    # the inverse, at nodes and between, and beyond what the table reaches
    t = torch.cat([fine[1:-1], nodes])
    torch.testing.assert_close(sde.inverse_log_snr(sde.log_snr(t)), t, rtol=1e-9, atol=1e-12)
    assert float(sde.inverse_log_snr(torch.inf)) == 0.0
    assert float(sde.inverse_log_snr(-torch.inf)) == 1.0
    # rates against differences, between nodes and at them
    t, h = torch.tensor([0.00025, 0.001, 0.0314, 0.5, 0.777], dtype=torch.float64), 1e-8
    for function, rate in zip((sde.alpha, sde.sigma), sde.derivatives(t), strict=True):
        torch.testing.assert_close((function(t + h) - function(t - h)) / (2 * h), rate, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(sde.f(t), sde.derivatives(t)[0] / sde.alpha(t))
    g2 = 2 * sde.sigma(t) * (sde.derivatives(t)[1] - sde.f(t) * sde.sigma(t))
    torch.testing.assert_close(sde.g2(t), g2)
    assert (sde.g2(fine[:-1]) >= 0).all()


@pytest.mark.parametrize(
    "table", [(0.9,), (0.9, 0.9), (0.5, 0.6), (1.0, 0.5), (0.5, -0.1), (float("nan"), 0.1)], ids=str
)
def test_tables_that_do_not_fall_are_refused(table):
    with pytest.raises(ValueError, match=r"^table: expected"):
        TableSDE(table)


def test_likelihood_and_codes():
    net = unet(sample_size=4, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    model = from_diffusers(net, scheduler())
    x = 0.3 * torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    solver = sf.Dopri5(1e-2, 1e-2)
    lp = sf.log_prob(model, x, solver=solver, probes=2, seed=0)
    assert lp.nats.isfinite().all()
    assert lp.stderr.isfinite().all()
    drawn = sf.sample(model, 3, sf.UniPC(), steps=4, seed=0)
    assert drawn.shape == (3, 3, 4, 4)
    assert drawn.isfinite().all()


def test_conditions_go_with_their_samples():
    net, plan = dit(), scheduler()
    model = from_diffusers(net, plan)
    label = torch.tensor([0, 3, 2])
    whole = sf.sample(model, 3, sf.DDIM(), steps=3, seed=0, class_labels=label)
    split = sf.sample(model, 3, sf.DDIM(), steps=3, seed=0, class_labels=label, batch_size=2)
    torch.testing.assert_close(whole, split, rtol=1e-4, atol=1e-4)
    x = state(net)
    with torch.no_grad():
        null = their_noise(net, plan, x, 400, {"class_labels": torch.tensor([5, 5])}).float()
        torch.testing.assert_close(model.noise(x, 0.401), null, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.noise(x, 0.401, label=None), null, rtol=1e-5, atol=1e-5)
        guided = (model | sf.ClassifierFree(scale=3.0)).noise(x, 0.401, label=torch.tensor([1, 4]))
        good = their_noise(net, plan, x, 400, CLASSES).float()
    torch.testing.assert_close(guided, null + 3 * (good - null), rtol=1e-4, atol=1e-5)


def test_text_guidance_and_nested_conditions():
    torch.manual_seed(0)
    net = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        attention_head_dim=4, cross_attention_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 + 6 * 4,
    ).eval()  # fmt: skip
    g = torch.Generator().manual_seed(0)
    added = {"text_embeds": torch.randn(3, 6, generator=g), "time_ids": torch.ones(1, 6)}
    text, empty = torch.randn(3, 2, 8, generator=g), torch.randn(1, 2, 8, generator=g)
    model = from_diffusers(net, scheduler())
    guided = model | sf.ClassifierFree(scale=2.0, null={"encoder_hidden_states": empty})
    cond = {"encoder_hidden_states": text, "added_cond_kwargs": added}
    whole = sf.sample(guided, 3, sf.DDIM(), steps=2, seed=0, **cond)
    split = sf.sample(guided, 3, sf.DDIM(), steps=2, seed=0, batch_size=2, **cond)
    torch.testing.assert_close(whole, split, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))
    x = state(net, 3)
    every = {"added_cond_kwargs": {"text_embeds": added["text_embeds"], "time_ids": torch.ones(3, 6)}}
    with torch.no_grad():
        good = call(net, x, 400, every | {"encoder_hidden_states": text})
        poor = call(net, x, 400, every | {"encoder_hidden_states": empty.expand(3, -1, -1)})
        torch.testing.assert_close(guided.noise(x, 0.401, **cond), poor + 2 * (good - poor), rtol=1e-4, atol=1e-5)


def test_subclasses_and_compiled_models():
    class Own(diffusers.UNet2DModel):
        pass

    net = unet()
    own = Own(**net.config).eval()
    own.load_state_dict(net.state_dict())
    x = state(net)
    with torch.no_grad():
        expected = from_diffusers(net, scheduler()).noise(x, 0.4)
        assert torch.equal(from_diffusers(own, scheduler()).noise(x, 0.4), expected)
    compiled = from_diffusers(torch.compile(net), scheduler())  # compiles at its first call
    assert compiled.shape == (3, 8, 8)


def test_half_precision_keeps_the_label():
    net = unet()
    model = from_diffusers(net.bfloat16(), scheduler())
    seen = []
    net.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["timestep"]), with_kwargs=True)
    with torch.no_grad():
        model.noise(state(net), 0.9)
    assert seen[0].dtype == torch.float32
    assert seen[0].tolist() == [899.0, 899.0]


# --- pipelines and folders


def pipelines(tmp_path):
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    made = {"ddpm": (diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler(clip_sample=False)), {})}
    made["ddim"] = diffusers.DDIMPipeline(unet(), scheduler("v_prediction")), {}
    made["dit"] = diffusers.DiTPipeline(dit(), vae(), scheduler()), CLASSES
    return made, flow


def vae():
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(8,),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=8,
        scaling_factor=0.5,
        shift_factor=0.1,
    ).eval()


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dit"])
def test_pipelines_and_their_folders(name, tmp_path):
    pipeline, cond = pipelines(tmp_path)[0][name]
    model = from_diffusers(pipeline)
    pipeline.save_pretrained(tmp_path / "theirs")
    read = from_diffusers(tmp_path / "theirs")
    x = state(model.net.model)
    with torch.no_grad():
        assert torch.equal(model.noise(x, 0.3, **cond), read.noise(x, 0.3, **cond))
    assert read.sde == model.sde
    state_dict = read.net.state_dict()
    assert all(torch.equal(v, state_dict[k]) for k, v in model.net.state_dict().items())


def test_a_folder_of_flow_matching(tmp_path):
    sd3().save_pretrained(tmp_path / "transformer")
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "scheduler")
    model = from_diffusers(str(tmp_path))
    with torch.no_grad():
        assert model.velocity(state(model.net.model), 0.5, **POOLED).isfinite().all()


def test_the_autoencoder_of_a_pipeline(tmp_path):
    pipeline = diffusers.DiTPipeline(dit(), vae(), scheduler())
    pipeline.save_pretrained(tmp_path)
    pair = autoencoder(pipeline)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        z = pair.encode(images)
        torch.testing.assert_close(z, (pipeline.vae.encode(images).latent_dist.mean - 0.1) * 0.5)
        torch.testing.assert_close(pair.decode(z), pipeline.vae.decode(z / 0.5 + 0.1).sample)
        torch.testing.assert_close(autoencoder(tmp_path).decode(z), pair.decode(z))
        assert torch.equal(pair.encode(images, seed=1), pair.encode(images, seed=1))
        assert not torch.equal(pair.encode(images, seed=1), z)
    with pytest.raises(InputError, match="DDPMPipeline has no autoencoder"):
        autoencoder(diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler()))


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dit"])
def test_what_came_from_diffusers_goes_back_bit_for_bit(name, tmp_path):
    pipeline, _ = pipelines(tmp_path)[0][name]
    model = from_diffusers(pipeline)
    save_diffusers(model, tmp_path / "ours")
    back = from_diffusers(tmp_path / "ours")
    assert back.sde == model.sde
    assert back.predict == model.predict
    assert type(back.net.scheduler) is type(pipeline.scheduler)
    weights = back.net.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in model.net.state_dict().items())
    if name != "dit":
        assert diffusers.DDPMPipeline.from_pretrained(tmp_path / "ours").unet.config.sample_size == 8


def own(**options):
    """A DDPM network of ours with weights of order one everywhere."""
    torch.manual_seed(0)
    settings = {"nf": 32, "ch_mult": (1, 2), "num_res_blocks": 2, "attn": (1,), "dropout": 0.0, "init_scale": 1.0}
    net = sf.nn.ddpm(3, **(settings | options))
    return awake(net)


OWN = {
    "t": (lambda: own(), "noise", None),
    "999 t": (lambda: own(time_scale=1.0, centered=False), "noise", 999.0),
    "data": (lambda: own(attn=(0, 1)), "data", None),
    "ladder": (lambda: DDPMScore(own(time_scale=1.0)), "score", "t"),
}


@pytest.mark.parametrize("name", OWN)
def test_a_network_of_ours_is_a_pipeline_of_theirs(name, tmp_path):
    build, predict, clock = OWN[name]
    model = sf.ScoreModel(build(), sf.VP(), predict, shape=(3, 8, 8), clock=clock)
    save_diffusers(model, tmp_path)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    images = pipeline(
        batch_size=1, num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)
    ).images
    assert images.shape == (1, 8, 8, 3)
    net = getattr(model.net, "net", model.net)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    rate = net.config["time_scale"] * (999.0 if clock == 999.0 or name == "ladder" else 1.0)
    label = 400.0 if net.config["time_scale"] == 1 else 0.4
    with torch.no_grad():
        theirs = pipeline.unet.eval()(x, 400.0).sample
        torch.testing.assert_close(
            net(x, torch.full((2,), label)), theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max())
        )
    back = from_diffusers(tmp_path)
    with torch.no_grad():
        for i in (1, 400, 999):
            ours, again = model.score(x, i / rate), back.score(x, (i + 1) / len(back.sde.table))
            torch.testing.assert_close(again, ours, rtol=2e-4, atol=2e-4 * float(ours.abs().max()))
    # weights come back bit for bit, under the names of diffusers
    state, weights = net.state_dict(), pipeline.unet.state_dict()
    rules = diffusers_rules(net)
    assert {rule.ours for rule in rules} == set(state)
    assert all(torch.equal(rule.pick(state[rule.ours]), weights[rule.theirs]) for rule in rules)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resblock": "biggan"}, "resblock='biggan': the diffusers layout of DDPM has only 'ddpm'"),
        ({"num_classes": 3}, "num_classes=3"),
        ({"dims": 1}, "dims=1"),
        ({"max_groups": 3}, None),
        ({"nf": 8, "max_groups": None}, "max_groups=None: the normalisations have 2 and 4"),
        ({"nonlinearity": "elu"}, "nonlinearity='elu'"),
        ({"out_channels": 6}, "out_channels=6"),
    ],
    ids=str,
)
def test_networks_of_ours_that_diffusers_lacks(options, message, tmp_path):
    net = sf.nn.ddpm(**({"in_channels": 3, "nf": 9, "ch_mult": (1, 2), "num_res_blocks": 1, "attn": ()} | options))
    model = sf.ScoreModel(net, sf.VP(), "noise", shape=(3, 8, 8))
    if message is None:
        save_diffusers(model, tmp_path)
        return
    with pytest.raises(ValueError, match=message):
        save_diffusers(model, tmp_path)


@pytest.mark.parametrize(
    ("sde", "predict", "message"),
    [
        (sf.SubVP(), "noise", "SubVP.*need a variance-preserving SDE"),
        (sf.VP(), "edm", "predict='edm', clock='log_sigma': the DDPM layout"),
        (sf.RectifiedFlow(), "velocity", "predict='velocity'"),
    ],
    ids=str,
)
def test_processes_of_ours_that_diffusers_lacks(sde, predict, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_diffusers(sf.ScoreModel(own(), sde, predict, shape=(3, 8, 8)), tmp_path)
    with pytest.raises(ValueError, match="for a UNet, not MLP"):
        save_diffusers(sf.ScoreModel(sf.nn.MLP(2), sf.VP(), "noise"), tmp_path)


# --- refusals


REFUSED = {
    "class": (lambda path: from_diffusers(vae(), scheduler()), "AutoencoderKL is not supported; supported are UNet2DModel, "),
    "module": (lambda path: from_diffusers(torch.nn.Linear(1, 1), scheduler()), "Linear is not supported"),
    "object": (lambda path: from_diffusers(3), "int is no pipeline with a unet or a transformer"),
    "folder of another class": (lambda path: from_diffusers(path / "vae"), "holds AutoencoderKL, which is not supported"),
    "no scheduler": (lambda path: from_diffusers(unet()), "UNet2DModel without a scheduler; give it"),
    "folder without": (lambda path: from_diffusers(path / "plain"), r"plain has no scheduler_config\.json; give the"),
    "no folder": (lambda path: from_diffusers("google/ddpm-cat-256"), "google/ddpm-cat-256 is not a folder"),
    "scheduler": (
        lambda path: from_diffusers(unet(), diffusers.IPNDMScheduler()), "IPNDMScheduler is not supported; supported are those"
    ),
    "variance": (
        lambda path: from_diffusers(unet(), diffusers.DDPMScheduler(variance_type="learned_range")),
        "DDPMScheduler contradicts UNet2DModel: variance_type is learned_range, and 3 channels hold no variance",
    ),
    "flow": (lambda path: from_diffusers(sd3(), scheduler()), "DDIMScheduler contradicts SD3Transformer2DModel, which is made"),
    "no flow": (
        lambda path: from_diffusers(dit(), diffusers.FlowMatchEulerDiscreteScheduler()),
        "FlowMatchEulerDiscreteScheduler contradicts DiTTransformer2DModel, which is not made",
    ),
    "levels": (
        lambda path: from_diffusers(unet(time_embedding_type="fourier"), scheduler()),
        "DDIMScheduler contradicts UNet2DModel: time_embedding_type='fourier' reads noise levels",
    ),
    "labels": (
        lambda path: from_diffusers(unet(), diffusers.ScoreSdeVeScheduler()), "time_embedding_type='positional' reads labels"
    ),
    "table": (
        lambda path: from_diffusers(unet(time_embedding_type="learned", num_train_timesteps=50), scheduler()),
        "DDIMScheduler contradicts UNet2DModel: 1000 labels, and 50 in the network's table",
    ),
    "channels": (lambda path: from_diffusers(unet(in_channels=7), scheduler()), "takes 7 channels and returns 3"),
    "condition": (
        lambda path: from_diffusers(conditional_unet(), scheduler()).noise(torch.zeros(1, 4, 8, 8), 0.5),
        "UNet2DConditionModel needs encoder_hidden_states",
    ),
    "prediction": (
        lambda path: from_diffusers(unet(), diffusers.DDPMScheduler(prediction_type="angle")), "prediction_type='angle' of DDPM"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(case, tmp_path):
    if case == "folder without":
        unet().save_pretrained(tmp_path / "plain")
    if case == "folder of another class":
        vae().save_pretrained(tmp_path / "vae")
    call, message = REFUSED[case]
    with pytest.raises((ValueError, InputError), match=message) as error:
        call(tmp_path)
    assert "\n" not in str(error.value)


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    unet().save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r"needs that package: pip install 'scorefield\[diffusers\]'"):
        from_diffusers(tmp_path, scheduler)


def test_the_ways_that_do_not_lead_there_say_which_does(tmp_path):
    with pytest.raises(ValueError, match=r"returned UNet2DOutput, not a tensor like x; sf\.pretrained\.from_diffusers"):
        sf.ScoreModel(unet(), sf.VP()).noise(torch.zeros(1, 3, 8, 8), 0.5)
    unet().save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"looks like a folder of diffusers; sf\.pretrained\.from_diffusers reads it"
    ):
        sf.load(tmp_path)
    with pytest.raises(ValueError, match=r"not that of NCSN\+\+; .*; from_diffusers reads other U-Nets"):
        load_diffusers(tmp_path)


def test_pickled_weights_are_not_read(tmp_path):
    unet().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(CheckpointError, match="cannot read"):
        from_diffusers(tmp_path, scheduler())


def test_a_damaged_folder_is_named(tmp_path):
    unet().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"block_out_channels": [8, 32]}))
    with pytest.raises(CheckpointError, match="cannot read") as error:
        from_diffusers(tmp_path, scheduler())
    assert "\n" not in str(error.value)
