"""Training speed of LUM beside RecTools' SASRec on MovieLens-100K, in real interactions a second.

Equal blocks (2), heads (1), width (50), length (200), dropout (.2), negatives (128), threads (1).
Each contestant runs in its own process and environment, in turn; a run trains one epoch to warm up
and then times two. An interaction is a target of the loss: RecTools trains on the last 200 of each
user, LUM on all. Both keep freed memory (mallopt), which helps RecTools more. LUM reads every
behaviour as two tokens, SASRec as one.

    python -m benchmarks.accuracy.training_speed --peer PYTHON --wheel WHEEL
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

OUT = Path(__file__).parent / "results" / "training_speed.json"
COMMON = """
import json, os, sys, time, warnings
warnings.filterwarnings("ignore")
import torch
torch.set_num_threads(1)
def clock(): return time.process_time(), time.perf_counter()
def report(targets, begin, end, epochs):
    print("RESULT", json.dumps({"targets": targets, "cpu": (end[0] - begin[0]) / epochs,
                                "wall": (end[1] - begin[1]) / epochs}))
import ctypes
libc = ctypes.CDLL(None)
libc.mallopt(-4, 0), libc.mallopt(-1, 2**31 - 1)
"""
SASREC = """
import logging
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
from benchmarks.accuracy.loo_split import TUNING_TARGETS
from benchmarks.accuracy.peers_ml100k import START, Split, build
split = Split(sys.argv[1], TUNING_TARGETS)
model = build("sasrec", {**START, **SETTINGS}, 0)
model.fit_partial(split.dataset, min_epochs=1, max_epochs=1)
begin = clock()
model.fit_partial(split.dataset, min_epochs=2, max_epochs=2)
report(split.trained_targets, begin, clock(), 2)
"""
LUM = """
from dataclasses import replace
import pylum
from pylum.data import Schema, read_movielens
data = read_movielens(sys.argv[1])
data = replace(data, schema=Schema(), items=pylum.data.ItemTable(len(data.items)))
train, _, _ = data.split("loo-full")
marks = []
pylum.pretrain(pylum.LUMConfig(dim=50, layers=2, heads=1, max_length=200, dropout=0.2), train,
               epochs=3, batch_tokens=16384, progress=False,
               on_epoch=lambda _: marks.append(clock()), **SETTINGS)
report(train.num_targets, marks[0], marks[-1], 2)
"""
CONTESTANTS = {
    "SASRec, 128 negatives, batch 128": ("peer", SASREC, {}),
    "SASRec, full softmax, batch 32": ("peer", SASREC, {"loss": "softmax", "batch_size": 32}),
    "LUM, 128 negatives": ("self", LUM, {"negatives": 128}),
    "LUM, full softmax": ("self", LUM, {"negatives": "full"}),
}


def run(python: str, code: str, settings: dict, wheel: str) -> dict[str, float]:
    """One process; targets, CPU and wall seconds of an epoch."""
    script = f"{COMMON}\nSETTINGS = {settings!r}\n{code}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-c", script, wheel], capture_output=True, text=True, env=environment
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(lines[-1].removeprefix("RESULT "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer", required=True, help="a Python with rectools[torch]==0.19.0")
    parser.add_argument("--wheel", required=True, help="recbole-1.2.1-py3-none-any.whl")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    pythons = {"peer": args.peer, "self": sys.executable}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for _ in range(args.rounds):
        for name, (where, code, settings) in CONTESTANTS.items():
            runs[name].append(run(pythons[where], code, settings, args.wheel))
    rates = {
        name: sorted(round(r["targets"] / r["cpu"]) for r in results)
        for name, results in runs.items()
    }
    for name, values in rates.items():
        print(f"{name:<36} {values[len(values) // 2]:>8,} interactions/s {values}")
    temporary = OUT.with_suffix(".tmp")
    temporary.write_text(json.dumps({"per_cpu_second": rates, "runs": runs}, indent=1) + "\n")
    temporary.replace(OUT)


if __name__ == "__main__":
    main()
