"""`python -m trainer.shapes --config RUN.yaml`: the model's facts as JSON, without its weights.

Sizes are counted on the meta device; the memory of a micro-batch is simulated (`trainer.simulate`)
with a few layers at a few lengths, which fixes a polynomial in the tokens for all layers.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any, get_args

import click

from trainer.config import Config, load_config
from trainer.entry import importing, run_entry
from trainer.model_facts import (
    ActivationFacts,
    Casting,
    ModelFacts,
    Polynomial,
    activation_key,
)

with importing():
    import numpy as np
    import torch
    from transformers import PreTrainedConfig

    from trainer.loss import prepare_loss
    from trainer.precision import DTYPES, ComputePrecision
    from trainer.simulate import StepMemory, materialize, simulate_step, simulation
    from trainer.simulated_model import build_simulated, load_architecture, with_layers

# Three lengths fix a polynomial of degree two; the attention mask is the only square term.
_TOKENS = (1024, 2048, 4096)


def measure_facts(
    config: Config,
    *,
    precision: ComputePrecision,
    device_type: str,
    castings: tuple[Casting, ...] = get_args(Casting),
) -> ModelFacts:
    """Measure one model as this config trains it, with and without activation checkpointing.

    Raises: ConfigError, EnvironmentProblem when config.json cannot be read.
    """
    architecture = load_architecture(config)
    sizes = measure_sizes(config, architecture, precision)
    activations = {
        activation_key(casting, checkpointing=checkpointing): _measure_activations(
            _Simulated(config, architecture, precision, casting, checkpointing, device_type)
        )
        for casting, checkpointing in product(
            castings if precision != "fp32" else castings[:1], (False, True)
        )
    }
    if precision == "fp32":  # nothing is cast
        for casting, checkpointing in product(castings[1:], (False, True)):
            same = activations[activation_key(castings[0], checkpointing=checkpointing)]
            activations[activation_key(casting, checkpointing=checkpointing)] = same
    return ModelFacts(activations=activations, **sizes)


def measure_sizes(
    config: Config, architecture: PreTrainedConfig, precision: ComputePrecision
) -> dict[str, Any]:
    """Count parameters and bytes of the whole model."""
    model = build_simulated(
        config, architecture, precision=precision, casting="autocast", checkpointing=False
    )
    base = model.get_base_model() if config.lora.enabled else model
    ends = {id(base.get_input_embeddings().weight)}
    if base.get_output_embeddings() is not None:
        ends.add(id(base.get_output_embeddings().weight))
    own = [
        parameter
        for name, parameter in model.named_parameters()
        if not config.lora.enabled or "lora_" not in name
    ]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with simulation("cpu"):
        materialize(model)
        frozen = [p for p in model.parameters() if not p.requires_grad]
        frozen_bytes = sum(_stored_bytes(parameter) for parameter in frozen)
        buffer_bytes = sum(buffer.nbytes for buffer in model.buffers())
    return {
        "architecture": type(base).__name__,
        "num_layers": architecture.num_hidden_layers,
        "hidden_size": architecture.hidden_size,
        "vocabulary_size": base.get_input_embeddings().num_embeddings,
        "max_positions": getattr(architecture, "max_position_embeddings", None),
        "total_parameters": sum(p.numel() for p in own),
        "trainable_parameters": sum(p.numel() for p in trained),
        "frozen_parameters": sum(p.numel() for p in own if not p.requires_grad),
        "frozen_bytes": frozen_bytes,
        "buffer_bytes": buffer_bytes,
        "largest_matrix_parameters": max(p.numel() for p in own if id(p) not in ends),
        "largest_trained_parameters": max(p.numel() for p in trained),
        "embedding_parameters": sum(p.numel() for p in own if id(p) in ends),
        "quantized_parameters": sum(p.numel() for p in own if _is_quantized(p)),
    }


def _is_quantized(parameter: torch.Tensor) -> bool:
    return type(parameter).__name__ in ("Params4bit", "Int8Params")


def _stored_bytes(parameter: Any) -> int:
    size: int = parameter.nbytes
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        size += state.absmax.nbytes + state.code.nbytes
        if state.nested:
            size += state.state2.absmax.nbytes + state.state2.code.nbytes + state.offset.nbytes
    if getattr(parameter, "SCB", None) is not None:
        size += parameter.SCB.nbytes
    return size


class _Simulated:
    """One model in one way of training, simulated at any number of layers and tokens."""

    def __init__(
        self,
        config: Config,
        architecture: PreTrainedConfig,
        precision: ComputePrecision,
        casting: Casting,
        checkpointing: bool,
        device_type: str,
    ) -> None:
        self.config, self.architecture, self.precision = config, architecture, precision
        self.casting, self.checkpointing, self.device_type = casting, checkpointing, device_type

    def steps(self, num_layers: int, sizes: list[tuple[int, int]]) -> list[StepMemory]:
        """Simulate one micro-batch for each (tokens, labels)."""
        model = build_simulated(
            self.config,
            with_layers(self.architecture, num_layers),
            precision=self.precision,
            casting=self.casting,
            checkpointing=self.checkpointing,
        )
        # Cast weights are DeepSpeed's; its stage 3 has the head's logits at once.
        chunked = self.casting == "autocast"
        loss_plan = prepare_loss(model, self.device_type, chunked=chunked)
        needs_autocast = self.casting == "autocast" and self.precision != "fp32"
        with simulation(self.device_type) as tracker:
            materialize(model)
            return [
                simulate_step(
                    model,
                    tracker,
                    num_tokens=tokens,
                    num_labels=labels,
                    autocast=DTYPES[self.precision] if needs_autocast else None,
                    loss_plan=loss_plan,
                )
                for tokens, labels in sizes
            ]


def _measure_activations(simulated: _Simulated) -> ActivationFacts:
    total = simulated.architecture.num_hidden_layers
    few, more = _layers_to_simulate(simulated.architecture)
    low, middle, high = _TOKENS
    full_rows = [(tokens, tokens) for tokens in _TOKENS]
    *first, half_labels, shorter = simulated.steps(few, [*full_rows, (high, middle), (middle, low)])
    second = simulated.steps(more, full_rows)
    growth = (total - few) / (more - few)

    def polynomial(phase: str) -> Polynomial:
        values = [
            getattr(one, phase) + growth * (getattr(two, phase) - getattr(one, phase))
            for one, two in zip(first, second, strict=True)
        ]
        quadratic, linear, constant = np.polyfit(_TOKENS, values, 2)
        return Polynomial(constant=constant, linear=linear, quadratic=quadratic)

    # The head does not depend on the layers: its own peak over what they saved.
    per_label = (first[2].head - half_labels.head) / (high - middle)
    above = {
        high: half_labels.head - half_labels.saved - per_label * middle,
        middle: shorter.head - shorter.saved - per_label * low,
    }
    per_token = (above[high] - above[middle]) / (high - middle)
    return ActivationFacts(
        saved=polynomial("saved"),
        forward=polynomial("forward"),
        backward=polynomial("backward"),
        embedding=polynomial("embedding"),
        head_constant=above[middle] - per_token * middle,
        head_per_token=per_token,
        head_per_label=per_label,
    )


def _layers_to_simulate(architecture: PreTrainedConfig) -> tuple[int, int]:
    """Two layer counts, one period of the layer pattern apart, past a dense beginning."""
    total = architecture.num_hidden_layers
    kinds = getattr(architecture, "layer_types", None) or ["same"]
    period = next(
        length
        for length in range(1, len(kinds) + 1)
        if all(kind == kinds[index % length] for index, kind in enumerate(kinds))
    )
    start = getattr(architecture, "first_k_dense_replace", None) or 0
    if start + 2 * period > total:
        return (total - 1, total) if total > 1 else (0, 1)
    return start + period, start + 2 * period


@click.command()
@click.option("--config", "path", required=True, type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True)
@click.option("--precision", required=True, type=click.Choice(get_args(ComputePrecision)))
@click.option(
    "--casting",
    "castings",
    multiple=True,
    type=click.Choice(get_args(Casting)),
    help="Default: all.",
)
@click.option("--device", "device_type", required=True, type=click.Choice(["cpu", "cuda", "mps"]))
def main(
    path: Path, overrides: tuple[str, ...], precision: Any, device_type: str, castings: Any
) -> None:
    """Print the facts of the config's model as JSON."""
    facts = measure_facts(
        load_config(path, overrides),
        precision=precision,
        device_type=device_type,
        castings=castings or get_args(Casting),
    )
    click.echo(facts.model_dump_json(indent=2))


if __name__ == "__main__":
    sys.exit(run_entry(lambda argv: main(argv, prog_name="trainer.shapes", standalone_mode=False)))
