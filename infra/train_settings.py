"""How a model is trained: the presets' table [train]."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from infra.settings_fields import Count, Fraction, FrozenSettings


class TrainSettings(FrozenSettings):
    steps: Count = Field(description="optimisation steps")
    batch_size: Count = Field(description="samples per step over all workers together")
    workers: Count = Field(description="data-parallel processes; each takes its share of every batch")
    min_workers: int = Field(ge=0, description="where machines are lost it goes on with so many at least; 0 = all")
    resize_seconds: float = Field(
        gt=0,
        description="between two looks at whether other than the present workers find room, where min_workers lets it",
    )
    micro_batch_size: int = Field(ge=0, description="samples at once on a worker; 0 = its share of a batch")
    sharding: Literal["none", "fsdp-trained", "fsdp"] = Field(
        description="what lies in parts on the workers, whole only while it works: nothing, what is trained (with "
        "gradients, moments and average), or the frozen prior too"
    )
    placement: Literal["pack", "spread"] = Field(description="workers on as few machines as possible, or on many")
    gpus_per_worker: int = Field(
        ge=0,
        le=1,
        description="GPUs that a worker asks for; a cluster that lacks them is waited for; 0 = trains on CPUs",
    )
    collectives: Literal["auto", "nccl", "gloo"] = Field(
        description="what workers exchange gradients by; auto: NCCL on GPUs, gloo on CPUs"
    )
    nccl_env: list[Annotated[str, Field(pattern=r"^(NCCL|TORCH_NCCL|GLOO|FI)_[A-Z0-9_]+=[^\x00]*$")]] = Field(
        description='variables of the workers\' environment, each "NAME=value": what NCCL and gloo know of the network'
    )
    learning_rate: float = Field(gt=0, description="AdamW: the personalization experts and the prompt MLP")
    warmup_steps: int = Field(ge=0, description="steps over which the rate rises to learning_rate")
    learning_rate_schedule: Literal["constant", "cosine"] = Field(
        description="after the warm-up: stay, or fall to zero along half a cosine"
    )
    router_learning_rate_factor: float = Field(gt=0, description="routers learn at this multiple of the rate")
    lambda_router: float = Field(ge=0, description="weight of eq. 10's router loss, as a mean over pixels")
    router_blocks: Literal["middle", "all"] = Field(
        description="blocks that the router and object losses cover; the paper leaves out the first two and last three"
    )
    router_foreground: float = Field(
        ge=0, description="weight, within the router loss, of the mirror term: people are the personalization expert's"
    )
    lambda_preservation: float = Field(
        ge=0, description="weight of the background's difference from the prior's prediction; 0 saves a forward pass"
    )
    lambda_object: float = Field(ge=0, description="weight of eq. 12's object loss, as a mean over pixels")
    max_timestep: int = Field(ge=1, le=999, description="largest timestep that is trained; the schedule ends at 999")
    timestep_exponent: float = Field(
        gt=0,
        le=1,
        description="timestep = (max_timestep + 1) * u^this, rounded down, u uniform: below 1, more noisy ones",
    )
    condition_dropout: Fraction = Field(description="probability of training a sample without its condition")
    ema_decay: float = Field(ge=0, lt=1, description="decay per step of the averaged weights that are released")
    seed: int = Field(description="seed of sample order, noise, timesteps and dropout")
    checkpoint_every: Count = Field(description="steps between checkpoints: the most that a crash costs")
    keep_last: Count = Field(description="latest checkpoints that are kept until the training is finished")
    keep_every: int = Field(ge=0, description="steps whose multiples' checkpoints are kept too; 0 = none")
    pictures_every: int = Field(
        ge=0, description="steps between grids of pictures of the evaluation's people; 0 = none"
    )
    pictures_people: Count = Field(description="how many of them are drawn")
    pictures_prompts: Count = Field(description="for so many of the evaluation's prompts, as far apart as they go")
    warm_start: bool = Field(description="start from the release in production, where there is one")
    precision: Literal["fp32", "bf16", "fp64"] = Field(
        description="arithmetic of the forward pass; the weights stay fp32, but with fp64 (to compare runs)"
    )
    channels_last: bool = Field(description="convolutions' weights as GPUs' kernels for half precision read them")
    frozen_precision: Literal["fp32", "bf16"] = Field(
        description="weights of the frozen prior in memory; bf16 halves them, for a training in bf16"
    )
    compile: Literal["off", "default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune"] = Field(
        description="torch.compile's mode for the U-Net: minutes at first, quicker steps then; reduce-overhead and "
        "max-autotune replay CUDA graphs"
    )
    activation_checkpointing: bool = Field(description="compute activations twice: less memory, a third more work")
    fused_optimizer: bool = Field(description="AdamW as one kernel a device")
    clip_norm: float = Field(gt=0, description="largest norm of the gradient")
    bad_step: Literal["stop", "skip"] = Field(
        description="what becomes of a step whose loss or gradient is not finite, or whose loss is a spike"
    )
    spike_factor: float = Field(ge=0, description="a loss of so many times its running mean is a spike; 0 = none is")
    hang_seconds: float = Field(gt=0, description="a worker whose step takes longer is ended, and the run goes on anew")
    shuffle_shards: Count = Field(description="shards whose samples are mixed; the cache should hold twice as many")
    cache_mb: Count = Field(description="bound on a machine's copies of an object store's shards")
    loader_workers: int = Field(ge=0, description="processes that prepare a worker's batches; 0 = a thread does")
    loader_ahead: Count = Field(description="batches that are prepared ahead (of each process)")
    damaged_shards: Literal["stop", "skip"] = Field(
        description="a shard that is gone or has other bytes: stop, or look at all beforehand and do without"
    )

    @model_validator(mode="after")
    def _everybody_has_a_share(self) -> "TrainSettings":
        if self.batch_size < self.workers:
            raise ValueError(f"batch_size {self.batch_size} is less than workers {self.workers}")
        if self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is more than workers {self.workers}")
        if self.frozen_precision == "bf16" and self.precision != "bf16":
            raise ValueError(f"frozen_precision bf16 needs precision bf16, not {self.precision}")
        if self.sharding == "fsdp" and self.frozen_precision != "fp32":
            raise ValueError(
                f"sharding 'fsdp' cuts a frozen prior of frozen_precision fp32, not {self.frozen_precision}, and "
                "gathers it in half precision: set frozen_precision to fp32, or sharding to 'fsdp-trained'"
            )
        if self.sharding != "none" and self.compile != "off":
            raise ValueError(
                f"compile takes the U-Net in one graph, and sharding {self.sharding!r} gathers weights in between: "
                "set one of them off"
            )
        return self
