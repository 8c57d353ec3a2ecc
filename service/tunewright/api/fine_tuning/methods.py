"""What a method asks of the options beside it, for jobs and plans."""

from __future__ import annotations

from typing import Protocol

from tunewright.api.fine_tuning.method_schemas import Hyperparameters, Method
from tunewright.api.fine_tuning.tuning_schemas import Tuning
from tunewright.errors import InvalidRequest, UnsupportedFeature
from tunewright.kinds.data import DataOptions
from tunewright.plan.initializations import changes_base
from tunewright.plan.methods import LABEL_SMOOTHING, LOSS_TYPE, METHODS
from tunewright.plan.options import OF_METHOD, of_others
from tunewright.plan.pitfalls import HEAD_NOT_TRAINED
from tunewright.plan.schedulers import SCHEDULER, why_not
from tunewright.plan.shape import HEAD
from tunewright.plan.stopping import METRICS

_WITHOUT_REFERENCE = ("supervised", "orpo", "reward")


def check_method(method: Method, tuning: Tuning) -> None:
    """Raises InvalidRequest for an option of `tuning` that the method does not have, or would ignore."""
    for name in of_others(method.type):
        if getattr(tuning, name) != "auto":
            whose = next(one for one, names in OF_METHOD.items() if name in names)
            raise InvalidRequest(
                f"tuning.{name} is for the method {whose}; the method is {method.type}.",
                param=f"tuning.{name}",
            )
    if tuning.lr_scheduler_kwargs != "auto":
        name = SCHEDULER if tuning.lr_scheduler_type == "auto" else tuning.lr_scheduler_type
        if why := why_not(name, tuning.lr_scheduler_kwargs):
            raise InvalidRequest(f"tuning.lr_scheduler_kwargs: {why}.", param="tuning.lr_scheduler_kwargs")
    _check_metrics(method, tuning)
    if changes_base(tuning.init):
        _check_changed_base(method, tuning)
    if tuning.packing is True:
        _check_packing(tuning)
    loss = LOSS_TYPE if tuning.loss_type == "auto" else tuning.loss_type
    if tuning.label_smoothing != "auto" and loss not in LABEL_SMOOTHING:
        raise InvalidRequest(
            f"tuning.label_smoothing is for the losses {' and '.join(LABEL_SMOOTHING)}; {loss} has none. Set "
            "tuning.loss_type to one of them, or leave it out.",
            param="tuning.label_smoothing",
        )
    if _is_without_dropout(method) and tuning.dropout not in ("auto", 0):
        raise InvalidRequest(
            f"{method.type} trains without dropout, which would make the model differ at random from what it is "
            "compared with: leave tuning.dropout out.",
            param="tuning.dropout",
        )


def check_targets(tuning: Tuning) -> None:
    """Raises InvalidRequest where the output head would be adapted."""
    named = tuning.target_modules if isinstance(tuning.target_modules, list) else []
    heads = [name for name in named if name.rpartition(".")[2] == HEAD]
    if heads:
        raise InvalidRequest(
            f"tuning.target_modules has {heads[0]}: {HEAD_NOT_TRAINED}.", param="tuning.target_modules"
        )


def _check_changed_base(method: Method, tuning: Tuning) -> None:
    """An adapter that begins as a part of the base: without it the model is no reference."""
    why = None
    if METHODS[method.type].scores:
        why = f"the method {method.type} trains a head beside the adapter, which is none"
    elif method.type not in _WITHOUT_REFERENCE:
        why = f"the method {method.type} compares with the base, which it changes"
    elif tuning.type == "qlora":
        why = "the 4-bit base of qlora cannot be changed by so little: use type lora"
    elif tuning.use_dora:
        why = "DoRA's magnitudes are those of the changed base: leave use_dora out"
    if why:
        raise InvalidRequest(f"tuning.init {tuning.init} is not possible here: {why}.", param="tuning.init")


def _check_packing(tuning: Tuning) -> None:
    if tuning.group_by_length:
        raise InvalidRequest(
            "Packed rows leave no padding that tuning.group_by_length could save: set one of the two.",
            param="tuning.group_by_length",
        )
    if tuning.gpus not in ("auto", 1):
        raise UnsupportedFeature(
            "Rows are packed on one GPU: leave tuning.packing out, or tuning.gpus.", param="tuning.packing"
        )


def _check_metrics(method: Method, tuning: Tuning) -> None:
    """The metrics by which a checkpoint is the best: those of the method, and one for all of a job."""
    stopping = None if tuning.early_stopping == "auto" else tuning.early_stopping
    known, asked = METRICS[method.type], {"tuning.best_checkpoint": tuning.best_checkpoint}
    if stopping is not None:
        asked["tuning.early_stopping.metric"] = stopping.metric
    for param, metric in asked.items():
        if metric != "auto" and metric not in known:
            raise InvalidRequest(
                f"The method {method.type} does not measure {metric}: {param} can be {', '.join(known)}.",
                param=param,
            )
    given = [metric for metric in asked.values() if metric != "auto"]
    if len(set(given)) > 1:
        raise InvalidRequest(
            f"tuning.best_checkpoint goes by {given[0]}, and tuning.early_stopping by {given[1]}: give one metric for "
            "both.",
            param="tuning.early_stopping.metric",
        )


def check_held_out(tuning: Tuning, validation_file: str | None) -> None:
    """Raises InvalidRequest where an option is about evaluations, and no rows are held out. `validation_file`: as in
    the request, with `auto`."""
    for name in ("early_stopping", "best_checkpoint", "eval_interval"):
        if getattr(tuning, name) != "auto" and validation_file is None:
            raise InvalidRequest(
                f"tuning.{name} is about evaluations, for which rows have to be held out: give a validation_file, or "
                '"auto" for a share of the training file.',
                param=f"tuning.{name}",
            )


def check_rows_at_a_time(
    method: Method, tuning: Tuning, hyperparameters: Hyperparameters, data: DataOptions
) -> None:
    """Raises InvalidRequest where rows that exchange their answers are alone, or are others in each epoch, though the
    reference's numbers are computed once. `tuning` has the type of the job."""
    if not METHODS[method.type].has_mismatched:
        return
    at_a_time = {
        "tuning.per_device_batch_size": tuning.per_device_batch_size,
        "tuning.batch_size": tuning.batch_size,
        f"method.{method.type}.hyperparameters.batch_size": hyperparameters.batch_size,
    }
    for param, value in at_a_time.items():
        if value == 1:
            raise InvalidRequest(
                f"{method.type} compares the answers of several rows at a time: set {param} to 2 or more.",
                param=param,
            )
    if tuning.type == "full" and any(one.weight != 1 for one in data.mix or ()):
        raise InvalidRequest(
            f"{method.type} with tuning.type full computes its reference once for rows that stay together, so that an "
            "epoch has each row once: leave the weights of data.mix at 1, or train an adapter.",
            param="data.mix",
        )


def _is_without_dropout(method: Method) -> bool:
    return METHODS[method.type].has_reference or METHODS[method.type].generates


def without_dropout(method: Method, tuning: Tuning) -> Tuning:
    """Of such a method, the options without the dropout that a model from which training continues had."""
    if not _is_without_dropout(method) or tuning.dropout == "auto":
        return tuning
    return tuning.model_copy(update={"dropout": 0.0})


class _WithMethod(Protocol):
    """A request that has both places."""

    @property
    def method(self) -> Method | None: ...

    @property
    def hyperparameters(self) -> Hyperparameters | None: ...


def batch_size_of(body: _WithMethod, tuning: Tuning) -> int | str:
    """The one that is asked for; "auto" where it is left to the service."""
    asked = tuning.batch_size
    return asked if asked != "auto" else hyperparameters_of(body).batch_size


def hyperparameters_of(body: _WithMethod) -> Hyperparameters:
    """OpenAI moved the hyperparameters into `method`; both places are read, and the new one takes precedence.
    Raises InvalidRequest where they disagree."""
    older = body.hyperparameters
    if body.method is None:
        return older or Hyperparameters()
    newer = body.method.hyperparameters
    if older is None:
        return newer
    old, new = older.model_dump(exclude_unset=True), newer.model_dump(exclude_unset=True)
    if {**old, **new} != {**new, **old}:
        raise InvalidRequest(
            f"`hyperparameters` and `method.{body.method.type}.hyperparameters` disagree; give only the latter.",
            param="hyperparameters",
        )
    return type(newer)(**(old | new))
