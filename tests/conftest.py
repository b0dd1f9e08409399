import signal

import hypothesis
import pytest
import torch


class _TorchRandom:
    """Torch's generator, as hypothesis seeds and restores it around every example."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


_TORCH = _TorchRandom()
hypothesis.register_random(_TORCH)
# The same examples in every run; `--hypothesis-profile=default` looks for others.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

# A shell's background job starts with Ctrl-C ignored; the tests of it raise it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded_and_poisoned():
    """Every test starts from one seed; ``torch.empty`` is NaN-filled, so unwritten output shows."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
