"""Prompts with answers. Knows no model; importing it loads nothing heavy."""

from .arithmetic import arithmetic_r1_template
from .errors import DatasetError, DatasetFileError, DatasetUnavailableError, UnknownDatasetError, UnknownSplitError
from .example import Example
from .external import is_external, open_dataset
from .files import BadRow, Row, read_rows, read_stream
from .gsm8k import gsm8k_r1_template
from .registry import DATASET_REGISTRY, Dataset, register_dataset

__all__ = [
    "DATASET_REGISTRY",
    "BadRow",
    "Dataset",
    "DatasetError",
    "DatasetFileError",
    "DatasetUnavailableError",
    "Example",
    "Row",
    "UnknownDatasetError",
    "UnknownSplitError",
    "arithmetic_r1_template",
    "gsm8k_r1_template",
    "is_external",
    "open_dataset",
    "read_rows",
    "read_stream",
    "register_dataset",
]
