"""The real engine, and a client whose jobs it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import sequence_processing
from jobs import Client
from jobs.settings import Settings
from worker.engine import CoreEngine

MODEL = Path(sequence_processing.__file__).parent / "models" / "tiny-arithmetic"
QUESTION = "Think in <think> </think>, then answer in <answer> </answer>.\nUser: What is 2 + 3?\nAssistant: <think>"


@pytest.fixture(scope="module")
def engine() -> CoreEngine:
    """Keeps its model from test to test, as a worker keeps it from job to job."""
    return CoreEngine()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client(Settings(home=tmp_path / "home")) as made:
        yield made
