"""Users who walk around a ring of items; the condition says how far the next step goes."""

import numpy as np

from pylum.data import Interactions


def make_data(users: int = 60, items: int = 31, seed: int = 0) -> Interactions:
    """Condition ``near`` is the next item of the ring, ``far`` the one seven on."""
    random = np.random.default_rng(seed)
    user, item, time, scene = [], [], [], []
    for u in range(users):
        at = int(random.integers(items))
        for k in range(int(random.integers(4, 28))):
            name = ["near", "far"][int(random.integers(2))]
            at = (at + (1 if name == "near" else 7)) % items
            user.append(f"u{u}")
            item.append(f"i{at}")
            time.append(1000 * k)
            scene.append(name)
    return Interactions.from_arrays(user, item, time, condition={"scene": scene})
