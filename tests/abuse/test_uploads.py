"""Uploads of adapters that are bombs, traps or nonsense, and uploads that do not come."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from adapters import CONFIG, adapter_files
from tests.abuse.sending import FORM, connect, field, generate, head, working_at_most
from tests.engine.conftest import Service
from uploads import MIB

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


def upload(service: Service, files: dict[str, bytes]) -> tuple[int, dict[str, Any]]:
    answer = requests.post(
        f"{service.url}/v1/adapters/upload",
        files=[("file", (name, content)) for name, content in files.items()],
        data={"base": "tiny", "load": "false"},
        timeout=60,
    )
    return answer.status_code, answer.json()["error"]


def two(config: bytes | None = None, weights: bytes | None = None) -> dict[str, bytes]:
    files = adapter_files()
    return {
        CONFIG_FILE: files[CONFIG_FILE] if config is None else config,
        WEIGHTS_FILE: files[WEIGHTS_FILE] if weights is None else weights,
    }


def weights(header: bytes, size: int = 0) -> bytes:
    return struct.pack("<Q", len(header)) + header + b"\0" * size


def tensor(name: str, shape: str, end: int = 8) -> bytes:
    return f'"{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}'.encode()


def tarred(*members: tuple[str, bytes], **fields: Any) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in fields.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(content))
    return target.getvalue()


def zipped(*members: tuple[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return target.getvalue()


LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
GIANT_INT = "9" * 4000

HOSTILE: dict[str, Callable[[], dict[str, bytes]]] = {
    "giant dimensions": lambda: two(weights=weights(b"{" + tensor(LORA, f"[{GIANT_INT},{GIANT_INT}]") + b"}", 8)),
    "many giant dimensions": lambda: two(
        weights=weights(b"{" + tensor(LORA, "[" + ",".join([GIANT_INT] * 400) + "]") + b"}", 8)
    ),
    "many dimensions": lambda: two(weights=weights(b"{" + tensor(LORA, "[" + "1," * 10**6 + "1]") + b"}", 8)),
    "a header of objects": lambda: two(weights=weights(b'{"a":[' + b"{}," * (2 * MIB) + b"1]}")),
    "a header of pairs": lambda: two(weights=weights(b'{"a":[' + b'{"b":1},' * (MIB // 2) + b"1]}")),
    "a deep header": lambda: two(weights=weights(b"[" * 8 * MIB)),
    "many tensors": lambda: two(
        weights=weights(b"{" + b",".join(tensor(f"t{n}", "[2]") for n in range(20_000)) + b"}", 8)
    ),
    "a giant name": lambda: two(weights=weights(b"{" + tensor("n" * 8 * MIB, "[2]") + b"}", 8)),
    "a deep config": lambda: two(b"[" * (MIB - 1)),
    "a config of numbers": lambda: two(b'{"r":' + b"9" * (MIB - 100) + b"}"),
    "patterns": lambda: two(
        json.dumps({**CONFIG, "rank_pattern": {"(.*)*" * 200 + f"{n}x": 8 for n in range(900)}}).encode()
    ),
    "a giant type": lambda: two(json.dumps({**CONFIG, "peft_type": "T" * (MIB - 5000)}).encode()),
    "a bomb": lambda: {"a.tar.gz": gzip.compress(tarred((WEIGHTS_FILE, b"\0" * (60 * MIB))), 9)},
    "a bomb of zip": lambda: {"a.zip": zipped((WEIGHTS_FILE, b"\0" * (60 * MIB)))},
    "a bomb of members": lambda: {"a.tar": tarred(*((f"m{n}", b"") for n in range(10_000)))},
    "a bomb of headers": lambda: {
        "a.tar.gz": gzip.compress(tarred(("x", b""), pax_headers={"comment": "c" * (8 * MIB)}))
    },
    "a zip of members": lambda: {"a.zip": zipped(*((f"m{n}", b"") for n in range(5_000)))},
    "gzip in gzip": lambda: {"a.tar.gz": gzip.compress(gzip.compress(b"\0" * (60 * MIB)))},
    "gzip without an end": lambda: {"a.tar.gz": gzip.compress(b"\0" * (20 * MIB))[:-2000]},
    "a way out": lambda: {"a.tar": tarred(("../../adapter_config.json", b"{}"))},
    "a long way out": lambda: {"a.tar": tarred(("/".join([".."] * 20_000) + "/x", b"{}"))},
    "a device": lambda: {"a.tar": tarred((WEIGHTS_FILE, b""), type=tarfile.CHRTYPE, devmajor=1, devminor=5)},
    "a link": lambda: {"a.tar": tarred((WEIGHTS_FILE, b""), type=tarfile.SYMTYPE, linkname="/dev/zero")},
    "sparse": lambda: {
        "a.tar": tarred((WEIGHTS_FILE, b"\0" * 512), pax_headers={"GNU.sparse.size": "9" * 15, "GNU.sparse.major": "1"})
    },
    "nothing": lambda: {"a.tar": b""},
    "no archive": lambda: {"a.tar": b"\xff" * MIB},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_adapters_are_refused_soon_and_stop_nobody(service: Service, name: str) -> None:
    files = HOSTILE[name]()
    with working_at_most(service, 10):
        status, error = upload(service, files)
    assert status in (400, 413), error
    assert len(error["message"]) <= 2003
    assert not any(service.data_dir.joinpath("tmp").iterdir())


def test_generations_go_on_while_hostile_adapters_are_read(service: Service) -> None:
    files = HOSTILE["a header of pairs"]()
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(upload, service, files) for _ in range(4)]
        took = []
        while not all(answer.done() for answer in answers):
            took.append(generate(service))
            time.sleep(0.1)
    assert sorted(took)[len(took) // 2] < 1
    assert max(took) < 5
    assert {answer.result()[0] for answer in answers} <= {400, 413, 429}


def test_uploads_that_do_not_come_take_places_for_a_while_only(service: Service) -> None:
    """Their time is in tests/unit/test_limits.py; here, that generations and other requests go on meanwhile."""
    connections = [connect(service) for _ in range(40)]
    stopped = threading.Event()

    begun = field("purpose", b"fine-tune") + field("file", b"", "rows.jsonl")

    def trickle() -> None:
        for connection in connections:
            connection.sendall(
                head("POST", "/v1/files", Content_Type=FORM, Content_Length=str(10 * MIB)) + begun
            )
        while not stopped.wait(0.2):
            for connection in connections:
                try:
                    connection.sendall(b"-")
                except OSError:
                    pass  # refused with 429

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        time.sleep(0.5)
        assert max(generate(service) for _ in range(5)) < 1
        refused = requests.post(f"{service.url}/v1/files", files={"file": b"{}"}, timeout=10)
        assert refused.status_code == 429
    finally:
        stopped.set()
        thread.join()
        for connection in connections:
            connection.close()
