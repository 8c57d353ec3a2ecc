"""The files that a trainer reads and writes in its job folder, beside those of every job (`jobs.folder`)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from tunewright.graders.models import Grader
from tunewright.graders.sandbox import Mode
from tunewright.jobs.folder import Outcome
from tunewright.jobs.gateway import AskedModel
from tunewright.plan.cost import Cost, Rates
from tunewright.plan.defaults import Resolved
from tunewright.plan.forgetting import Forgetting
from tunewright.plan.methods import MethodName
from tunewright.plan.prediction import Planned
from tunewright.plan.stopping import BestCheckpoint
from tunewright.plan.time import Earlier, Measured
from tunewright.rows.reading import Reading


class FurtherFile(BaseModel):
    """A training file beside the first one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    sha256: str | None = None
    weight: float = 1.0
    """How often an epoch has its examples (`plan.mixing`)."""


class WandbProject(BaseModel):
    """Where a run is reported: a project of Weights & Biases."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    project: str
    name: str | None = None
    """Of the run; the job's id by default."""
    entity: str | None = None
    """The team or user; the owner of the key by default."""
    tags: tuple[str, ...] = ()
    base_url: str | None = None
    """Of a server of the operator's own."""


class MlflowRun(BaseModel):
    """A run in MLflow."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    experiment: str | None = None
    """`tunewright` where none is named."""
    name: str | None = None
    """The job's id by default."""
    tags: dict[str, str] = {}
    tracking_uri: str = ""
    """Of the operator's server."""


class EngineSampling(BaseModel):
    """How the answers of reinforcement are made by the engine that serves the base (`trainer.sampling`)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    socket: str
    """Where the gateway listens for the service's own processes."""
    project: str
    """The job's."""
    base_fingerprint: str
    is_required: bool = False
    """Whether the job fails where the engine makes no answers; else the trainer makes them then."""
    patience: float = 60.0
    """Seconds without an answer after which that is so."""


class GradingModels(BaseModel):
    """How the models are asked that grade answers of reinforcement (`trainer.scores`)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    socket: str
    """Where the gateway listens for the service's own processes."""
    project: str
    """The job's."""
    key: str | None = None
    """The id of the key that has created the job."""
    request_timeout: float
    """Seconds that an answer may take."""
    by_grader: dict[str, AskedModel]
    """The models, by the names of the graders."""


class TrainingSpec(BaseModel):
    """`spec.json`: the input of the trainer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    base_name: str
    base_hub_id: str | None = None
    base_path: str
    trust_remote_code: bool = False
    parent_adapter: str | None = None
    """The PEFT folder of an adapter to continue from."""
    training_file: str
    weight: float = 1.0
    further_files: tuple[FurtherFile, ...] = ()
    """Files that are trained on together with the training file, and read as it is; `weight` is that of the training
    file. Where rows are held out of it, they are held out of these too."""
    reading: Reading = Reading()
    """How the training file is read."""
    validation_file: str | None = None
    """May be the training file, of which `validation_reading` then reads another part."""
    validation_reading: Reading = Reading()
    training_sha256: str | None = None
    validation_sha256: str | None = None
    """The hashes of the files; where they are not known, the trainer computes them."""
    token_cache: str | None = None
    """The folder of tokenized files that jobs share (`rows.cache`); the job folder has its own where none is named."""
    chat_template: str | None = None
    """Replaces the model's own."""
    seed: int
    device: str
    """`cpu` or `cuda`; the environment selects the GPU."""
    method: MethodName = "supervised"
    """OpenAI's method; each is a module of `trainer.methods`."""
    tuning: Resolved
    grader: Grader | None = None
    """Of reinforcement: what grades the answers."""
    python_graders: Mode = "off"
    """Whether graders may be programs, as the operator says."""
    grading_models: GradingModels | None = None
    """Of reinforcement; None: the grader asks no model."""
    sampling: EngineSampling | None = None
    """Of reinforcement; None: the trainer makes the answers."""
    wandb: WandbProject | None = None
    """Where the run is reported; the key is in the environment."""
    tensorboard: bool = False
    """Whether the folder gets TensorBoard's files."""
    mlflow: MlflowRun | None = None
    """Where the run is reported; credentials are in the environment."""
    earlier: tuple[Earlier, ...] = ()
    """Finished jobs on the same base, newest first: by their speed the time is predicted."""
    rates: Rates = Rates()
    """What a device costs, where the operator says it."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints, beside those at the end of each epoch."""

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        asked = self.tuning.gradient_checkpointing
        return self.device != "cpu" if asked is None else asked

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds a part of the weights, the gradients and the optimizer (FSDP)."""
        return self.tuning.sharding == "fsdp"


class TrainingResult(Outcome):
    """`result.json`: the output of the trainer."""

    trained_tokens: int = 0
    metrics: dict[str, float] = Field(default_factory=dict)
    checkpoints: dict[int, dict[str, float]] = Field(default_factory=dict)
    """Step and metrics of the checkpoints at the ends of the last epochs, which can be used."""
    examples: tuple[int, ...] = ()
    """Of an epoch, of each training file in the order of the spec."""
    best: BestCheckpoint | None = None
    """Which checkpoint the product is, where that was asked for."""
    planned: Planned | None = None
    """What the run was predicted to need before its first step."""
    measured: Measured | None = None
    """Of the last process that trained; None where it did a single step."""
    cost: Cost | None = None
    """Of what was measured."""
    forgetting: Forgetting | None = None
    """None where it is not known what the model was before."""
