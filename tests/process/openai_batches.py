"""The stock `openai` package uploads requests in parts, has them answered as a batch, and reads the results; every
answer is validated against its types.

Run by test_batches.py, once for each major version. Arguments: URL, base, alias. Prints `ok` when all was as expected.
"""

import hashlib
import io
import json
import sys
import time

import openai
from openai import OpenAI

url, base, alias = sys.argv[1:]
client = OpenAI(base_url=url, api_key="unused", max_retries=0, _strict_response_validation=True)
FINAL = ("completed", "failed", "expired", "cancelled")


def line(id: str, model: str = base, **body: object) -> str:
    said = {"messages": [{"role": "user", "content": "Hi"}]}
    request = {
        "custom_id": id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": model, **said, **body},
    }
    return json.dumps(request) + "\n"


def waited(batch: openai.types.Batch) -> openai.types.Batch:
    deadline = time.monotonic() + 120
    while batch.status not in FINAL:
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    return batch


def rows(file: str | None) -> dict[str, dict]:
    assert file is not None
    listed = client.files.retrieve(file)
    assert listed.purpose == "batch_output"
    lines = [json.loads(one) for one in client.files.content(file).text.splitlines()]
    found = {one["custom_id"]: one for one in lines}
    assert len(found) == len(lines)
    return found


# uploads
requests = (line("base") + line("alias", alias) + line("none", messages=None)).encode()
upload = client.uploads.upload_file_chunked(
    file=requests,
    filename="requests.jsonl",
    bytes=len(requests),
    mime_type="text/jsonl",
    purpose="batch",
    part_size=100,
    md5=hashlib.md5(requests).hexdigest(),
)
assert upload.status == "completed"
assert upload.file is not None
assert client.files.content(upload.file.id).read() == requests
left = client.uploads.create(filename="a.jsonl", purpose="batch", bytes=3, mime_type="text/jsonl")
part = client.uploads.parts.create(left.id, data=io.BytesIO(b"abc"))
assert part.upload_id == left.id
assert client.uploads.cancel(left.id).status == "cancelled"

# a batch
made = client.batches.create(
    input_file_id=upload.file.id,
    endpoint="/v1/chat/completions",
    completion_window="24h",
    metadata={"who": openai.__version__},
    output_expires_after={"anchor": "created_at", "seconds": 3600},
)
assert made.status == "validating"
assert made.expires_at == made.created_at + 86400
done = waited(made)
assert done.status == "completed", done
assert done.request_counts is not None
assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (3, 2, 1)
assert done.completed_at is not None
answers, errors = rows(done.output_file_id), rows(done.error_file_id)
assert answers["base"]["response"]["body"]["model"] == base
assert answers["alias"]["response"]["body"]["choices"][0]["message"]["content"].startswith("Arr! ")
assert answers["alias"]["error"] is None
assert errors["none"]["response"]["status_code"] == 400
assert errors["none"]["response"]["body"]["error"]["message"]
listed = client.files.retrieve(done.output_file_id)
assert listed.expires_at is not None

# one with faults
faulty = (line("a") + "{\n" + line("a") + line("b", "nothing")).encode()
file = client.files.create(file=("faulty.jsonl", faulty), purpose="batch")
assert file.status == "processed"
failed = waited(
    client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
)
assert failed.status == "failed"
assert failed.errors is not None
told = [(error.line, error.code, error.param) for error in failed.errors.data]
assert told == [(2, "invalid_json_line", None), (3, "duplicate_custom_id", "custom_id")], told

# lists
pages = client.batches.list(limit=1)
assert pages.data[0].id == failed.id
assert [batch.id for batch in pages][:2] == [failed.id, made.id]
for call, id, code in (
    (client.batches.cancel, made.id, "job_not_cancellable"),
    (client.batches.retrieve, "batch-none", "batch_not_found"),
):
    refused = None
    try:
        call(id)
    except openai.APIStatusError as error:
        refused = error.code
    assert refused == code
print("ok", openai.__version__)
