import pytest
import torch

from .support import make_model, make_tokenizer


@pytest.fixture(autouse=True)
def seeded():
    """One thread: for models this small a second one only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def model():
    return make_model()
