"""MovieLens-100K and its leave-one-out split (`loo-full`), without pylum.

All ratings are kept. Each user's rows are sorted by (time, original row), stable: the last row
is the test item, the last but one the validation item, the rest train. The sort must be stable:
most rows share their second with another row of the same user.
"""

import zipfile
from pathlib import Path

import numpy as np

MEMBER = "recbole/dataset_example/ml-100k/ml-100k.inter"
TRAIN, VALID, TEST = 0, 1, 2


def load_ml100k(wheel: str | Path) -> dict[str, np.ndarray]:
    """Read the ratings out of the recbole 1.2.1 wheel and split them.

    Args:
        wheel: path of `recbole-1.2.1-py3-none-any.whl`, read as a zip and never imported.

    Returns:
        Columns ``user``, ``item`` (ids as in the data), ``rating``, ``time`` (seconds) and
        ``split`` (TRAIN, VALID or TEST), one entry per rating, in (user, time, row) order.
    """
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as file:
        table = np.loadtxt(file, delimiter="\t", skiprows=1, dtype=np.float64).astype(np.int64)
    user, item, rating, time = table.T
    # lexsort is stable: ties of (user, time) stay in original row order.
    order = np.lexsort((time, user))
    columns = {"user": user, "item": item, "rating": rating, "time": time}
    columns = {name: values[order] for name, values in columns.items()}
    return columns | {"split": leave_one_out(columns["user"])}


def leave_one_out(user: np.ndarray) -> np.ndarray:
    """TRAIN, VALID or TEST of each row; ``user`` is sorted and each user's rows are in order."""
    last = np.append(user[1:] != user[:-1], True)
    split = np.where(last, TEST, TRAIN)
    split[np.flatnonzero(last) - 1] = VALID
    return split
