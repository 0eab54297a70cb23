"""Data: items of one shape with a known range, from arrays, images, tar shards, other libraries, and the embedded digits."""

from scorefield.data import states
from scorefield.data.arrays import array, digits
from scorefield.data.dataset import Dataset
from scorefield.data.images import images
from scorefield.data.libraries import huggingface, sequence
from scorefield.data.open import as_dataset, open_data
from scorefield.data.pairs import pairs
from scorefield.data.series import Series, series
from scorefield.data.shards import shards
from scorefield.data.spectra import Spectrogram, si_sdr
from scorefield.data.statistics import Statistics, statistics
from scorefield.data.tables import table
from scorefield.data.waves import read_wave, write_wave

__all__ = [
    "Dataset",
    "Series",
    "Spectrogram",
    "Statistics",
    "array",
    "as_dataset",
    "digits",
    "huggingface",
    "images",
    "open_data",
    "pairs",
    "read_wave",
    "sequence",
    "series",
    "shards",
    "si_sdr",
    "states",
    "statistics",
    "table",
    "write_wave",
]
