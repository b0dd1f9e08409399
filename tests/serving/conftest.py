import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Small work: a team of threads costs more than it saves, and on busy cores far more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
