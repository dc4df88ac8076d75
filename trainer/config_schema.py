"""The tree of settings: names, types, defaults and their meaning. Torch-free.

Field names are canonical; other spellings are translated by `config_dialects` before this tree
sees them. Defaults are stated here; those that depend on other settings in `config_defaults`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, StrictBool, StrictStr, model_validator

from trainer.conditions import Requirements
from trainer.config_data import DataConfig
from trainer.config_monitoring import SafetyConfig, SamplesConfig
from trainer.config_types import (
    Fraction,
    LearningRate,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Seed,
)

Quantization = Literal["auto", "none", "nf4", "fp4", "int8"]
Attention = Literal[
    "auto", "packed", "sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3"
]
Precision = Literal["auto", "fp32", "fp16", "bf16"]
Optimizer = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "adafactor",
    "sgd",
]
BasePrecision = Literal["original", "dequantized", "auto"]
MergedType = Literal["auto", "float32", "bfloat16", "float16"]
Schedule = Literal["cosine", "linear", "constant", "constant_with_warmup", "polynomial"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class ModelConfig(Section):
    """The base model."""

    name: StrictStr = Field(min_length=1)
    """Base model: a folder, or a Hub id."""
    revision: StrictStr | None = None
    """Hub revision of the base model."""
    trust_remote_code: StrictBool = False
    """Run code shipped with the model. Off unless you have read that code."""
    quantization: Quantization = "auto"
    """Storage of the frozen base weights. `auto`: the hardware profile decides, else `none`."""
    double_quantization: StrictBool = True
    """Quantise the 4-bit scales too: 0.37 bit per parameter less."""
    attention: Attention = "auto"
    """Attention implementation. `auto`: the fastest one installed that keeps packed rows apart."""


class LoraConfig(Section):
    """The adapter."""

    enabled: StrictBool = True
    """`false`: full fine-tuning."""
    r: PositiveInt = 16
    """Rank of the update of each adapted layer."""
    alpha: PositiveFloat = 32
    """The update is scaled by alpha / r."""
    dropout: Fraction = 0.0
    """Dropout on the adapter's input while training. At 0 a run is the same on any hardware; with
    more the examples are, the random numbers are not."""
    target_modules: StrictStr | tuple[StrictStr, ...] = "all-linear"
    """Preset (`conservative` q v, `balanced` q k v, `aggressive` q k v o gate up down,
    `all-linear`), or a list of layer names."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases trained beside the adapters."""
    use_rslora: StrictBool = False
    """Scale by alpha / sqrt(r) instead: keeps large ranks learning."""
    use_dora: StrictBool = False
    """Train magnitude and direction apart (DoRA): slower, often better at small ranks."""
    modules_to_save: tuple[StrictStr, ...] = ()
    """Modules trained in full beside the adapters, such as `embed_tokens`, `lm_head`."""
    rank_pattern: dict[StrictStr, PositiveInt] = Field(default_factory=dict)
    """Layer name or expression -> rank, where it differs from `r`."""
    alpha_pattern: dict[StrictStr, PositiveFloat] = Field(default_factory=dict)
    """Layer name or expression -> alpha, where it differs from `alpha`."""
    progressive_ranks: tuple[PositiveInt, ...] = ()
    """Ranks to train through, such as 4 8 16: ascending, the last one is `r`. Each has an equal
    part of the steps, starts as exactly the one before, and ends in `checkpoint_rRANK`."""


class TrainingConfig(Section):
    """How it is learned."""

    learning_rate: LearningRate = 2e-4
    """Peak rate, reached after the warm-up."""
    epochs: PositiveFloat | None = None
    """Passes over the training split. Default 3, unless `max_steps` is given."""
    max_steps: PositiveInt | None = None
    """Optimizer steps."""
    global_batch_size: PositiveInt | None = None
    """Examples per optimizer step on any hardware. Default 16, unless the pair below is given."""
    batch_size: PositiveInt | None = None
    """Examples per device and micro-batch (the pair's first half)."""
    gradient_accumulation_steps: PositiveInt | None = None
    """Micro-batches per step (the pair's second half)."""
    max_tokens_per_device: PositiveInt | None = None
    """Most tokens in one micro-batch. Default: the planner's, as many as fit and are of use; in a
    trainer started by hand `batch_size` x `max_length`, else `max_length`."""
    precision: Precision = "auto"
    """Compute precision. `auto`: bf16 where the hardware has it, else fp16 on CUDA, else fp32."""
    gradient_checkpointing: StrictBool | Literal["auto"] = "auto"
    """Recompute activations in the backward pass: less memory, a third to a half more time. `auto`:
    the planner turns it on when the run would not fit without; off in a trainer started by hand."""
    compile: StrictBool | Literal["auto"] = "auto"
    """Compile decoder layers and kernels with torch.compile. `auto`: on a CPU with a C++ compiler,
    when the run is long enough to win back the minute it takes."""
    optimizer: Optimizer = "adamw_torch"
    """Update rule; the 8-bit and paged ones need bitsandbytes."""
    adam_beta1: Fraction = 0.9
    """Decay of Adam's mean of gradients."""
    adam_beta2: Fraction = 0.999
    """Decay of Adam's mean of squared gradients."""
    adam_epsilon: PositiveFloat = 1e-8
    """Added to Adam's denominator."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled decay of the trained weights."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Gradients are clipped to this norm. 0: not clipped."""
    scheduler: Schedule = "cosine"
    """Learning rate over the run."""
    min_lr_ratio: Fraction = 0.0
    """Floor of the cosine schedule, as a part of the peak rate."""
    warmup_steps: NonNegativeInt | None = None
    """Steps of linear warm-up."""
    warmup_ratio: Fraction | None = None
    """Warm-up as a part of all steps. Default 0.03, unless `warmup_steps` is given; 0 when the
    schedule is `constant`."""
    neftune_noise_alpha: PositiveFloat | None = None
    """Noise on the embeddings while training (NEFTune)."""
    logging_steps: PositiveInt = 10
    """Steps between two lines of metrics."""
    dataloader_workers: NonNegativeInt = 0
    """Processes that read prepared rows ahead of the step."""
    dataloader_pin_memory: StrictBool = True
    """Read rows into page-locked memory where there is a GPU to copy to."""
    deepspeed_config: StrictStr | None = None
    """A DeepSpeed JSON file, by path or by its name under `deepspeed_configs/`. Default: the
    planner's, none if the run fits without."""


class EvaluationConfig(Section):
    """Validation while training, and what follows from it."""

    every_steps: PositiveInt | None = None
    """Default: `training.logging_steps`, when there is a validation split."""
    every_epochs: PositiveInt | None = None
    """Epochs between two evaluations, instead of steps."""
    batch_size: PositiveInt | None = None
    """Sizes a forward pass: this x `max_length` tokens. Default: like a training micro-batch."""
    at_start: StrictBool = True
    """Also measure validation and test loss before the first step."""
    load_best: StrictBool = True
    """End with the weights of the lowest validation loss, not with the last ones."""
    early_stopping_patience: PositiveInt | None = None
    """Stop after this many evaluations in a row without improvement."""
    early_stopping_threshold: NonNegativeFloat = 0.0
    """Smallest fall of the validation loss that counts as an improvement."""


class CheckpointConfig(Section):
    """What is saved on the way."""

    every_steps: PositiveInt | None = None
    """Default: twice the evaluation interval, else every 100 steps."""
    every_epochs: PositiveInt | None = None
    """Epochs between two checkpoints; may be combined with `every_steps`."""
    keep_last: PositiveInt = 3
    """Checkpoints kept; the best and the newest are never deleted."""
    allow_changes: StrictBool = False
    """Go on although data, base model, batch, schedule or adapter settings have changed."""


class MergeConfig(Section):
    """Base model and adapter joined into one model."""

    after_training: StrictBool = False
    """Write the merged model to `merged/` when training ends."""
    base_precision: BasePrecision = "original"
    """After training in 4 or 8 bits, what the adapter is added to: the base as it is stored, what
    training read of it (`dequantized`), or the closer of the two (`auto`)."""
    output_dtype: MergedType = "auto"
    """Type of the merged weights. `auto`: that of the base."""
    require: Requirements = Field(default_factory=dict)
    """Figure -> what it must be, such as `eval_loss: "<= 1.2"`: nothing is merged unless all hold.
    Figures: `eval_loss`, `test_loss`, `train_loss`, `safety.compliance_rate`,
    `safety.average_score`."""


class HubConfig(Section):
    """Publishing on the Hugging Face Hub when the run has ended."""

    repository: StrictStr | None = None
    """OWNER/NAME to push to, with a model card. Needs a token that may write."""
    content: Literal["adapter", "merged"] = "adapter"
    """What is pushed; `merged` needs `merge.after_training`."""
    private: StrictBool = True
    """A repository that is made for it is private."""


class TrackingConfig(Section):
    """Where metrics are shown."""

    to: tuple[Tracker, ...] = ("tensorboard",)
    """Trackers beside metrics.jsonl, which is always written."""
    project: StrictStr = "rankzero"
    """Project, or experiment, the run is filed under."""
    run_name: StrictStr | None = None
    """Default: the name of the run directory."""


class Config(Section):
    """One fine-tuning run."""

    model: ModelConfig
    data: DataConfig
    lora: LoraConfig = LoraConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    samples: SamplesConfig = SamplesConfig()
    safety: SafetyConfig = SafetyConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    merge: MergeConfig = MergeConfig()
    hub: HubConfig = HubConfig()
    tracking: TrackingConfig = TrackingConfig()
    seed: Seed = 42
    """Of everything random: split, order, dropout, new weights."""
    output_dir: StrictStr = Field(min_length=1)
    """The run directory, `runs/MODEL` by default. One that holds a run is never overwritten."""

    @model_validator(mode="before")
    @classmethod
    def _name_the_run_after_the_model(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("output_dir") is None:
            model = values.get("model")
            name = model.get("name") if isinstance(model, dict) else None
            if isinstance(name, str) and name:
                return {**values, "output_dir": f"runs/{name.rstrip('/').split('/')[-1]}"}
        return values


def setting_paths(section: type[Section] = Config, prefix: str = "") -> tuple[StrictStr, ...]:
    """List the dotted names of all settings below a section."""
    paths: list[str] = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            paths += setting_paths(kind, f"{prefix}{name}.")
        else:
            paths.append(prefix + name)
    return tuple(paths)
