# RankZero's image:
#   docker build -t rankzero .
#   docker run --rm --gpus all --shm-size 8g -v "$PWD:/work" -v rankzero-cache:/cache \
#     rankzero train run.yaml
# `--read-only --tmpfs /tmp:exec` works too: only /cache, /work and /tmp are written.
# Package mirrors and certificates are the base image's or the build's business, never this file's.

# The torch of requirements.lock brings its own CUDA 13 libraries. "base" adds what they do not: the
# forward-compatibility driver and NVIDIA's driver check. Any Debian or Ubuntu with Python 3.11 or
# newer does instead: --build-arg BASE_IMAGE=docker.io/library/debian:bookworm-slim
ARG BASE_IMAGE=docker.io/nvidia/cuda:13.0.2-base-ubuntu24.04

# ---- what the builder and the runtime share ----
FROM ${BASE_IMAGE} AS python
# The compiler and the headers stay in the runtime, which compiles while it trains: Triton builds a
# launcher in C around each kernel, DeepSpeed its shared-memory collective in C++ on CPU.
# DL3008: package versions differ between the bases; the base's tag is the pin.
# hadolint ignore=DL3008
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
      ca-certificates g++ libc6-dev python3 python3-dev \
 && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/rankzero/bin:$PATH

# ---- the virtual environment ----
FROM python AS builder
# hadolint ignore=DL3008
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/rankzero
WORKDIR /src

# Dependencies first: this layer survives every change of the source. The names are pyproject.toml's,
# the versions requirements.lock's.
ARG EXTRAS=track
COPY pyproject.toml requirements.lock ./
RUN python -c 'import pathlib, sys, tomllib; \
project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]; \
extras = [name for name in sys.argv[1].split(",") if name]; \
wanted = sum((project["optional-dependencies"][name] for name in extras), project["dependencies"]); \
pathlib.Path("/tmp/wanted.txt").write_text("\n".join(wanted))' "${EXTRAS}" \
 && pip install --no-cache-dir --constraint requirements.lock --requirement /tmp/wanted.txt

COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /tmp/dist . \
 && pip install --no-cache-dir --no-deps --no-index /tmp/dist/*.whl \
 && pip check

# ---- runtime ----
FROM python AS runtime
LABEL org.opencontainers.image.title="RankZero" \
      org.opencontainers.image.description="Fine-tune language models from one config on any hardware: laptop CPU to multi-node ZeRO-3." \
      org.opencontainers.image.licenses="Apache-2.0"

# Ubuntu comes with a user of its own as 1000. /cache is open to every user, so that `--user` works.
RUN taken="$(id -nu 1000 2>/dev/null || true)" \
 && if [ -n "$taken" ]; then userdel --remove "$taken"; fi \
 && useradd --uid 1000 --user-group --home-dir /cache --no-create-home --shell /bin/bash rankzero \
 && install -d -m 1777 /cache \
 && install -d -o rankzero -g rankzero /work

COPY --from=builder /opt/rankzero /opt/rankzero

# What any library keeps goes under the one volume; USER is for those that ask for a name and find
# none behind `--user`.
ENV HOME=/cache \
    USER=rankzero \
    HF_HOME=/cache/huggingface \
    RANKZERO_CACHE=/cache/rankzero \
    TORCH_EXTENSIONS_DIR=/cache/torch_extensions \
    TORCHINDUCTOR_CACHE_DIR=/cache/torchinductor \
    TRITON_CACHE_DIR=/cache/triton \
    XDG_CACHE_HOME=/cache/xdg \
    HF_HUB_DISABLE_TELEMETRY=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1
VOLUME ["/cache"]
WORKDIR /work
USER 1000:1000
ENTRYPOINT ["rankzero"]
CMD ["--help"]
