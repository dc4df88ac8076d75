"""What planning must know of a model: sizes, and the memory of one micro-batch. Torch-free.

`trainer.shapes` measures these without weights; `launcher.memory` computes with them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Casting = Literal["autocast", "cast"]
"""How 16-bit compute comes about: `autocast` around fp32 trained weights (plain and DDP), or every
parameter `cast` to 16 bits (DeepSpeed, which keeps fp32 masters apart). The same in fp32."""


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Polynomial(_Facts):
    """Bytes as a function of the tokens T of a micro-batch; T^2 comes from the attention mask."""

    constant: float
    linear: float
    quadratic: float

    def at(self, tokens: int) -> float:
        return self.constant + self.linear * tokens + self.quadratic * tokens**2


class ActivationFacts(_Facts):
    """Memory of one micro-batch on top of everything that stays, all layers. Unit: bytes."""

    saved: Polynomial
    """Alive when the last layer is done: kept for the backward pass."""
    forward: Polynomial
    """Peak while the layers run forward."""
    backward: Polynomial
    """Peak while the layers run backward."""
    embedding: Polynomial = Polynomial(constant=0, linear=0, quadratic=0)
    """Peak of what follows: the embeddings' gradient, where they train."""
    head_constant: float
    head_per_token: float
    head_per_label: float
    """Head, loss and their backward pass, on top of `saved`."""

    def peak(self, tokens: int, labels: int) -> float:
        """Largest of the three phases."""
        head = self.head_constant + self.head_per_token * tokens + self.head_per_label * labels
        layers = (self.forward, self.backward, self.embedding)
        return max(self.saved.at(tokens) + head, *(phase.at(tokens) for phase in layers), 0.0)


class ModelFacts(_Facts):
    """One base model as one method (LoRA or full, quantised or not) trains it."""

    architecture: str
    num_layers: int
    hidden_size: int
    vocabulary_size: int
    max_positions: int | None
    total_parameters: int
    """Of the base model, as its publisher counts; adapters left out."""
    trainable_parameters: int
    frozen_parameters: int
    frozen_bytes: int
    """Storage of what does not train, quantisation constants included."""
    buffer_bytes: int
    largest_matrix_parameters: int
    """Largest single parameter outside embeddings and head."""
    largest_trained_parameters: int
    """Largest single parameter that trains."""
    embedding_parameters: int
    """Input embeddings and an untied head."""
    quantized_parameters: int
    """Of the frozen ones, those that quantisation reaches (experts of some MoE models are not)."""
    activations: dict[str, ActivationFacts]
    """By `activation_key`."""


def activation_key(casting: Casting, *, checkpointing: bool) -> str:
    """Name one entry of `ModelFacts.activations`."""
    return f"{casting}, {'with' if checkpointing else 'without'} activation checkpointing"
