"""The memory that a training run needs, by component: what is live at the moment of the peak.

The formulas count the tensors that transformers 5, peft 0.21, TRL 1.16 and bitsandbytes 0.50 keep for the options that
the trainer sets (`trainer.model`, `trainer.methods.supervised`). docs/decisions/0025-the-memory-model.md derives them
and says what they were compared with. Pure functions; bytes throughout.

A run is at its peak in one of these moments:

- in a layer: everything that is kept between layers, one layer's tensors, and its largest temporaries;
- at the head: everything that the backward pass needs, and the tile of logits;
- in the reference's forward pass: the same, and one layer's tensors, of which none is kept;
- while answers are made: the keys and values of all that are made at a time;
- at the end of the backward pass, when all gradients are there;
- in the optimizer's step (on the CPU, where AdamW is not fused).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from tunewright.plan.shape import LinearModule, ModelShape, adapter_parameters

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A number in NF4 with double quantization: half a byte, one byte for 64 numbers, four for 256 of these."""
TILE_TOKENS, TILE_VOCABULARY = 4096, 32768
"""The tile of logits that TRL's fused head computes at a time (trl 1.16, kernels/chunked_logprob.py)."""
_CPU_TILES = 7.25
"""Copies of the tile in float32 that the head's backward pass makes where there is no Triton (`_backward_tile`)."""
CUDA_CONTEXT = 550 * 2**20
"""Driver, kernels and cuBLAS on a GPU, outside what torch allocates."""
CUBLAS_WORKSPACE = 40 * 2**20
"""Allocated by torch for cuBLAS at the first product of matrices, and kept."""
FRAGMENTATION = 0.04
"""Of what torch allocates: reserved and not used, since blocks of the sizes needed are not free in one piece."""
CPU_PROCESS = 540 * 2**20
"""Resident memory of a trainer on the CPU before it loads a model: Python, torch, transformers, trl and peft."""
CPU_RETAINED = 0.15
"""Of the activations: what the C library keeps of freed memory on the CPU."""


@dataclass(frozen=True)
class Run:
    """What of a run decides its memory."""

    type: str
    """lora, qlora or full."""
    device: str
    """cuda or cpu."""
    batch: int
    """Sequences at a time."""
    length: int
    """Tokens of the longest row."""
    checkpointing: bool
    rank: int | None = None
    targets: str | tuple[str, ...] | None = "all-linear"
    use_dora: bool = False
    drops: bool = False
    """Whether the inputs of adapted layers pass through dropout."""
    accumulates: bool = True
    """Whether several batches make a step: then the gradients are there from the second batch on."""
    learnt: float = 1.0
    """The share of tokens that are learnt: on a GPU the head computes only these."""
    has_mismatched: bool = False
    """Whether each step also has a forward pass over answers behind other prompts, and one more of the reference. They
    keep nothing: the other moments need more."""
    has_reference: bool = False
    """Whether each step has another forward pass, without the adapter, for a reference. All weights are trained beside
    numbers that are computed before (`trainer.reference`)."""
    generated: int = 0
    """Sequences whose answers are made at a time, before they are learnt from: their keys and values are kept."""
    compiled: bool = False
    """Whether torch.compile has compiled the layers (`plan.compiling`)."""
    gpus: int = 1
    """How many train together."""
    is_sharded: bool = False
    """Whether weights, gradients and optimizer are shared between them (FSDP)."""

    @property
    def tokens(self) -> int:
        return self.batch * self.length


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak, by component. `activations` and `logits` are what is live at that moment."""

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    context: int
    """On a GPU the CUDA context; on the CPU the process itself."""
    fragmentation: int
    peak: str
    """The moment of the peak."""

    @property
    def allocated(self) -> int:
        """What torch allocates at the peak (`torch.cuda.max_memory_allocated`)."""
        return self.weights + self.adapter + self.gradients + self.optimizer + self.activations + self.logits

    @property
    def total(self) -> int:
        return self.allocated + self.context + self.fragmentation

    def components(self) -> dict[str, int]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "peak"}


@dataclass(frozen=True)
class _Types:
    """Bytes of a number, by what it is part of."""

    weights: int
    residual: int
    """Between layers."""
    inner: int
    """Results of linear layers within the MLP."""
    attention: int
    low_rank: int
    """Results of lora_A."""
    adapter: int
    copies: int
    """Copies of the inputs of linear layers that are made in a type of their own; 0 where the inputs are shared."""
    upcast: int
    """The copy in the adapter's type that peft makes of a layer's input before autocast makes its own."""


_TYPES = {
    # On a GPU the base is bfloat16 and the adapter float32, under autocast, which takes the inputs as they are.
    ("lora", "cuda"): _Types(2, 2, 2, 2, 2, 4, 0, 0),
    # What is not quantized is bfloat16, as the stream between layers is. TRL makes the adapter bfloat16.
    ("qlora", "cuda"): _Types(2, 2, 2, 2, 2, 2, 0, 0),
    ("full", "cuda"): _Types(4, 4, 2, 2, 0, 0, 2, 0),
    ("lora", "cpu"): _Types(4, 4, 4, 4, 4, 4, 0, 0),
    ("qlora", "cpu"): _Types(2, 2, 2, 2, 2, 2, 0, 0),
    ("full", "cpu"): _Types(4, 4, 4, 4, 0, 0, 0, 0),
}
_WITH_CASTS = _Types(2, 2, 2, 2, 2, 4, 2, 4)
"""LoRA on a GPU with dropout or DoRA: peft casts each input to float32, and autocast casts it back, once for each
adapted layer."""


def _types_of(run: Run) -> _Types:
    if (run.type, run.device) == ("lora", "cuda") and (run.drops or run.use_dora):
        return _WITH_CASTS
    return _TYPES[run.type, run.device]


def estimate(shape: ModelShape, run: Run) -> Memory:
    """The memory of a run at its peak."""
    types = _types_of(run)
    modules = shape.adapted(run.targets) if run.type != "full" else ()
    trainable = trained_parameters(shape, run)
    weights = _weights(shape, run, types)
    adapter = trainable * types.adapter if run.type != "full" else 0
    number = types.adapter if run.type != "full" else 4
    optimizer = 2 * trainable * number
    gradients = trainable * number // (run.gpus if run.is_sharded else 1)
    moments = _moments(shape, run, types, modules, gradients)
    peak, (held, activations, logits) = max(moments.items(), key=lambda one: sum(one[1]))
    if run.is_sharded:
        weights, optimizer = weights // run.gpus, optimizer // run.gpus
        activations += _gathered(shape)
    elif run.gpus > 1:
        held += gradients  # DDP's buckets, in which gradients are sent
    on_gpu = run.device == "cuda"
    workspace = CUBLAS_WORKSPACE if on_gpu else 0
    dynamic = activations + logits + held
    return Memory(
        weights=weights,
        adapter=adapter,
        gradients=held,
        optimizer=optimizer,
        activations=activations + workspace,
        logits=logits,
        context=CUDA_CONTEXT if on_gpu else CPU_PROCESS,
        fragmentation=int(
            FRAGMENTATION * (weights + adapter + optimizer + dynamic) if on_gpu else CPU_RETAINED * dynamic
        ),
        peak=peak,
    )


def _gathered(shape: ModelShape) -> int:
    """What FSDP has whole at a time: two layers with their gradients, as one is gathered while the other computes, and
    the head, which is kept from the end of the forward pass."""
    return 4 * (4 * (shape.linear_weights // shape.layers) + shape.vocabulary * shape.hidden)


def trained_parameters(shape: ModelShape, run: Run) -> int:
    if run.type == "full":
        return shape.total
    return adapter_parameters(shape.adapted(run.targets), run.rank or 0, use_dora=run.use_dora)


def _weights(shape: ModelShape, run: Run, types: _Types) -> int:
    if run.type != "qlora":
        return shape.total * types.weights
    quantized = shape.linear_weights
    return int(quantized * NF4_BYTES) + (shape.total - quantized) * types.weights


def _moments(
    shape: ModelShape, run: Run, types: _Types, modules: Sequence[LinearModule], gradients: int
) -> dict[str, tuple[int, int, int]]:
    """(gradients, activations, logits) at each moment."""
    layer = _kept_by_layer(shape, run, types, modules)
    # In bfloat16 the norms keep copies in float32 beside the stream; a stream in float32 is what they keep.
    beside = 10 * shape.hidden * run.tokens if types.residual == 2 else 0
    working = _temporaries(shape, run, types, modules) + beside
    stream = shape.hidden * types.residual * run.tokens
    casts = 2 * shape.linear_weights if run.type == "full" and run.device == "cuda" else 0
    # Autocast keeps its copies of float32 weights through the forward pass; without checkpointing the graph keeps them.
    kept = shape.layers * stream if run.checkpointing else shape.layers * layer + casts
    others = shape.layers * stream if run.checkpointing else (shape.layers - 1) * layer + casts
    one_layer = casts // shape.layers if run.checkpointing else 0
    logits, head_gradient = _head(shape, run, types)
    held = gradients if run.accumulates else 0
    early = held or (head_gradient if run.type == "full" else 0)
    embedding = shape.vocabulary * shape.hidden * 4 if run.type == "full" else 0
    # Before its first layer's backward pass is done, a first batch has no gradients of that layer, nor of embeddings.
    late = held or gradients - embedding
    # The head's gradient in float32, and the dense one of the embeddings, are added to what is there.
    added = embedding if shape.is_tied or run.accumulates else 0
    moments = {
        "forward pass": (held, others + layer + working // 2 + (casts if run.checkpointing else 0), 0),
        "backward pass of the last layer": (early, others + layer + working + one_layer, 0),
        "loss": (held, kept + 2 * stream, logits + head_gradient),
        "backward pass of the first layer": (late, layer + working + one_layer + stream, 0),
        "end of the backward pass": (gradients, added + stream, 0),
    }
    if run.has_reference:
        moments["reference's forward pass"] = (held, kept + 3 * stream + layer + working // 2, logits)
    if run.generated:
        # transformers' cache, of which a layer is copied when it grows; logits of one place.
        cache = run.generated * run.length * 2 * shape.kv_heads * shape.head_dim * types.attention
        last = run.generated * shape.vocabulary * (4 + types.residual)
        moments["generation"] = (0, (shape.layers + 1) * cache, last)
    if run.device == "cpu":
        # Of the largest parameter: the root of the second moment, and the quotient.
        largest = shape.vocabulary * shape.hidden if run.type == "full" else 0
        moments["optimizer step"] = (gradients, 2 * largest * 4, 0)
    return moments


def _kept_by_layer(shape: ModelShape, run: Run, types: _Types, modules: Sequence[LinearModule]) -> int:
    """What the backward pass of one layer needs."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = types.attention * (2 * queries + 2 * keys) + 4 * shape.heads
    norms = 2 * 4 * shape.hidden * (2 if run.type == "full" else 1)
    mlp = types.inner * shape.intermediate * (3 if shape.is_gated else 1)
    if run.compiled and not run.checkpointing:
        # What is computed again within a layer is not kept: the activation function, and the norms, of the stream.
        norms = 2 * types.residual * shape.hidden
        mlp -= types.inner * shape.intermediate if shape.is_gated else 0
    return run.tokens * (attention + norms + mlp + _inputs(shape, run, types, modules))


def _inputs(shape: ModelShape, run: Run, types: _Types, modules: Sequence[LinearModule]) -> int:
    """Bytes for each token that one layer keeps of the inputs of its trained linear layers, and of lora_A's results."""
    if run.type == "full":
        trained = [module for module in shape.modules if not module.is_embedding]
    else:
        trained = [module for module in modules if not module.is_embedding]
    inputs = [module.inputs for module in trained]
    low_rank = len(trained) * (run.rank or 0) * types.low_rank
    queries = shape.heads * shape.head_dim
    if types.copies:
        outputs_of_attention = sum(1 for module in trained if module.leaf in ("o_proj", "out_proj", "c_proj"))
        shared = 0 if run.type == "lora" or run.device == "cpu" else outputs_of_attention * queries
        return ((sum(inputs) - shared) * types.copies + low_rank) // shape.layers
    # Layers in the type of their input share it: the norms' results, and what enters the last layer of the MLP.
    wide = sum(1 for module in trained if module.inputs == shape.intermediate)
    norms = 2 * shape.hidden * shape.layers if trained else 0
    return (types.inner * (norms + wide * shape.intermediate) + low_rank) // shape.layers


def _temporaries(shape: ModelShape, run: Run, types: _Types, modules: Sequence[LinearModule]) -> int:
    """The largest temporaries in a layer: at its widest linear layer in the forward pass, or in the backward pass of
    the product of the two projections."""
    wide = shape.intermediate * run.tokens
    is_adapted = any(module.inputs == shape.intermediate for module in modules) or run.type == "full"
    forward = types.inner * wide + types.upcast * wide * is_adapted
    if run.type == "qlora":
        forward += 2 * shape.largest_linear
    if run.type == "full":
        forward = 0
    freed = (types.copies or types.inner) * wide * is_adapted
    backward = (3 if shape.is_gated else 2) * types.inner * wide - freed
    return max(forward, backward)


def _head(shape: ModelShape, run: Run, types: _Types) -> tuple[int, int]:
    """(the fused head's buffers, the gradient of its weight in float32)."""
    width = min(shape.vocabulary, TILE_VOCABULARY)
    if run.device == "cuda":
        tokens = max(1, int(run.tokens * run.learnt))
        cast = 2 * width * shape.hidden if types.weights == 4 else 0
        tile = min(tokens, TILE_TOKENS) * TILE_VOCABULARY * 2
    else:
        tokens, cast = run.tokens, 0
        tile = int(min(tokens, TILE_TOKENS) * width * (types.residual + 4 * _CPU_TILES))
    buffers = tile + cast + tokens * shape.hidden * (4 + types.residual)
    return buffers, (4 * shape.vocabulary * shape.hidden if run.type == "full" else 0)
