"""Data: items of one shape with a known range, from arrays, images, tar shards, other libraries, and the embedded digits."""

from scorefield.data.arrays import array, digits
from scorefield.data.dataset import Dataset, as_dataset
from scorefield.data.folder import images
from scorefield.data.shards import shards
from scorefield.data.source import open_data
from scorefield.data.summary import Statistics, statistics
from scorefield.data.wrapped import huggingface, sequence

__all__ = [
    "Dataset",
    "Statistics",
    "array",
    "as_dataset",
    "digits",
    "huggingface",
    "images",
    "open_data",
    "sequence",
    "shards",
    "statistics",
]
