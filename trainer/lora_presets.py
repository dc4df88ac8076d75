"""Names for common sets of adapted layers. Torch-free: the config is checked against them."""

from __future__ import annotations

LORA_PRESETS: dict[str, tuple[str, ...]] = {
    "conservative": ("q_proj", "v_proj"),
    "balanced": ("q_proj", "k_proj", "v_proj"),
    "aggressive": (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ),
}
"""Preset name -> suffixes of the linear layers that get an adapter."""

ALL_LINEAR = "all-linear"
"""Every linear layer but the output head; resolved on the loaded model by PEFT itself."""
