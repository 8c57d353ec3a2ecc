"""The stock `openai` package as its own tests use it: every answer is validated against its types.

Run by test_openai_strict.py, once for each major version, on a service whose data has a job in each state. Argument:
URL. Prints `ok` when every answer was read.
"""

import sys
import uuid

import openai
from openai import OpenAI

client = OpenAI(base_url=sys.argv[1], api_key="unused", max_retries=0, _strict_response_validation=True)
jobs = client.fine_tuning.jobs
ROWS = b'{"prompt": "a", "completion": "b"}\n'

# files
file = client.files.create(
    file=("a.jsonl", ROWS), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
)
assert file.expires_at == file.created_at + 3600
lasting = client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
assert lasting.expires_at is None
for listed in client.files.list(limit=2, order="asc"):
    assert client.files.retrieve(listed.id) == listed
assert client.files.content(file.id).read() == ROWS
assert client.files.delete(file.id).deleted

# jobs, in each state
states = set()
for job in jobs.list(limit=3):
    assert jobs.retrieve(job.id) == job
    states.add((job.state, job.status))
    for event in jobs.list_events(job.id, limit=2):
        assert event.object == "fine_tuning.job.event"
    for checkpoint in jobs.checkpoints.list(job.id, limit=1):
        assert checkpoint.metrics.train_loss
assert {("pausing", "running"), ("paused", "queued")} <= states, states
assert len(states) == 8, states

# what changes a job
created = jobs.create(
    model="missing",
    training_file=lasting.id,
    validation_file=lasting.id,
    suffix="x",
    seed=42,
    metadata={"who": openai.__version__},
    hyperparameters={"batch_size": "auto", "learning_rate_multiplier": "auto", "n_epochs": "auto"},
    method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto"}}},
    extra_headers={"Idempotency-Key": uuid.uuid4().hex},
)
assert [job.id for job in jobs.list(metadata={"who": openai.__version__})] == [created.id]
assert jobs.cancel(created.id).status == "cancelled"
paused = next(job for job in jobs.list() if job.state == "paused")
assert jobs.pause(paused.id).status == "queued"
queued = next(job for job in jobs.list() if job.state == "queued")
assert jobs.pause(queued.id).state == "paused"
assert jobs.resume(queued.id).state == "queued"

preferences = client.files.create(
    file=(
        "pairs.jsonl",
        b'{"input": {"messages": [{"role": "user", "content": "Hi"}], "tools": [], "parallel_tool_calls": true},'
        b' "preferred_output": [{"role": "assistant", "content": "Hello."}],'
        b' "non_preferred_output": [{"role": "assistant", "content": "No."}]}\n',
    ),
    purpose="fine-tune",
)
compared = jobs.create(
    model="missing",
    training_file=preferences.id,
    method={
        "type": "dpo",
        "dpo": {
            "hyperparameters": {
                "beta": 0.2, "batch_size": "auto", "learning_rate_multiplier": 2.0, "n_epochs": 2,
            }
        },
    },
)  # fmt: skip
assert compared.method.type == "dpo"
assert compared.method.supervised is None
assert compared.method.dpo.hyperparameters.beta == 0.2
assert compared.method.dpo.hyperparameters.n_epochs == 2
assert jobs.cancel(compared.id).status == "cancelled"

# graders
graders = client.fine_tuning.alpha.graders
exact = {
    "type": "string_check", "name": "exact", "operation": "eq", "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
}  # fmt: skip
near = {
    "type": "text_similarity", "name": "near", "evaluation_metric": "rouge_l",
    "input": "{{ sample.output_text }}", "reference": "{{ item.answer }}",
}  # fmt: skip
judge = {
    "type": "score_model", "name": "judge", "model": "tiny", "range": [0, 1],
    "input": [{"role": "user", "content": "Score {{ sample.output_text }}."}],
}  # fmt: skip
several = {"type": "multi", "name": "both", "graders": exact, "calculate_output": "exact * 2"}
for grader in (exact, near, judge, several):
    assert graders.validate(grader=grader).grader.type == grader["type"]
ran = graders.run(grader=exact, model_sample="42", item={"answer": "42"})
assert (ran.reward, ran.metadata.name, ran.metadata.errors.other_error) == (1.0, "exact", False)
assert graders.run(grader=several, model_sample="42", item={"answer": "42"}).sub_rewards == {"exact": 1.0}
assert graders.run(grader=near, model_sample="a b", item={"answer": "a c"}).reward == 0.5
assert graders.run(grader=exact, model_sample="42").metadata.errors.invalid_variable_error
asked = graders.run(grader=judge, model_sample="42", item={})  # the stand-in of vLLM answers no score
assert asked.metadata.errors.api_model_grader_parse_error, asked
assert asked.reward == 0.0
refused = {"type": "python", "name": "program", "source": "def grade(sample, item): return 1.0"}
for call in (graders.validate, lambda grader: graders.run(grader=grader, model_sample="")):
    try:
        call(grader=refused)
    except openai.BadRequestError as error:
        told = (error.code, error.param)
    else:
        raise AssertionError("programs are off by default")
    assert told == ("unsupported", "grader"), told

prompts = client.files.create(
    file=("prompts.jsonl", b'{"messages": [{"role": "user", "content": "6 * 7?"}], "answer": "42"}\n'),
    purpose="fine-tune",
)
reinforced = jobs.create(
    model="missing",
    training_file=prompts.id,
    method={
        "type": "reinforcement",
        "reinforcement": {
            "grader": several,
            "hyperparameters": {
                "batch_size": 1, "compute_multiplier": 0.5, "eval_interval": "auto", "eval_samples": 2,
                "learning_rate_multiplier": 2.0, "n_epochs": "auto", "reasoning_effort": "default",
            },
        },
    },
)  # fmt: skip
assert reinforced.method.reinforcement.grader.calculate_output == "exact * 2"
assert reinforced.method.reinforcement.hyperparameters.eval_samples == 2
assert jobs.retrieve(reinforced.id) == reinforced
assert jobs.cancel(reinforced.id).status == "cancelled"

# models
models = list(client.models.list())
for model in models:
    assert client.models.retrieve(model.id).created == model.created
tuned = next(model for model in models if model.kind == "adapter")
assert client.models.delete(tuned.id).deleted
print("ok", openai.__version__)
