import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded_and_poisoned():
    """Every test starts from one seed; ``torch.empty`` is NaN-filled, so unwritten output shows."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
