"""scorefield enhance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

from scorefield.cli.files import check_suffix
from scorefield.cli.names import read_solver
from scorefield.cli.options import COUNT, Drawing, Flag, Name, OfRun, Result, Unset, check_writable, pick_device
from scorefield.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options(Drawing, OfRun):
    """Make a noisy recording clean, of any length, by a run that was trained on speech.

    The recording is a wave file of one voice at the rate of the run; it is worked on in windows that overlap.

    Example: scorefield enhance runs/speech --audio in.wav --out out.wav
    """

    sampler: Annotated[str | None, Unset("NAME[:OPTION=VALUE,...]")] = None
    """dpm-solver in 6 steps unless given; list shows all."""
    audio: Annotated[str, Name("FILE")]
    """The noisy recording, a .wav file of PCM samples."""
    out: Annotated[str, Name("FILE")] = "clean.wav"
    """The clean one, 16-bit PCM at the same rate."""
    clean: Annotated[str | None, Unset("FILE")] = None
    """The same without noise, where it is known: SI-SDR before and after is told."""
    channel: Annotated[int | None, Unset("INT"), COUNT] = None
    """Which channel of several, from 1."""
    clipped: Flag = False
    """Take recordings whose peaks were cut off."""


def run(options: Options) -> Result:
    """Do what the options ask. DPM-Solver in 6 steps, after a second start, unless given."""
    from scorefield.data.spectra import si_sdr
    from scorefield.data.waves import read_wave, write_wave
    from scorefield.speech import Enhancer

    check_suffix(options.out, (".wav",))
    check_writable(options.out)
    read_solver(options.sampler)
    enhancer = Enhancer.of_run(options.run, pick_device(options.device))
    solver = read_solver(options.sampler, enhancer.model.sde) if options.sampler else None
    rate = enhancer.spectrogram.rate
    noisy = read_wave(options.audio, rate, channel=options.channel, clipped=options.clipped)[0]
    known = None if options.clean is None else read_wave(options.clean, rate, channel=options.channel)[0]
    if known is not None and len(known) != len(noisy):
        raise InputError(
            f"--clean {options.clean} has {len(known):,} samples and {options.audio} {len(noisy):,}; give recordings of the "
            "same length"
        )
    done = replace(enhancer, solver=solver, steps=options.steps, batch_size=options.batch_size)(noisy, options.seed)
    write_wave(options.out, done.wave, rate)
    seconds = len(noisy) / rate
    values: dict[str, Any] = {
        "out": options.out,
        "seconds": seconds,
        "rate": rate,
        "windows": done.windows,
        "nfe": done.nfe,
    }
    text = f"{options.out}: {seconds:.1f} s, {done.windows} windows, {done.nfe} evaluations each"
    if known is not None:
        before, after = float(si_sdr(known, noisy)), float(si_sdr(known, done.wave))
        values["si_sdr"] = {"before": before, "after": after}
        text += f", SI-SDR {before:.1f} -> {after:.1f} dB"
    return Result(text, values)
