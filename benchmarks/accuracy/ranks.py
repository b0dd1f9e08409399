"""What the rank of each user's target comes to, without pylum."""

import numpy as np


def metrics(found: np.ndarray) -> dict[str, float]:
    """Of 1-based ranks."""
    hit = found <= 10
    return {
        "HR@10": round(float(hit.mean()), 5),
        "NDCG@10": round(float((hit / np.log2(found + 1)).mean()), 5),
        "MRR": round(float((1 / found).mean()), 5),
    }
