"""``pretrain``: from behaviours to a model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from pylum.data import OOV_ROW, Interactions
from pylum.model.base import UserModel
from pylum.model.config import LUMConfig, ModelConfig
from pylum.model.encoder import ItemEncoder
from pylum.model.hstu import HSTU
from pylum.model.hstu_config import HSTUConfig
from pylum.model.lum import LUM
from pylum.model.record import TrainingRecord
from pylum.modes import learning, on_host, seeded
from pylum.train.objective import Objective
from pylum.train.progress import Reporter
from pylum.train.ranking import RankingObjective, RankingValidation
from pylum.train.run import Recipe, Run
from pylum.train.validation import Validation

EPOCHS_WITHOUT_VALID = 30
MOST_EPOCHS = 200


@on_host
def pretrain(
    cfg: LUMConfig | HSTUConfig,
    train: Interactions,
    *,
    valid: Interactions | None = None,
    epochs: int | str = "auto",
    lr: float = 2e-3,
    batch_tokens: int | str = "auto",
    accumulate: int = 1,
    negatives: str | int = "auto",
    weight_decay: float = 0.01,
    schedule: str = "auto",
    warmup: int = 100,
    clip: float = 1.0,
    patience: int = 10,
    user_rate: float = 0.0,
    valid_time: bool = False,
    seed: int = 0,
    device: str | torch.device = "auto",
    precision: str = "auto",
    init: UserModel | None = None,
    resume: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 600.0,
    progress: bool = True,
    tensorboard: str | os.PathLike[str] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Any:
    """Step 1 of LUM: next-condition-item prediction (arXiv 2502.08309, section 3.1).

    With an :class:`pylum.HSTUConfig`, HSTU's tasks (arXiv 2402.17152): next-item prediction, or
    what its ``tasks`` ask of each choice.

    The same arguments, machine and number of threads give the same weights, bit for bit, also
    where a run was stopped and resumed.

    Args:
        cfg: the model's shape and what it is trained to do; a LUM or an HSTU.
        train: behaviours; ``train.events.targets`` says which are predicted.
        valid: a part of the same data. After each epoch its targets are ranked, and the weights
            with the best NDCG@10 are returned; for HSTU's ranking, those with the best AUC, or
            the best ``r2`` where it predicts numbers alone.
        epochs: passes over ``train``. ``"auto"``: until ``patience`` epochs brought no better
            NDCG@10 (at most 200); 30 without ``valid``.
        lr: peak learning rate.
        batch_tokens: tokens of a packed batch; it ends with the window that fills it. ``"auto"``:
            an epoch has about 64 batches of 2,048 to 16,384 tokens.
        accumulate: batches whose gradients make one step.
        negatives: ``"full"``: all items; ``"in_batch"``: the batch's and uniform ones, corrected
            by log q; a number: as many uniform ones; ``"auto"``: full up to 50,000 items, else
            in-batch.
        weight_decay: AdamW's, of everything but norms and biases.
        schedule: after ``warmup`` steps, at most an epoch, ``"cosine"`` to 2 % of ``lr``, or
            ``"constant"``; ``"auto"``: cosine where the number of epochs is known.
        clip: largest norm of the gradient.
        user_rate: ``r``: an epoch reads a user of ``n`` behaviours with probability
            ``min(1, r / n)``, drawn by seed and epoch, so that long histories do not outweigh the
            others (HSTU's generative training, section 2.3: users sampled at rate ``1 / n``);
            0: everyone.
        valid_time: ask the validation targets with their time, as ``query_time`` does in
            serving; else with an unknown one. HSTU's ranking always reads it.
        seed: of initial weights, order, windows, dropout and negatives; in ``[0, 2**32)``.
        device: ``"cuda"`` or ``"cpu"``; ``"auto"`` is the CPU: the CUDA kernels have run in the
            emulator only.
        precision: ``"float32"``, ``"bfloat16"`` (autocast, float32 weights), or ``"auto"``:
            bfloat16 on a GPU.
        init: a model to continue from; its vocabularies stay, its record is joined.
        resume: a checkpoint of a run with the same arguments and data, on such a device.
        checkpoint: file written every ``checkpoint_seconds``, after each epoch, and when
            interrupted (Ctrl-C).
        progress: show a progress bar.
        tensorboard: folder of event files; needs ``pip install pylum[tensorboard]``.
        on_epoch: called after each epoch with its ``epoch``, ``steps``, ``loss``, ``seconds`` of
            training so far and, with ``valid``, ``ndcg@10`` and ``hr@10``, or ``auc``,
            ``logloss`` and ``ne``, and ``r2`` of numbers.

    Returns:
        the model in evaluation mode, on ``device``, with its :class:`TrainingRecord`.

    Raises:
        ValueError: an argument is out of range, ``train`` has no targets, or ``resume`` is of
            another run.
        TypeError: ``cfg``, ``train``, ``valid`` or ``init`` is something else.
        FloatingPointError: the loss, the gradient or the weights are not finite; the message names
            the step.
        KeyboardInterrupt: after the checkpoint is written.
    """
    _check_type("cfg", cfg, (LUMConfig, HSTUConfig))
    _check_type("train", train, Interactions)
    _check_type("valid", valid, Interactions, optional=True)
    _check_type("init", init, (LUM, HSTU), optional=True)
    recipe = Recipe(
        epochs=_epochs(epochs, valid),
        patience=patience if epochs == "auto" and valid is not None else None,
        lr=lr,
        batch_tokens=_batch_tokens(batch_tokens, train.num_targets),
        accumulate=accumulate,
        weight_decay=weight_decay,
        schedule=_schedule(schedule, epochs, valid),
        warmup=warmup,
        clip=clip,
        seed=seed,
        user_rate=user_rate,
    )
    if train.num_targets == 0:
        raise ValueError("train must have at least one target, got none")
    try:
        target = torch.device("cpu" if device == "auto" else device)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu or cuda, got {device!r}") from None
    if target.type != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"device must be cpu where CUDA is not available, got {device}")
    autocast = _autocast(precision, target)
    # The global generator feeds dropout: it is ours inside, and the caller's again afterwards.
    with learning(target), seeded(recipe.seed, target):
        model = _model(cfg, train, init).to(target)
        tokens = 3 if cfg.any_targets else cfg.tokens_per_behaviour
        ranking = isinstance(cfg, HSTUConfig) and cfg.task == "ranking"
        validation: Validation | RankingValidation | None = None
        batch_events = max(1, recipe.batch_tokens // 2)
        if valid is not None and ranking:
            assert isinstance(cfg, HSTUConfig)
            validation = RankingValidation(
                valid.events,
                cfg.tasks,
                max_length=cfg.max_length,
                batch_events=batch_events,
                seed=seed,
            )
        elif valid is not None:
            validation = Validation(
                valid.events,
                max_length=cfg.max_length,
                batch_events=batch_events,
                seed=seed,
                remove_seen=train.repeat_share <= 0.05,
                query_time=valid_time,
            )
        objective: Objective | RankingObjective = RankingObjective()
        if not ranking:
            objective = Objective.of(
                negatives,
                train.events,
                len(train.vocabs.items),
                features=bool(train.schema.item_features),
            )
        run = Run(model, recipe, objective, train.events, validation, autocast, tokens)
        run.identity = _identity(cfg, train, valid, recipe, negatives, precision, valid_time)
        run.identity["device"] = target.type
        if resume is not None:
            run.restore(resume)
        with Reporter(progress, tensorboard, on_epoch) as reporter:
            run.go(reporter, checkpoint, checkpoint_seconds)
    targets = train.events.targets
    times = train.events.times if targets is None else train.events.times[targets]
    record = TrainingRecord(
        int(times.max()), train.event_hashes(), train.fingerprint, train.repeat_share
    )
    model.record = record if init is None else init.record.joined(record)
    return model.eval()


def _check_type(
    name: str, value: Any, kind: type | tuple[type, ...], optional: bool = False
) -> None:
    if not (isinstance(value, kind) or (optional and value is None)):
        kinds = [k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,))]
        wanted = " or ".join([*kinds, *(["None"] if optional else [])])
        raise TypeError(f"{name} must be {wanted}, got {type(value).__name__}")


def _batch_tokens(batch_tokens: int | str, targets: int) -> int:
    if batch_tokens == "auto":
        return min(16_384, max(2_048, 2 * targets // 64))
    if isinstance(batch_tokens, str):
        raise ValueError(f"batch_tokens must be a number or 'auto', got {batch_tokens!r}")
    return batch_tokens


def _epochs(epochs: int | str, valid: Interactions | None) -> int:
    if epochs == "auto":
        return MOST_EPOCHS if valid is not None else EPOCHS_WITHOUT_VALID
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
        raise ValueError(f"epochs must be auto or a number of at least 0, got {epochs!r}")
    return epochs


def _schedule(schedule: str, epochs: int | str, valid: Interactions | None) -> str:
    if schedule not in ("auto", "cosine", "constant"):
        raise ValueError(f"schedule must be auto, cosine or constant, got {schedule!r}")
    if schedule == "auto":
        return "constant" if epochs == "auto" and valid is not None else "cosine"
    return schedule


def _autocast(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision must be auto, float32 or bfloat16, got {precision!r}")
    if precision == "bfloat16" or (precision == "auto" and device.type == "cuda"):
        return lambda: torch.autocast(device.type, torch.bfloat16)
    return nullcontext


def _model(cfg: ModelConfig, train: Interactions, init: UserModel | None) -> UserModel:
    make: type[Any] = LUM if isinstance(cfg, LUMConfig) else HSTU
    if init is None:
        model = make(cfg, train.schema, train.vocabs.copy(), train.items)
        model.standardise(train.events)
        for encoder in _item_encoders(model):
            encoder.chosen.fill_(False)
        return _chosen(model, train)
    if init.schema != train.schema or init.vocabs.fingerprint() != train.vocabs.fingerprint():
        raise ValueError(
            "init must have the schema and vocabularies of train: "
            "read train with vocabs=init.vocabs"
        )
    model = make(cfg, init.schema, init.vocabs, init.items)
    mine, theirs = model.state_dict(), init.state_dict()
    wrong = [n for n in mine if n not in theirs or mine[n].shape != theirs[n].shape]
    if wrong or len(mine) != len(theirs):
        raise ValueError(f"init must have the shape of cfg, but differs in {wrong or 'its layers'}")
    model.load_state_dict(theirs)
    return _chosen(model, train)


def _item_encoders(model: UserModel) -> list[ItemEncoder]:
    return [e for e in (model.item_encoder, model.output_encoder) if e is not None]


def _chosen(model: UserModel, train: Interactions) -> UserModel:
    """Mark the items that ``train`` chooses: their ids are trained."""
    rows = torch.cat([torch.tensor([OOV_ROW]), train.events.items.unique()])
    for encoder in _item_encoders(model):
        encoder.chosen[rows] = True
    return model


def _identity(
    cfg: ModelConfig,
    train: Interactions,
    valid: Interactions | None,
    recipe: Recipe,
    negatives: str | int,
    precision: str,
    valid_time: bool,
) -> dict[str, Any]:
    """What must be equal for a checkpoint to be resumed, as JSON."""
    beside = train.events.shown
    shown = beside is not None and hashlib.sha256(beside.numpy().tobytes()).hexdigest()
    return {
        "config": cfg.to_json(),
        "data": [train.fingerprint, train.protocol, train.part, train.num_targets, shown],
        "valid": valid is not None and [valid.fingerprint, valid.protocol, valid.part, valid_time],
        "recipe": recipe.to_json(),
        "negatives": negatives,
        "precision": precision,
    }
