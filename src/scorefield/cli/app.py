"""Finds the command, runs it, and turns whatever goes wrong into one line and an exit status."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

from scorefield.errors import Answered, InputError, ScorefieldError, ScorefieldWarning, closest
from scorefield.parallel import launched

COMMANDS = {
    "train": "train a score model on data, or go on with a run",
    "sample": "draw samples from a run",
    "likelihood": "bits per dimension of data under a run, with error bars",
    "encode": "latent codes of data under a run",
    "decode": "data from latent codes",
    "interpolate": "paths between items of data, through their latent codes",
    "classifier": "train a classifier of noised data, to guide a run",
    "distill": "teach a copy of a run to sample in one to four evaluations",
    "finetune": "tune a run by a reward of your own",
    "generate": "draw samples of a class",
    "inpaint": "fill in the unknown part of an image",
    "infill": "fill in the unknown part of a text, a table row or discrete data",
    "evaluate": "judge samples and likelihood of a run, with error bars",
    "diagnose": "what is wrong with a run, and what to do, in one page",
    "statistics": "range, spread and greatest distance of data, and what they suggest",
    "colorize": "colours for a grey image",
    "restore": "samples of the images that explain a measurement",
    "enhance": "make a noisy recording clean",
    "push": "publish a run on the Hugging Face hub, with a model card",
    "presets": "the configurations of the paper, all or one",
    "dynamics": "drift, diffusion and stationary density of a time series",
    "convert": "make a run of an official checkpoint",
    "studio": "a page to play with a run, in the browser, on this machine alone",
    "demo": "train on handwritten digits, sample, score and inpaint, in minutes",
}

USAGE = """usage: scorefield COMMAND [OPTIONS]

Score-based generative modeling through stochastic differential equations.

commands:
{commands}

example:
  scorefield train digits --out runs/digits
  scorefield sample runs/digits -n 64 --out digits.png

`scorefield COMMAND --help` lists the options of a command; `scorefield --completion bash` (or zsh) completes them."""

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
NO_MEMORY = "there is not enough memory for this; choose a smaller -n or --batch-size"
FLAGS = {
    "(skip_broken)": "(--skip-broken)",
    "clipped=True": "--clipped",
    "channel=1": "--channel 1",
    "method='pigdm', or a larger noise=": "--method pigdm, or a larger --noise",
    "1 (grey) is expected; convert it": "1 (grey) is expected; pass --grey, or convert it",
}
"""What messages of the library call things, and what the command line does."""
ASCII = {"±": "+/-", "×": "x", "–": "-", "—": "-", "…": "...", "“": '"', "”": '"', "‘": "'", "’": "'"}


def entry() -> int:
    """The program `scorefield`: `main` with what concerns a process of its own, Ctrl-C and the encoding of its output."""
    # Libraries that are interrupted while they load raise whatever they like: until a command runs, Ctrl-C just leaves.
    signal.signal(signal.SIGINT, _leave)
    for stream in (sys.stdout, sys.stderr):
        _make_printable(stream)
    status = main()
    signal.signal(signal.SIGINT, _leave)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0 on success, 2 for input that cannot be used, 1 for other failures."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug, as_json = "--debug" in args, "--json" in args
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.showwarning = _one_line
            return _run(args)
    except Answered as answer:
        print(json.dumps({"known": str(answer).splitlines()}) if as_json else answer)
        return 0
    except KeyboardInterrupt:
        return _report("interrupted", INTERRUPTED, debug, as_json)
    except BrokenPipeError:
        _let_go()
        return 1
    except ValueError as error:  # InputError, and the plain ones of functions that check their arguments
        return _report(str(error), 2, debug, as_json)
    except Exception as error:
        return _report(_describe(error), 1, debug, as_json)


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        print(USAGE.format(commands="\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())))
        return 0 if args else 2
    if args[0] == "--version":
        from scorefield import __version__

        print(__version__)
        return 0
    if args[0] == "--completion":
        from scorefield.cli.completion import script

        print(script(COMMANDS, args[1:]))
        return 0
    if args[0] not in COMMANDS:
        raise InputError(f"unknown command {args[0]!r}{closest(args[0], COMMANDS)}")
    from scorefield.cli.parse import parse
    from scorefield.files import finite

    command = importlib.import_module(f"scorefield.cli.{args[0]}")
    words = args[1:]
    if hasattr(command, "instead"):  # another form of the command, told by its words
        command, words = command.instead(words)
    options = parse(command, words, f"scorefield {args[0]}")
    if options is None:
        return 0
    result = _interruptible(command.run, options)
    text = json.dumps(finite(result.values), allow_nan=False) if options.json else result.text
    if text and launched().main:
        print(text, flush=True)  # a full disk is told here, not by Python at exit
    return 0


def _interruptible(run: Any, options: Any) -> Any:
    """The command with Ctrl-C as KeyboardInterrupt, so that it cleans up; torch is loaded before."""
    if signal.getsignal(signal.SIGINT) is not _leave:
        return run(options)
    import torch  # noqa: F401

    signal.signal(signal.SIGINT, signal.default_int_handler)
    return run(options)


def _leave(*_: Any) -> None:
    os.write(2, b"scorefield: interrupted\n")
    os._exit(INTERRUPTED)


def _make_printable(stream: TextIO | None) -> None:
    """Let a stream of few characters, such as ASCII, replace the others in place of failing."""
    import codecs

    def nearest(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        part = error.object[error.start : error.end]
        return "".join(ASCII.get(c, "?") for c in part), error.end

    codecs.register_error("scorefield", nearest)
    if stream is not None and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="scorefield")


def _describe(error: Exception) -> str:
    if isinstance(error, ScorefieldError):
        return str(error)
    if isinstance(error, MemoryError | OverflowError) or "can't allocate memory" in str(error):
        return NO_MEMORY
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the system'}: {error.strerror}"
    if type(error).__name__ == "OutOfMemoryError":
        return "the device is out of memory; choose a smaller --batch-size"
    return f"{type(error).__name__}: {error}; this is a fault of scorefield, --debug shows where"


def _report(message: str, status: int, debug: bool, as_json: bool) -> int:
    """Tell what went wrong: on standard error, and where JSON is wanted as an object there too."""
    if debug:
        traceback.print_exc()
    told = _tell(message)
    if as_json and sys.stdout is not None and launched().main:
        try:
            print(json.dumps({"error": told, "status": status}), flush=True)
        except OSError:  # nobody reads it, or the disk is full, which may be what was to be told
            _let_go()
    return status


def _let_go() -> None:
    """Standard output takes nothing any more; without this Python complains once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell(message: str) -> str:
    """A message in the words of the command line, on one line of standard error."""
    for argument, flag in FLAGS.items():
        message = message.replace(argument, flag)
    message = " ".join(message.split())
    if sys.stderr is not None:
        print(f"scorefield: {message}", file=sys.stderr)
    return message


def _one_line(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
    if issubclass(category, ScorefieldWarning) or category is RuntimeWarning:
        _tell(str(message))
