"""Hardware profiles: the shipped ones, a user's own, and what is said about a wrong one."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.profile import Profile, smallest_of
from launcher.profile_file import (
    hardware_table,
    load_profile,
    profile_names,
    shipped_profiles,
)
from launcher.quantity import Quantity
from trainer.errors import ConfigError

FOLDER = Path(__file__).parents[2] / "launcher" / "profiles"
UNITS = {"GiB", "GB/s", "TFLOPS", "cores", "major.minor"}
# Counts say what a profile is; they are no measurement.
COUNTS = {"nodes", "gpus_per_node"}
MINE = """\
summary: two cards under my desk
device: cuda
gpus_per_node: 2
gpu: {model: My card, memory_gib: 31.5, bf16: true}
host: {memory_gib: 64, cpu_cores: 16, disk_free_gib: {value: 900, unit: GiB, source: df}}
quantization: none
allow_offload: true
"""


def _write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_promised_profiles_are_shipped() -> None:
    sizes = {p.name: (p.device, p.nodes, p.gpus_per_node) for p in shipped_profiles()}
    assert sizes == {
        "cpu": ("cpu", 1, 0),
        "single-24gb": ("cuda", 1, 1),
        "single-80gb": ("cuda", 1, 1),
        "multi-a100-40gb": ("cuda", 1, 4),
        "multi-a100-80gb": ("cuda", 1, 8),
        "multi-h100": ("cuda", 1, 8),
        "multi-node-a100-80gb": ("cuda", 2, 8),
        "multi-node-h100": ("cuda", 2, 8),
    }
    assert [name for name in profile_names() if load_profile(name).quantization == "nf4"] == [
        "single-24gb"
    ]
    assert {name for name in profile_names() if load_profile(name).allow_offload} == {
        name for name in profile_names() if name.startswith("multi-")
    }


def _numbers(value: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    """Every number of a file that stands outside {value, unit, source}, and every such section."""
    if isinstance(value, dict) and "value" in value:
        return [(path, value)]
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in _numbers(inner, (*path, key))]
    if isinstance(value, list):
        return [found for inner in value for found in _numbers(inner, path)]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return [(path, value)] if is_number and path[-1] not in COUNTS else []


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_number_has_a_unit_and_a_source(path: Path) -> None:
    numbers = _numbers(yaml.safe_load(path.read_text(encoding="utf-8")), ())
    if path.stem == "hardware":
        assert len(numbers) > 50
    for where, number in numbers:
        assert set(number) == {"value", "unit", "source"}, where
        assert number["unit"] in UNITS, where
        assert len(number["source"]) > 8, where


def test_bf16_is_said_of_cards_that_have_it() -> None:
    for name, gpu in hardware_table().gpus.items():
        assert gpu.compute_capability is not None
        assert gpu.bf16 == (gpu.compute_capability >= 8.0), name


def test_a_24_gb_plan_fits_every_24_gb_card() -> None:
    profile = load_profile("single-24gb")
    assert profile.gpu is not None
    cards = [gpu for gpu in hardware_table().gpus.values() if 20 < gpu.memory_gib < 25]
    assert len(cards) == 5
    assert profile.gpu.memory_gib == min(card.memory_gib for card in cards) < 22.1
    assert profile.gpu.link == "pcie"


def test_quantities_are_floats_that_keep_their_source() -> None:
    gpu = load_profile("multi-a100-80gb").gpu
    assert gpu is not None
    assert gpu.memory_gib * 2 == pytest.approx(158.28)
    assert gpu.memory_gib.unit == "GiB"
    kept = copy.deepcopy(gpu).peak_bf16_tflops
    assert kept is not None
    assert kept == 312
    assert "A100 datasheet" in kept.source


def test_the_smallest_of_unlike_cards_is_no_better_than_any() -> None:
    table = hardware_table().gpus
    joined = smallest_of([table["h100-80gb-sxm"], table["a100-40gb-pcie"]])
    assert joined.memory_gib == table["a100-40gb-pcie"].memory_gib
    assert joined.compute_capability == 8.0
    assert joined.link == "pcie"
    unknown = joined.model_copy(update={"peak_bf16_tflops": None})
    assert smallest_of([joined, unknown]).peak_bf16_tflops is None


def test_a_users_profile_may_state_bare_numbers(tmp_path: Path) -> None:
    profile = load_profile(_write(tmp_path, MINE))
    assert (profile.name, profile.num_gpus, profile.disk_free_gib) == ("mine", 2, 900)
    assert profile.gpu is not None
    assert profile.gpu.memory_gib.source == "stated in mine.yaml"
    assert profile.reserve == hardware_table().reserve


def test_a_printed_profile_can_be_read_again(tmp_path: Path) -> None:
    for profile in shipped_profiles():
        path = tmp_path / f"{profile.name}.json"
        path.write_text(json.dumps(profile.model_dump(mode="json")), encoding="utf-8")
        assert load_profile(path) == profile


def _refusal(path: str | Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_profile(path)
    assert caught.value.rule
    assert caught.value.fix
    return str(caught.value)


def test_every_mistake_is_named_with_its_line(tmp_path: Path) -> None:
    text = MINE.replace("none", "nf5").replace("allow_offload", "allow_ofload")
    text = text.replace("bf16: true", "bf16: true, peak_tflops: 70")
    text = text.replace("unit: GiB", "unit: GB").replace("31.5", "'31.5'")
    path = _write(tmp_path, text)
    said = _refusal(path)
    assert f"{path}:4: `gpu.memory_gib` must be a number of GiB" in said
    assert f"{path}:4: unknown key `gpu.peak_tflops`; did you mean `peak_bf16_tflops`?" in said
    assert f"{path}:5: `host.disk_free_gib` must be in GiB (its unit says GB)" in said
    assert f"{path}:6: `quantization` must be one of nf4, none, not the text 'nf5'" in said
    assert f"{path}:7: unknown key `allow_ofload`; did you mean `allow_offload`?" in said
    assert "`allow_offload` is required" in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("gpus_per_node: 2", "gpus_per_node: 0", "`gpus_per_node` is 0 with `device: cuda`"),
        ("device: cuda", "device: cpu", "`gpu` is My card with `device: cpu`"),
        ("device: cuda", "device: cuda\nnodes: 2", "`host.network_gb_per_s` is required"),
        ("31.5", "-1", "`gpu.memory_gib` must be a number of GiB"),
        ("31.5", ".nan", "`gpu.memory_gib` must be a number of GiB"),
        ("{model: My card, memory_gib: 31.5, bf16: true}", "a100-40gb", "did you mean `a100-40gb-"),
        ("{model: My card, memory_gib: 31.5, bf16: true}", "[l4, xx]", "names `xx`"),
        ("device: cuda", "device: cuda: 3", "not readable as YAML"),
    ],
)
def test_a_contradiction_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert said in _refusal(_write(tmp_path, MINE.replace(old, new)))


def test_an_unknown_name_gets_a_suggestion(tmp_path: Path) -> None:
    assert "did you mean `single-24gb`?" in _refusal("single-24g")
    assert "no such file" in _refusal(tmp_path / "none.yaml")
    assert "there is no profile `hardware`" in _refusal("hardware")


def test_shipped_files_must_not_state_bare_numbers() -> None:
    values = load_profile("cpu").model_dump(mode="json")
    values["host"]["memory_gib"] = 16
    with pytest.raises(ValueError, match=r"memory_gib"):
        Profile.model_validate(values)
    values["host"]["memory_gib"] = Quantity(16, "GiB", "a test")
    assert Profile.model_validate(values).host.memory_gib == 16
