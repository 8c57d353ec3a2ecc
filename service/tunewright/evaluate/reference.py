"""Measures the reference: the 16-bit base in transformers, with and without the adapter in peft, token by token."""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tunewright.evaluate.folder import (
    CANDIDATES,
    BaseSpec,
    FourBitLoss,
    Logprobs,
    ParitySpec,
    Reference,
    ReferenceRow,
    Rendering,
)
from tunewright.registry.safetensors_file import weight_files
from tunewright.rows.canonical import texts
from tunewright.rows.chat import ChatEncoder
from tunewright.rows.examples import UnusableRow, encode_text
from tunewright.rows.probes import rows_or_probes

_UNPACKED = 4
"""The size of 4-bit weights in 16 bits, as a multiple."""
_MEMORY_FACTOR = 1.2
"""Memory for the weights, the adapter and the logits of a row, as a multiple of the weights."""
_SPARE = 2**30
_LONGEST_ROW = 512
"""Tokens of a row; longer ones are cut."""
_SHOWN = 200
"""Characters of a row that are kept as its text."""


class NoRoom(Exception):
    """No device has room for the base."""


class ReferenceBase:
    """A base in memory, on which adapters are measured one after another."""

    def __init__(self, spec: BaseSpec) -> None:
        """Load the base. Raises NoRoom, and any exception of transformers."""
        self.spec = spec
        self._began = time.monotonic()
        self._device = _place(Path(spec.path), may_use_gpu=spec.device != "cpu")
        self._options = {"trust_remote_code": spec.trust_remote_code, "local_files_only": True}
        self._dtype = self._sixteen_bits()
        self._model = self._loaded()

    def measure(self, spec: ParitySpec) -> Reference:
        """Measure an adapter. The `seconds` of the first one include loading the base."""
        tokenizer = AutoTokenizer.from_pretrained(self.spec.path, **self._options)
        if spec.chat_template is not None:
            tokenizer.chat_template = spec.chat_template
        rows, renderings = _tokenized(spec, tokenizer)
        adapted = PeftModel.from_pretrained(self._model, spec.adapter).eval()
        measured = []
        for file, line, tokens in rows:
            with adapted.disable_adapter():
                plain = _scores(adapted, tokens, self._device)
            measured.append(
                ReferenceRow(
                    file=file,
                    line=line,
                    text=tokenizer.decode(tokens)[:_SHOWN],
                    tokens=tokens,
                    base=plain,
                    adapted=_scores(adapted, tokens, self._device),
                )
            )
        self._model = adapted.unload()
        four_bit = self._four_bit_loss(spec, measured) if spec.four_bit else None
        began, self._began = self._began, time.monotonic()
        return Reference(
            rows=measured,
            renderings=renderings,
            device=torch.cuda.get_device_name() if self._device == "cuda" else "cpu",
            dtype=str(self._dtype).removeprefix("torch."),
            seconds=round(self._began - began, 1),
            versions={name: version(name) for name in ("torch", "transformers", "peft")},
            four_bit=four_bit,
        )

    def _four_bit_loss(self, spec: ParitySpec, rows: list[ReferenceRow]) -> FourBitLoss | None:
        """What the adapter loses by not being served on the base in 4 bits. None where that cannot be measured, which
        is no reason not to serve it."""
        from tunewright.evaluate.four_bit import four_bit_loss

        try:
            return four_bit_loss(
                Path(self.spec.path), spec.adapter, rows, device=self._device, **self._options
            )
        except Exception as error:  # no room, or a device for which bitsandbytes has no kernels
            print(f"not measured in 4 bits: {type(error).__name__}: {error}", file=sys.stderr)
            return None

    def _loaded(self) -> PreTrainedModel:
        """The base, with packed weights dequantized, since the engine computes with those numbers."""
        if _is_awq(Path(self.spec.path)):
            from tunewright.evaluate.awq_weights import load_dequantized

            return load_dequantized(
                Path(self.spec.path),
                dtype=self._dtype,
                device=self._device,
                trust_remote_code=self.spec.trust_remote_code,
            )
        return AutoModelForCausalLM.from_pretrained(
            self.spec.path,
            dtype=self._dtype,
            device_map={"": self._device},
            attn_implementation="sdpa",
            **self._options,
        )

    def _sixteen_bits(self) -> torch.dtype:
        """The engine's 16-bit type.

        The engine adds an adapter's output to outputs that are rounded already, and so loses small changes. So does
        peft in 16 bits; in float32 the reference would keep them (docs/decisions/0013).
        """
        config = AutoConfig.from_pretrained(self.spec.path, **self._options)
        return torch.float16 if config.dtype == torch.float16 else torch.bfloat16


def _is_awq(folder: Path) -> bool:
    config = json.loads((folder / "config.json").read_text())
    return (config.get("quantization_config") or {}).get("quant_method") == "awq"


def _place(base: Path, *, may_use_gpu: bool) -> str:
    """The GPU if it may be used and has room for the base, else the CPU. Raises NoRoom."""
    weights = sum(file.stat().st_size for file in weight_files(base)) * (_UNPACKED if _is_awq(base) else 1)
    needed = weights * _MEMORY_FACTOR + _SPARE
    free = {"cpu": psutil.virtual_memory().available}
    if may_use_gpu and torch.cuda.is_available():
        free = {"cuda": torch.cuda.mem_get_info()[0], **free}
    device = next((device for device, room in free.items() if needed < room), None)
    if device is None:
        listed = ", ".join(f"{device} {room / 2**30:.1f} GiB" for device, room in free.items())
        raise NoRoom(
            f"no device has the {needed / 2**30:.1f} GiB that the base needs beside what runs; free: {listed}"
        )
    return device


def _tokenized(
    spec: ParitySpec, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[tuple[str | None, int, list[int]]], list[Rendering]]:
    """The rows (file, line, tokens), tokenized as in training and cut, and the prompts of requests for them that fit
    the context."""
    rows: list[tuple[str | None, int, list[int]]] = []
    renderings: list[Rendering] = []
    longest = min(_LONGEST_ROW, spec.base.context - 1)
    encoder = ChatEncoder(tokenizer) if tokenizer.chat_template is not None else None
    as_chat = tokenizer.chat_template is not None
    for file, line, row in islice(rows_or_probes(spec.files, as_chat=as_chat), spec.rows):
        if "messages" in row:
            assert encoder is not None, "chat rows are refused for a base without a template"
            request = _request(encoder, file, line, row)
            if request is None:
                continue
            tokens = _conversation(encoder, tokenizer, row, request.tokens)
            renderings.append(request)
        else:
            prompt, completion = texts(row)
            tokens = encode_text(tokenizer, prompt, completion).input_ids
            if prompt:
                made = list(tokenizer(prompt)["input_ids"])
                renderings.append(Rendering(file=file, line=line, prompt=prompt, tokens=made))
        if len(tokens) > 1:
            rows.append((file, line, tokens[:longest]))
    return rows, [rendering for rendering in renderings if len(rendering.tokens) < spec.base.context]


def _request(encoder: ChatEncoder, file: str | None, line: int, row: dict[str, Any]) -> Rendering | None:
    """The request for a row's last answer, as a client sends it; None where the template refuses it."""
    messages, tools = row["messages"], row.get("tools")
    last = max(index for index, message in enumerate(messages) if message.get("role") == "assistant")
    shown = messages[:last] or messages
    try:
        tokens = encoder.prompt_tokens(shown, tools)
    except UnusableRow:
        return None
    sent, sent_tools = encoder.as_sent(shown, tools)
    return Rendering(
        file=file, line=line, messages=sent, tools=sent_tools, add_generation_prompt=True, tokens=tokens
    )


def _conversation(
    encoder: ChatEncoder, tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], prompt: list[int]
) -> list[int]:
    """The tokens to score: those of training or, for a row that it refuses, the answer's text behind the prompt."""
    try:
        return encoder.examples(row)[-1].input_ids
    except UnusableRow:
        said = next(m.get("content") for m in reversed(row["messages"]) if m.get("role") == "assistant")
        return [
            *prompt,
            *tokenizer(said if isinstance(said, str) else "", add_special_tokens=False)["input_ids"],
        ]


def _scores(model: PeftModel, tokens: list[int], device: str) -> list[Logprobs]:
    """The log-probabilities of all tokens but the first, and of the likeliest in their places."""
    with torch.inference_mode():
        logits = (
            model(input_ids=torch.tensor([tokens], device=device), use_cache=False).logits[0, :-1].float()
        )
        logprobs = logits.log_softmax(-1)
        said = logprobs.gather(1, torch.tensor(tokens[1:], device=device)[:, None])
        top = logprobs.topk(min(CANDIDATES, logprobs.shape[-1]))
    ids = torch.cat([top.indices, torch.tensor(tokens[1:], device=device)[:, None]], 1).tolist()
    values = torch.cat([top.values, said], 1).tolist()
    return [dict(zip(place, scores, strict=True)) for place, scores in zip(ids, values, strict=True)]
