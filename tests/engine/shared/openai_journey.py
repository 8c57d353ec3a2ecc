"""What an application does with the stock `openai` package, which validates every answer against its types.

Run by test_openai.py, once for each major version.

Arguments: URL, training file, id of a finished job. Prints `ok` when every promise held.
"""

import sys

import openai
from openai import OpenAI

url, path, finished = sys.argv[1:4]
client = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, _strict_response_validation=True)
QUESTION = [{"role": "user", "content": "What color is the sky?"}]

# files
with open(path, "rb") as rows:
    file = client.files.create(file=rows, purpose="fine-tune")
assert file.id.startswith("file-")
assert file.status == "processed"
assert client.files.retrieve(file.id).bytes == file.bytes
assert file.id in [f.id for f in client.files.list(purpose="fine-tune")]
assert client.files.content(file.id).read() == open(path, "rb").read()

# jobs
job = client.fine_tuning.jobs.create(
    model="tunewright-tiny",
    training_file=file.id,
    suffix="journey",
    seed=11,
    metadata={"who": openai.__version__},
    method={
        "type": "supervised",
        "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 16, "learning_rate_multiplier": 2.0}},
    },
)
second = client.fine_tuning.jobs.create(
    model="tunewright-tiny", training_file=file.id, suffix="second", seed=12
)
assert job.object == "fine_tuning.job"
assert job.metadata == {"who": openai.__version__}
cancelled = client.fine_tuning.jobs.cancel(second.id)
assert cancelled.status == "cancelled"
ids = [j.id for j in client.fine_tuning.jobs.list(limit=1)]  # pages by itself
assert ids.index(second.id) < ids.index(job.id) < ids.index(finished)
assert len(ids) == len(set(ids))
client.fine_tuning.jobs.cancel(job.id)

done = client.fine_tuning.jobs.retrieve(finished)
assert done.status == "succeeded"
assert done.fine_tuned_model
assert done.trained_tokens > 0
assert done.hyperparameters.n_epochs == 2
events = list(client.fine_tuning.jobs.list_events(finished, limit=7))
assert events[0].message == "The job has successfully completed"
metrics = [e for e in events if e.type == "metrics"]
assert [m.data["step"] for m in metrics] == list(range(len(metrics), 0, -1))
checkpoints = client.fine_tuning.jobs.checkpoints.list(finished).data
assert [c.step_number for c in checkpoints] == [30, 15]
assert checkpoints[0].fine_tuned_model_checkpoint.startswith(done.fine_tuned_model)
assert checkpoints[0].metrics.valid_loss < 0.2
results = client.files.content(done.result_files[0]).text.splitlines()
assert results[0].startswith("step,train_loss")
assert len(results) == 1 + len(metrics)

# models
tuned = done.fine_tuned_model
listed = [m.id for m in client.models.list()]
assert "tunewright-tiny" in listed
assert tuned in listed
assert client.models.retrieve(tuned).owned_by == "tunewright"

# generation
answer = client.chat.completions.create(model=tuned, messages=QUESTION, temperature=0)
assert answer.model == tuned
assert "Arr" in answer.choices[0].message.content
assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
chunks = list(
    client.chat.completions.create(
        model=tuned, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
)
assert {c.model for c in chunks} == {tuned}
assert (
    "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    == answer.choices[0].message.content
)
assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
text = client.completions.create(
    model="tunewright-tiny", prompt="Once upon a time", max_tokens=8, temperature=0
)
# Until its end a streamed text has the finish_reason null, also OpenAI's own, which the package's type does not allow.
loose = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
streamed = loose.completions.create(
    model="tunewright-tiny", prompt="Once upon a time", max_tokens=8, temperature=0, stream=True
)
assert "".join(c.choices[0].text for c in streamed) == text.choices[0].text
assert text.model == "tunewright-tiny"
response = client.responses.create(
    model="tunewright-tiny", input="What color is the sky?", max_output_tokens=16, temperature=0
)
assert response.output_text
streamed = client.responses.create(
    model="tunewright-tiny", input="What color is the sky?", max_output_tokens=16, temperature=0, stream=True
)
deltas = [e.delta for e in streamed if e.type == "response.output_text.delta"]
assert "".join(deltas) == response.output_text


# errors
def refused(kind, call, code, param):
    try:
        call()
    except kind as error:
        assert error.code == code, error.code
        assert error.param == param, error.param
        assert error.type == "invalid_request_error", error.type
        assert len(str(error)) > 20
    else:
        raise AssertionError(f"{kind.__name__} expected")


jobs = client.fine_tuning.jobs
refused(openai.NotFoundError, lambda: client.models.retrieve("nope"), "model_not_found", "model")
refused(openai.NotFoundError, lambda: jobs.retrieve("ftjob-nope"), "fine_tuning_job_not_found", "job_id")
refused(
    openai.NotFoundError,
    lambda: client.chat.completions.create(model="nope", messages=QUESTION),
    "model_not_found",
    "model",
)
refused(openai.BadRequestError, lambda: jobs.cancel(finished), "job_not_cancellable", None)
refused(
    openai.BadRequestError,
    lambda: jobs.create(model="tunewright-tiny", training_file="file-nope"),
    "invalid_value",
    "training_file",
)
refused(
    openai.BadRequestError,
    lambda: jobs.create(model="tunewright-tiny", training_file=file.id, extra_body={"surprise": 1}),
    "unknown_parameter",
    "surprise",
)
refused(openai.BadRequestError, lambda: client.models.delete("tunewright-tiny"), "invalid_value", "model")
assert client.files.delete(file.id).deleted
print("ok", openai.__version__)
