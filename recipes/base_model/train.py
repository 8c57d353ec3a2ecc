"""Trains the embedded base model from nothing: tokenizer, model, evaluation, model card. Reads top to bottom.

Needs torch, transformers, tokenizers, numpy and safetensors, no network and no service. One run writes one
folder that `AutoModelForCausalLM` and `AutoTokenizer` load. The weights are rounded to bf16 before the
evaluation, so the numbers in the card describe what ships.

    python recipes/base_model/train.py --out OUT   # 40M tokens: two minutes on a GPU, hours on two CPU cores
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

# the neighbours, found through the line above
from corpus import Corpus, Probe, probes  # noqa: E402
from tokens import CONTEXT, END_OF_TEXT, VOCAB_SIZE, pack, save_tokenizer, train_tokenizer  # noqa: E402
from world import load_world  # noqa: E402


@dataclass(frozen=True)
class Settings:
    """One run. `tokens` counts the tokens of the packed rows, padding included."""

    out: Path
    tokens: int = 40_000_000
    seed: int = 1
    device: str = "auto"
    length: int = CONTEXT
    batch: int = 16
    peak_lr: float = 3e-3
    weight_decay: float = 0.1
    warmup_share: float = 0.05
    compile: bool = False
    probes_per_topic: int = 14

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, self.tokens // (self.batch * self.length))


# --- model ---


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of 4.5M parameters; every width is a multiple of 128, so that AWQ's groups fit."""
    end_of_text = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=768,
        max_position_embeddings=CONTEXT,
        rope_theta=10_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=[tokenizer.eos_token_id, end_of_text],
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=None,
        eos_token_id=[tokenizer.eos_token_id, end_of_text],
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def weighted_loss(logits: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross entropy over `[batch, length]` ids, each target counted by its weight."""
    targets, counts = ids[:, 1:].reshape(-1), weights[:, 1:].reshape(-1)
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets, reduction="none"
    )
    return (losses * counts).sum() / counts.sum().clamp(min=1.0)


def learning_rate(step: int, settings: Settings) -> float:
    """Linear warmup, then a cosine to zero."""
    warmup = max(1, int(settings.steps * settings.warmup_share))
    if step < warmup:
        return settings.peak_lr * (step + 1) / warmup
    return (
        settings.peak_lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, settings.steps - warmup)))
    )


def train(
    model: LlamaForCausalLM, ids: np.ndarray, weights: np.ndarray, settings: Settings, device: str
) -> None:
    """One pass over the rows, each seen once."""
    model.to(device).train()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
    )
    forward = torch.compile(model) if settings.compile else model
    autocast = torch.autocast("cuda", torch.bfloat16) if device == "cuda" else nullcontext()
    start = time.monotonic()
    for step in range(settings.steps):
        rows = slice(step * settings.batch, (step + 1) * settings.batch)
        batch = torch.from_numpy(ids[rows].astype(np.int64)).to(device)
        counts = torch.from_numpy(weights[rows].astype(np.float32)).to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        with autocast:
            logits = forward(input_ids=batch, use_cache=False).logits
        loss = weighted_loss(logits, batch, counts)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % max(1, settings.steps // 50) == 0 or step == settings.steps - 1:
            rate = (step + 1) * batch.numel() / (time.monotonic() - start)
            print(
                f"step {step + 1:5d}/{settings.steps}  loss {loss.item():.4f}  {rate:,.0f} tokens/s",
                flush=True,
            )


# --- evaluation ---


@dataclass
class Results:
    """What the card reports. `topics` maps a topic to (right, asked)."""

    held_out_loss: float = 0.0
    topics: dict[str, tuple[int, int]] = field(default_factory=dict)
    wrong: list[dict[str, str]] = field(default_factory=list)

    @property
    def exact_match(self) -> float:
        """Share of all probes answered exactly."""
        right, asked = (sum(column) for column in zip(*self.topics.values(), strict=True))
        return right / asked


@torch.no_grad()
def greedy_answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, asked: list[Probe], batch: int = 64
) -> list[str]:
    """The model's greedy answer to each probe, in order."""
    answers: list[str] = []
    for at in range(0, len(asked), batch):
        chats = [probe.chat() for probe in asked[at : at + batch]]
        prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(
            prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        )
        inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
        output = model.generate(**inputs, max_new_tokens=64)
        answers += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


@torch.no_grad()
def evaluate(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus: Corpus, settings: Settings
) -> Results:
    """Loss over fully weighted tokens of unseen documents, and exact matches of greedy answers to probes."""
    model.eval()
    results = Results()
    ids, weights = pack(corpus, tokenizer, rows=32, length=settings.length)
    losses = []
    for at in range(0, len(ids), 8):
        batch = torch.from_numpy(ids[at : at + 8].astype(np.int64)).to(model.device)
        answers = torch.from_numpy((weights[at : at + 8] == 1.0).astype(np.float32)).to(model.device)
        losses.append(weighted_loss(model(input_ids=batch, use_cache=False).logits, batch, answers).item())
    results.held_out_loss = sum(losses) / len(losses)
    asked = probes(corpus.world, settings.probes_per_topic)
    right: dict[str, int] = defaultdict(int)
    total: dict[str, int] = defaultdict(int)
    for probe, answer in zip(asked, greedy_answers(model, tokenizer, asked), strict=True):
        total[probe.topic] += 1
        right[probe.topic] += answer == probe.answer
        if answer != probe.answer:
            question = probe.messages[-1][1]
            results.wrong.append(
                {"topic": probe.topic, "asked": question, "want": probe.answer, "got": answer}
            )
    results.topics = {topic: (right[topic], total[topic]) for topic in total}
    return results


def table(results: Results) -> str:
    """The exact matches by topic, as Markdown."""
    lines = ["| topic | right | asked |", "|---|---:|---:|"]
    lines += [f"| {topic} | {right} | {asked} |" for topic, (right, asked) in results.topics.items()]
    right, asked = (sum(column) for column in zip(*results.topics.values(), strict=True))
    return "\n".join([*lines, f"| **all** | **{right}** | **{asked}** |"])


def write_card(results: Results, settings: Settings, parameters: int, seconds: float, device: str) -> None:
    """The model card and the numbers behind it, into the model's folder."""
    card = (HERE / "model_card.md").read_text(encoding="utf-8")
    slots = {
        "parameters": f"{parameters / 1e6:.2f}M",
        "tokens": f"{settings.steps * settings.batch * settings.length / 1e6:.1f}M",
        "seed": settings.seed,
        "seconds": f"{seconds:.0f}",
        "device": device,
        "loss": f"{results.held_out_loss:.4f}",
        "exact": f"{results.exact_match:.1%}",
        "count": sum(asked for _, asked in results.topics.values()),
        "table": table(results),
        "context": CONTEXT,
        "length": settings.length,
    }
    (settings.out / "README.md").write_text(card.format_map(slots), encoding="utf-8")


# --- the run ---


def parse_arguments() -> Settings:
    """The command line as settings; every setting is an option of the same name."""
    parser = argparse.ArgumentParser(description="Train the embedded base model.")
    defaults = asdict(Settings(out=Path()))
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model into")
    for name in ("tokens", "seed", "length", "batch", "probes_per_topic"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=defaults[name])
    for name in ("peak_lr", "weight_decay", "warmup_share"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=defaults[name])
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--compile", action="store_true", help="use torch.compile (slow start, faster steps)")
    return Settings(**vars(parser.parse_args()))


def main() -> None:
    """Tokenizer, data, training, rounding, saving, reloading, evaluation, card."""
    settings = parse_arguments()
    device = (
        settings.device if settings.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    )
    torch.manual_seed(settings.seed)
    settings.out.mkdir(parents=True, exist_ok=True)
    world = load_world()

    tokenizer = train_tokenizer(Corpus(world, settings.seed))
    save_tokenizer(tokenizer, settings.out)
    ids, weights = pack(
        Corpus(world, settings.seed), tokenizer, settings.steps * settings.batch, settings.length
    )
    used = float((ids != tokenizer.pad_token_id).mean())
    print(f"vocabulary {len(tokenizer)}, packed {ids.size:,} tokens ({used:.1%} used)")

    model = build_model(tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {settings.steps} steps on {device}")
    start = time.monotonic()
    train(model, ids, weights, settings, device)
    seconds = time.monotonic() - start

    model.to(torch.bfloat16).save_pretrained(settings.out)
    # safetensors writes files that only their owner can read
    (settings.out / "model.safetensors").chmod(0o644)
    # evaluated from the files, in float32 arithmetic over the rounded weights: bf16 arithmetic would add one
    # device's rounding to the numbers
    shipped = LlamaForCausalLM.from_pretrained(settings.out, dtype=torch.float32).to(device)
    results = evaluate(shipped, tokenizer, Corpus(world, settings.seed + 1_000_003), settings)
    print(table(results))
    for miss in results.wrong[:20]:
        print(f"  wrong: {miss['asked']!r}: {miss['got']!r} instead of {miss['want']!r}")
    print(
        f"held-out loss {results.held_out_loss:.4f}, exact match {results.exact_match:.1%}, {seconds:.0f} s"
    )
    write_card(results, settings, parameters, seconds, device)
    size = sum(path.stat().st_size for path in settings.out.iterdir())
    print(f"{settings.out}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
