"""Data: items of one shape with a known range, from arrays, image folders and the embedded digits."""

from scorefield.data.arrays import array, digits
from scorefield.data.dataset import Dataset, as_dataset
from scorefield.data.folder import images
from scorefield.data.source import open_data

__all__ = ["Dataset", "array", "as_dataset", "digits", "images", "open_data"]
