"""The 39 configurations, each as its differences from another."""

from __future__ import annotations

from typing import Any

from scorefield.presets.schema import DDPM, Preset, RefineNet

Fields = dict[str, Any]

_EXTENDED: Fields = {"n_iters": 2400001, "snapshot_freq_for_preemption": 5000}
_LSUN_EVAL: Fields = {"batch_size": 512, "begin_ckpt": 50, "end_ckpt": 96, "enable_sampling": True}
_CELEBA: Fields = {"dataset": "CELEBA", "image_size": 64}
_BEDROOM: Fields = {"dataset": "LSUN", "category": "bedroom", "image_size": 256}
_CHURCH: Fields = {"dataset": "LSUN", "category": "church_outdoor", "image_size": 256}
_CELEBAHQ: Fields = {"dataset": "CelebAHQ", "image_size": 256}
_FFHQ: Fields = {"dataset": "FFHQ", "image_size": 256}
_DISCRETE: Fields = {"continuous": False}
_DEEP: Fields = {"num_res_blocks": 8}
_SHORTER: Fields = {"n_iters": 950001}
_LABELLED: Fields = {"embedding_type": "positional", "fourier_scale": None}
_DDPMPP: Fields = {"fir": False, "progressive_input": "none"}
_CIFAR = Preset("ve/cifar10_ncsnpp_continuous")


def _small_exploding(cifar: Preset) -> list[Preset]:
    return [
        cifar,
        cifar.but("ve/cifar10_ncsnpp_deep_continuous", model=_DEEP, training=_SHORTER),
        cifar.but("ve/cifar10_ncsnpp", model=_LABELLED, training=_DISCRETE),
        cifar.but("ve/cifar10_ddpm", DDPM(name="ddpm", num_res_blocks=2, conv_size=3), training=_DISCRETE),
        cifar.but(
            "ve/celeba_ncsnpp",
            data=_CELEBA,
            model={**_LABELLED, "sigma_begin": 90, "sigma_max": 90.0},
            training=_DISCRETE,
            sampling={"snr": 0.17},
            eval={"begin_ckpt": 1, "enable_sampling": True},
        ),
    ]


def _large_exploding(cifar: Preset) -> list[Preset]:
    pyramid: Fields = {
        "ch_mult": (1, 1, 2, 2, 2, 2, 2),
        "num_res_blocks": 2,
        "dropout": 0.0,
        "num_scales": 2000,
        "progressive": "output_skip",
        "progressive_input": "input_skip",
        "sigma_max": 378,
    }
    large = cifar.but(
        "ve/bedroom_ncsnpp_continuous",
        data=_BEDROOM,
        model=pyramid,
        training={**_EXTENDED, "batch_size": 64},
        sampling={"snr": 0.075},
        eval=_LSUN_EVAL,
    )
    presets = [
        large,
        large.but("ve/church_ncsnpp_continuous", data=_CHURCH, model={"sigma_max": 380}),
        large.but("ve/celebahq_256_ncsnpp_continuous", data={**_CELEBAHQ, "category": None}, model={"sigma_max": 348}),
        large.but("ve/ffhq_256_ncsnpp_continuous", data={**_FFHQ, "category": None}, model={"sigma_max": 348}),
    ]
    megapixel: Fields = {
        "nf": 16,
        "ch_mult": (1, 2, 4, 8, 16, 32, 32, 32),
        "num_res_blocks": 1,
        "sigma_max": 1348,
        "ema_rate": 0.9999,
        "beta_min": None,
        "beta_max": None,
    }
    huge = large.but(
        "ve/celebahq_ncsnpp_continuous",
        data={**_CELEBAHQ, "category": None, "image_size": 1024},
        model=megapixel,
        training={"batch_size": 8},
        optim={"amsgrad": False},
        sampling={"snr": 0.15},
        eval={
            "batch_size": 1024,
            "begin_ckpt": 1,
            "bpd_dataset": None,
            "enable_bpd": None,
            "enable_loss": None,
            "enable_sampling": None,
        },
    )
    ffhq = huge.but("ve/ffhq_ncsnpp_continuous", data={"dataset": "FFHQ"}, training={"reduce_mean": True})
    return [*presets, huge, ffhq]


def _score_ladders() -> list[Preset]:
    """NCSN, its ablations 5, 124 and 1245 by the techniques of Song & Ermon 2020 that they add, and NCSNv2."""
    small: Fields = {"begin_ckpt": 1, "enable_sampling": True}
    first = Preset("ve/ncsn/cifar10").but(
        "ve/ncsn/cifar10",
        RefineNet(name="ncsn", num_scales=10, sigma_max=1, scale_by_sigma=False, ema_rate=0.0),
        training=_DISCRETE,
        optim={"lr": 1e-3, "warmup": 0, "grad_clip": -1.0, "amsgrad": False},
        sampling={"predictor": "none", "corrector": "ald", "snr": 0.316, "n_steps_each": 100},
    )
    averaged: Fields = {"ema_rate": 0.999}
    many: Fields = {"num_scales": 232, "sigma_max": 50}
    tuned = first.but("ve/ncsn/cifar10_124", model=many, sampling={"snr": 0.176, "n_steps_each": 5})
    v2: Fields = {**averaged, "name": "ncsnv2_64", "scale_by_sigma": True}
    second = tuned.but("ve/ncsnv2/cifar10", model=v2, optim={"lr": 1e-4})
    faces: Fields = {"num_scales": 500, "sigma_max": 90.0}

    def celeba(preset: Preset, name: str, training: Fields, model: Fields, sampling: Fields) -> Preset:
        return preset.but(name, data=_CELEBA, training=training, model=model, sampling=sampling, eval=small)

    return [
        first,
        first.but("ve/ncsn/cifar10_5", model=averaged),
        tuned,
        tuned.but("ve/ncsn/cifar10_1245", model=averaged),
        second,
        celeba(first, "ve/ncsn/celeba", {"sde": None, "loss": "vesde"}, {"sigma_max": 1.0}, {}),
        celeba(first, "ve/ncsn/celeba_5", {}, {**averaged, "sigma_max": 1.0}, {}),
        celeba(tuned, "ve/ncsn/celeba_124", {}, faces, {"snr": 0.128}),
        celeba(tuned, "ve/ncsn/celeba_1245", {}, {**averaged, **faces}, {"snr": 0.128}),
        celeba(second, "ve/ncsnv2/celeba", {}, faces, {"snr": 0.128}),
        second.but(
            "ve/ncsnv2/bedroom",
            data={**_BEDROOM, "image_size": 128},
            model={"name": "ncsnv2_128", "num_scales": 1086, "sigma_max": 190, "dropout": 0.0, "ema_rate": 0.9999},
            training={**_EXTENDED, "continuous": True, "continuouse": False},
            sampling={"snr": 0.095, "n_steps_each": 3},
            eval=_LSUN_EVAL,
        ),
    ]


def _variance_preserving() -> list[Preset]:
    labelled: Fields = {"embedding_type": "positional", "scale_by_sigma": False, "ema_rate": 0.9999}
    simple = DDPM(name="ddpm", num_res_blocks=2, scale_by_sigma=False, ema_rate=0.9999)

    def family(sde: str) -> dict[str, Preset]:
        """NCSN++, DDPM++ and DDPM on CIFAR-10 in continuous time."""
        kind = sde.removesuffix("sde")
        ncsnpp = Preset("").but(
            f"{kind}/cifar10_ncsnpp_continuous",
            data={"centered": True},
            model=labelled,
            training={"sde": sde, "reduce_mean": True},
            sampling={"predictor": "euler_maruyama", "corrector": "none"},
        )
        ddpmpp = ncsnpp.but(f"{kind}/cifar10_ddpmpp_continuous", model=_DDPMPP)
        return {
            "ncsnpp": ncsnpp,
            "ncsnpp deep": ncsnpp.but(f"{kind}/cifar10_ncsnpp_deep_continuous", model=_DEEP, training=_SHORTER),
            "ddpmpp": ddpmpp,
            "ddpmpp deep": ddpmpp.but(f"{kind}/cifar10_ddpmpp_deep_continuous", model=_DEEP, training=_SHORTER),
            "ddpm": ncsnpp.but(f"{kind}/{'ddpm/cifar10' if kind == 'vp' else 'cifar10_ddpm'}_continuous", simple),
        }

    vp = family("vpsde")
    ancestral: Fields = {"predictor": "ancestral_sampling"}
    ddpm = vp["ddpm"].but("vp/ddpm/cifar10", training=_DISCRETE, sampling=ancestral)
    church = ddpm.but(
        "vp/ddpm/church",
        data=_CHURCH,
        model={"ch_mult": (1, 1, 2, 2, 4, 4), "dropout": 0.0, "sigma_max": 378},
        training={**_EXTENDED, "batch_size": 64},
        optim={"lr": 2e-5},
        sampling={"snr": 0.075},
        eval=_LSUN_EVAL,
    )
    discrete = [
        vp["ddpmpp"].but("vp/cifar10_ddpmpp", training=_DISCRETE, sampling=ancestral),
        vp["ncsnpp"].but(
            "vp/cifar10_ncsnpp",
            model={"fourier_scale": None},
            training=_DISCRETE,
            sampling={"predictor": "reverse_diffusion"},
        ),
        ddpm,
        ddpm.but("vp/ddpm/cifar10_unconditional", model={"conditional": False}),
        church,
        church.but("vp/ddpm/bedroom", data=_BEDROOM),
        church.but("vp/ddpm/celebahq", data={**_CELEBAHQ, "category": None}),
    ]
    return [*vp.values(), *family("subvpsde").values(), *discrete]


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        *_small_exploding(_CIFAR),
        *_large_exploding(_CIFAR),
        *_score_ladders(),
        *_variance_preserving(),
    )
}
