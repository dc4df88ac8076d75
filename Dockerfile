# RankZero's image:
#   docker build -t rankzero .   # `make image` labels it with the version as well
#   docker run --rm --gpus all --shm-size 8g -v "$PWD:/work" -v rankzero-cache:/cache \
#     rankzero train run.yaml
# `--read-only --tmpfs /tmp:exec` works too: only /cache, /work and /tmp are written.
# Package mirrors and certificates are the base image's or the build's business, never this file's.

# The torch of requirements.lock brings its own CUDA 13 libraries. "base" adds what they do not: the
# forward-compatibility driver and NVIDIA's driver check. Any Debian or Ubuntu with Python 3.11 or
# newer does instead: --build-arg BASE_IMAGE=docker.io/library/debian:bookworm-slim
# A tag can be pushed again. Where that matters, name what you checked: nvidia/cuda@sha256:...
ARG BASE_IMAGE=docker.io/nvidia/cuda:13.0.2-base-ubuntu24.04
# What compiles, and stays behind. Only FLASH_ATTN needs another one: the same tag's "devel", for nvcc.
ARG BUILD_IMAGE=${BASE_IMAGE}

# ---- builder: the dependencies as a virtual environment, then this project by itself ----
FROM ${BUILD_IMAGE} AS builder
# DL3008: package versions differ between the bases; the base's tag is the pin.
# hadolint ignore=DL3008
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
      ca-certificates g++ libc6-dev python3 python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/rankzero
ENV PATH=/opt/rankzero/bin:$PATH
WORKDIR /src

# image.lock has the hash of every file. TORCH takes a build of torch it does not have, for CPUs:
#   --build-arg TORCH=2.13.0+cpu --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# That torch, and the CUDA libraries it may bring, come without a hash. docs/supply-chain.md
ARG PIP_EXTRA_INDEX_URL
ARG EXTRAS=track
ARG TORCH=
COPY pyproject.toml requirements.lock image.lock ./
COPY supply_chain supply_chain
RUN python -m supply_chain.image_lock --extras "${EXTRAS}" --without deepspeed ${TORCH:+--without torch} \
      > /tmp/wheels.txt \
 && python -m supply_chain.image_lock --only deepspeed > /tmp/source.txt \
 && pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes --requirement /tmp/wheels.txt \
 && if [ -n "${TORCH}" ]; then \
      pip install --no-cache-dir --constraint requirements.lock "torch==${TORCH}"; \
    fi

# DeepSpeed comes as source and compiles an operator where it is first used, into a folder it must be
# able to write. Its setup does so here instead, with the torch it finds. Ours are:
#   shm_comm  every run on CPU. Fit for any x86-64: which vector code runs is decided at run time.
#   cpu_adam  none: with offload too, the optimizer is torch's AdamW.
#   async_io  NVMe offload. Not here: it is compiled for the very CPU it runs on (-march=native). That
#             wants nvcc at run time ("devel" as BASE_IMAGE) and libaio-dev, in an image made from this.
RUN DS_ACCELERATOR=cpu DS_BUILD_SHM_COMM=1 LDFLAGS=-s \
    pip install --no-cache-dir --no-deps --no-build-isolation --use-pep517 \
      --require-hashes --requirement /tmp/source.txt

# Off: torch's own varlen attention is FlashAttention already, and takes packed rows without a mask.
# The package is for `model.attention: flash_attention_2`. A wheel must fit this Python, torch and
# CUDA; of its authors' none was found for torch 2.13. So the address of one you trust, or a version,
# which nvcc compiles (its setup reckons with 9 GB of memory for each of MAX_JOBS):
#   --build-arg FLASH_ATTN=flash-attn==2.8.3 --build-arg MAX_JOBS=8 \
#   --build-arg BUILD_IMAGE=docker.io/nvidia/cuda:13.0.2-devel-ubuntu24.04
ARG FLASH_ATTN=
ARG MAX_JOBS=
# hadolint ignore=DL3013
RUN if [ -n "${FLASH_ATTN}" ]; then \
      pip install --no-cache-dir wheel==0.45.1 \
      && pip install --no-cache-dir --no-build-isolation --constraint requirements.lock "${FLASH_ATTN}"; \
    fi

# The project goes beside the environment, not into it: there it would change the largest layer.
RUN pip check
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /tmp/dist . \
 && pip install --no-cache-dir --no-deps --no-index --root /project /tmp/dist/*.whl

# ---- runtime ----
FROM ${BASE_IMAGE} AS runtime
# The compiler and the headers stay: Triton builds a launcher in C around each kernel, torch.compile
# on CPU whole layers in C++, while a run trains.
# hadolint ignore=DL3008
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
      ca-certificates g++ libc6-dev python3 python3-dev \
 && rm -rf /var/lib/apt/lists/*

# Ubuntu comes with a user of its own as 1000. /cache is open to every user, so that `--user` works.
RUN taken="$(id -nu 1000 2>/dev/null || true)" \
 && if [ -n "$taken" ]; then userdel --remove "$taken"; fi \
 && useradd --uid 1000 --user-group --home-dir /cache --no-create-home --shell /bin/bash rankzero \
 && install -d -m 1777 /cache \
 && install -d -o rankzero -g rankzero /work

# Two layers: a new version of this project does not send torch again.
COPY --from=builder /opt/rankzero /opt/rankzero
COPY --from=builder /project/opt/rankzero /opt/rankzero

# What any library keeps goes under the one volume; USER is for those that ask for a name and find
# none behind `--user`.
ENV PATH=/opt/rankzero/bin:$PATH \
    HOME=/cache \
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

# Whose work is in the image, for people, and its bill of materials (CycloneDX), for scanners.
COPY --from=builder /src/supply_chain /usr/share/rankzero/supply_chain
RUN install -d /usr/share/doc/rankzero \
 && export PYTHONPATH=/usr/share/rankzero PYTHONDONTWRITEBYTECODE=1 \
 && python -m supply_chain.notices > /usr/share/doc/rankzero/THIRD_PARTY_NOTICES.md \
 && python -m supply_chain.sbom > /usr/share/doc/rankzero/sbom.cdx.json

VOLUME ["/cache"]
WORKDIR /work
USER 1000:1000
ENTRYPOINT ["rankzero"]
CMD ["--help"]

# Last: they change with every commit, and no layer does.
ARG BASE_IMAGE
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="RankZero" \
      org.opencontainers.image.description="Fine-tune language models from one config on any hardware: laptop CPU to multi-node ZeRO-3." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      rankzero.notices="/usr/share/doc/rankzero/THIRD_PARTY_NOTICES.md" \
      rankzero.sbom="/usr/share/doc/rankzero/sbom.cdx.json"
