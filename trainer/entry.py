"""How every trainer-side command starts and ends: quiet libraries, one exit code, no traceback."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from trainer.cache_root import cache_root
from trainer.errors import INTERRUPTED_BY_KEYBOARD, RankZeroError
from trainer.interruption import receive_requests, telling_requests

_ENVIRONMENT = {
    # Nothing is sent anywhere unless the user asked for a tracker.
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # bitsandbytes and peft print banners at import otherwise.
    "BITSANDBYTES_NOWELCOME": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Threads that wait spin briefly, then sleep. By default they spin long, and with one other busy
    # process on two cores SmolLM2 trained at 14 tokens/s instead of 119; idle, nothing is lost
    # (docs/log.md). Read when torch loads GNU OpenMP.
    "GOMP_SPINCOUNT": "10000",
    # What torch.compile made is found again by the next run, in a container too.
    "TORCHINDUCTOR_CACHE_DIR": str(cache_root() / "compiled"),
}

_WARNING = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "huggingface_hub")
"""Libraries whose advice is for those who call them."""


def quiet_libraries() -> None:
    """Silence banners, progress bars and advice of the libraries; a value the user set stays.

    Imports nothing heavy, so it may run first; the libraries read these variables at import.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        for package in _WARNING:
            warnings.filterwarnings("ignore", category=category, module=rf"{package}(\.|$)")
    # DeepSpeed says so on stdout, where `--json` prints. A filter outlives its own set-up.
    logging.getLogger("DeepSpeed").addFilter(
        lambda record: not record.getMessage().startswith("Setting accelerator to CPU")
    )
    # Imported before us, these read the variables too early.
    hub = sys.modules.get("huggingface_hub.constants")
    if hub is not None:
        hub.HF_HUB_DISABLE_TELEMETRY = os.environ["HF_HUB_DISABLE_TELEMETRY"] != "0"  # type: ignore[attr-defined]
    transformers = sys.modules.get("transformers")
    if transformers is not None:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()


@contextmanager
def importing() -> Iterator[None]:
    """Import without looking for garbage: what imports make stays, and is not looked at later.

    A fifth of the time it takes to import the trainer (docs/log.md).
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Let Ctrl-C end this process on the spot: for imports, when there is nothing to put in order.

    As an exception it gets lost in a callback of the import system, so that the command goes on,
    or meets C++ code of torch, which aborts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = signal.getsignal(signal.SIGINT)
    if ours != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with importing():
            yield
    finally:
        signal.signal(signal.SIGINT, ours)


def run_entry(main: Callable[[list[str]], None], argv: list[str] | None = None) -> int:
    """Run `main` with the command's arguments (`sys.argv[1:]`) and return the exit code.

    A RankZeroError is printed on stderr and gives its own code; Ctrl-C gives 130. Anything else is
    a bug and keeps its traceback. Click commands are called with `standalone_mode=False`.
    """
    quiet_libraries()
    if threading.current_thread() is threading.main_thread():
        receive_requests()
    try:
        with telling_requests():
            if sys.platform != "win32":  # the launcher starts us deaf to Ctrl-C, up to here
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            main(sys.argv[1:] if argv is None else argv)
    except RankZeroError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        return INTERRUPTED_BY_KEYBOARD
    except click.ClickException as error:  # a wrong option; `standalone_mode=False` lets it out
        error.show()
        return error.exit_code
    except click.Abort:  # Ctrl-C inside click
        click.echo("interrupted", err=True)
        return INTERRUPTED_BY_KEYBOARD
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
