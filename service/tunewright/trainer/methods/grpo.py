"""OpenAI's method `reinforcement`: answers to each prompt are made, graded, and the better ones become likelier, with
TRL's GRPOTrainer, or its RLOOTrainer.

The prompts are the tokens of a request (`rows.chat`), and answers end at the tokens at which the engine stops. They are
made by the engine that serves the base (`trainer.sampling`), or in this process, by transformers' generation. Where
`beta` is not 0, the reference is as in `methods.dpo`.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.utils import RepeatSampler

from tunewright.jobs.folder import EventLog
from tunewright.jobs.process import rank
from tunewright.plan.sampling import LARGEST_DIFFERENCE
from tunewright.rows.mixture import Mixture
from tunewright.rows.renderer import stop_tokens
from tunewright.trainer.held_out import summed, tell
from tunewright.trainer.items import held_out_items, training_items
from tunewright.trainer.loading import OrderedRows
from tunewright.trainer.loop import HeartbeatCallback
from tunewright.trainer.metrics import is_measured
from tunewright.trainer.rewards import Rewards
from tunewright.trainer.sampling import EngineSampler
from tunewright.trainer.scores import ModelScores
from tunewright.trainer.training import Parts, Stopped

_REFERENCE_ADAPTER = "ref"
"""TRL's name for it."""
_DIFFERENCE = "sampling/sampling_logp_difference/mean"
_OF_TRAINING = ("reward_std", "frac_reward_zero_std", _DIFFERENCE, "sampling/sampling_logp_difference/max")
"""Those of the answers to a prompt, of which there may be one in an evaluation, and of the engine's answers."""


class GradedTrainer(OrderedRows):
    """A part of TRL's trainers on prompts: tokenized ones, with an evaluation that gives every answer the same
    weight."""

    config: type[GRPOConfig] | type[RLOOConfig]

    def __init__(self, parts: Parts) -> None:
        spec, tuning = parts.spec, parts.spec.tuning
        assert spec.grader is not None, "the method has one"
        assert tuning.num_generations is not None and tuning.eval_samples is not None
        parts.model.generation_config.eos_token_id = sorted(stop_tokens(parts.tokenizer))
        arguments = parts.arguments()
        del arguments["max_length"]  # prompts are no longer than it leaves them room
        prompts = tuning.per_device_batch_size
        events = EventLog(parts.folder, rank())

        beat = HeartbeatCallback(parts.folder).beat
        # each token of an answer is a sign of life, as each row is elsewhere
        parts.model.register_forward_pre_hook(lambda *_: beat())

        def tell_error(text: str) -> None:
            events.message(text, level="warn", data={"code": "grader_errors"})

        scores = None
        if spec.grading_models is not None:
            scores = ModelScores(
                spec.grader, spec.grading_models, spec.seed, parts.folder, parts.go_on, Stopped
            )
        super().__init__(
            model=parts.model,
            reward_funcs=[Rewards(spec.grader, spec.python_graders, tell_error, beat, scores)],
            args=self.config(
                **arguments
                | {
                    "per_device_train_batch_size": prompts * tuning.num_generations,
                    "per_device_eval_batch_size": prompts * tuning.eval_samples,
                },
                num_generations=tuning.num_generations,
                num_generations_eval=tuning.eval_samples,
                max_completion_length=tuning.max_completion_length,
                temperature=tuning.temperature,
                beta=tuning.beta,
            ),
            train_dataset=_with_items(parts.training, training_items(spec)),
            eval_dataset=_with_items(parts.held_out, held_out_items(spec)) if parts.held_out else None,
            processing_class=parts.tokenizer,
            callbacks=parts.callbacks,
        )
        if tuning.beta and isinstance(parts.model, PeftModel) and spec.parent_adapter is None:
            # a copy that computes what the base does, in more time
            parts.model.delete_adapter(_REFERENCE_ADAPTER)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> EpochPrompts:
        order: Any = super()._get_train_sampler(dataset)
        return EpochPrompts(
            order.data_source, order.mini_repeat_count, order.batch_size, order.repeat_count, seed=order.seed
        )

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}  # rows.tokenized has tokenized them

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # Generation calls the model below the part that autocast wraps, where adapters are left to autocast
        # (trainer.model), and the first evaluation comes before anything is wrapped.
        with self.accelerator.autocast():
            made: dict[str, Any] = super()._generate_and_score_completions(inputs)
        return made

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Return `eval_loss` and the measures of rewards and answers, as means over the answers to the evaluation
        set."""
        sums = summed(self, self._measured)
        answers = sums.pop("answers")
        # TRL would tell the training's numbers since the last log with these, and forget them.
        of_training, self._metrics["train"] = self._metrics["train"], defaultdict(list)
        try:
            return tell(self, {f"eval_{name}": value / answers for name, value in sums.items()})
        finally:
            self._metrics["train"] = of_training

    def _measured(self, model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, float]:
        answers = len(inputs["completion_ids"])
        found = {"loss": float(self.compute_loss(model, inputs))}
        found |= {
            name: values[-1]
            for name, values in self._metrics["eval"].items()
            if is_measured(name) and name not in _OF_TRAINING
        }
        self._metrics["eval"].clear()
        return {"answers": answers, **{name: mean * answers for name, mean in found.items()}}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Without the reference: the checkpoint is an adapter to use, and the parent is there when it is resumed."""
        super()._save(output_dir, state_dict)
        shutil.rmtree(Path(output_dir or self.args.output_dir) / _REFERENCE_ADAPTER, ignore_errors=True)


class GroupTrainer(GradedTrainer, GRPOTrainer):  # type: ignore[misc]
    """An answer is compared with the mean of all answers to its prompt.

    TRL's `use_vllm` says whether the answers at hand are the engine's. Then it weighs each by how likely it is in the
    trainer against the engine, and leaves out those for which this is above `vllm_importance_sampling_clip_max`.
    """

    config = GRPOConfig

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        sampling = parts.spec.sampling
        self._sampler: EngineSampler | None = None
        if sampling is not None:
            self._sampler = EngineSampler(
                sampling,
                parts.spec.job_id,
                parts.spec.seed,
                parts.folder,
                EventLog(parts.folder, rank()),
                _request_of(parts),
                parts.go_on,
                Stopped,
            )

    def _generate_single_turn(self, prompt_ids: list[list[int]], *others: Any) -> Any:
        self.use_vllm = False
        if self._sampler is not None:
            model = self.accelerator.unwrap_model(self.model)
            mode = "train" if self.model.training else "eval"
            made = self._sampler.sample(model, self.state.global_step, mode, prompt_ids)
            if made is not None:
                self.use_vllm = True
                return made.completion_ids, made.logprobs
        return super()._generate_single_turn(prompt_ids, *others)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        metrics = self._metrics["train" if self.model.training else "eval"]
        before, tokens = (
            {name: len(values) for name, values in metrics.items()},
            self.state.num_input_tokens_seen,
        )
        made = super()._generate_and_score_completions(inputs)
        if not self.use_vllm or metrics[_DIFFERENCE][-1] <= LARGEST_DIFFERENCE:
            return made
        assert self._sampler is not None, "these are the engine's answers"
        self._sampler.turn_off(
            "sampling_mismatch",
            f"tokens of the engine's answers differ by {metrics[_DIFFERENCE][-1]:.3g} in their log-probability from "
            f"the trainer's, on average, and {LARGEST_DIFFERENCE} is the limit",
        )
        for name in list(metrics):  # nothing of these answers is counted
            del metrics[name][before.get(name, 0) :]
            if not metrics[name]:
                del metrics[name]
        self.state.num_input_tokens_seen = tokens
        return super()._generate_and_score_completions(inputs)


class LeaveOneOutTrainer(GradedTrainer, RLOOTrainer):  # type: ignore[misc]
    """An answer is compared with the mean of the other answers to its prompt."""

    config = RLOOConfig


def make_trainer(parts: Parts) -> GradedTrainer:
    return LeaveOneOutTrainer(parts) if parts.spec.tuning.algorithm == "rloo" else GroupTrainer(parts)


def _request_of(parts: Parts) -> dict[str, Any]:
    """The parameters of a completion that samples as TRL does, whatever the base's own defaults are."""
    tuning = parts.spec.tuning
    return {
        "max_tokens": tuning.max_completion_length,
        "temperature": tuning.temperature,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": sorted(stop_tokens(parts.tokenizer)),
        "logprobs": 0,
        "return_token_ids": True,
    }


class EpochPrompts(RepeatSampler):  # type: ignore[misc]
    """TRL's order of prompts. TRL's own sampler begins with the first epoch's order in each process, so that a job that
    goes on in a later epoch would have prompts twice and others never."""

    _epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed)
        for _ in range(self._epoch):
            torch.randperm(self.num_samples, generator=self.generator)
        yield from super().__iter__()


def _with_items(prompts: Mixture, items: list[str]) -> Dataset:
    """`prompt`, token ids, and `item`, JSON. The items are of all rows of the files, as the prompts are."""
    rows = prompts.dataset(beside={"item": items})
    return rows.with_transform(
        lambda batch: {"prompt": batch["input_ids"], "item": batch["item"]}, columns=["input_ids", "item"]
    )
