# Two commands do all set-up: `git clone`, `make setup`. Everything else makes sure of it first.

PYTHON ?= python3
BIN := .venv/bin
OUT ?= out
# Each process of the suite has its own servers. Tests of one module stay together until a process has nothing left.
PARALLEL ?= -n logical --maxprocesses 8 --dist worksteal
PROMPT ?= a photo of a red star left of a blue circle

export PYTHONSAFEPATH := 1

.PHONY: setup demo up test test-busy check bench bench-gpu chaos soak containers clean

setup: .venv/.ready

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

demo: setup  ## queue, API and worker; one prompt over HTTP; the winner and a picture of all candidates
	@mkdir -p $(OUT)
	BESTOFN_DATA_DIR=$(CURDIR)/$(OUT)/demo $(BIN)/bestofn up --port 0 --run \
		"$(BIN)/bestofn generate '$(PROMPT)' -n 32 -o $(OUT)/best.png --sheet $(OUT)/all.png"

up: setup  ## queue, API and worker until Ctrl-C
	$(BIN)/bestofn up

test: setup  ## in random order: `make test TESTS="-p randomly --randomly-seed=N"` repeats one
	$(BIN)/pytest $(PARALLEL) $(TESTS)

test-busy: setup  ## the same with eight busy loops; they end with this shell
	@for loop in 1 2 3 4 5 6 7 8; do while kill -0 $$$$ 2>/dev/null; do :; done & done; \
	$(BIN)/pytest $(PARALLEL) $(TESTS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/kubernetes-validate --strict --quiet --no-warn docker/kubernetes/*.yaml

bench: setup  ## all sections within ten minutes, or some: make bench SECTIONS="queue scaling"
	$(BIN)/python -P tests/bench $(SECTIONS)

bench-gpu: setup  ## one GPU, no network, within nine minutes, or some: make bench-gpu SECTIONS="engine strict"
	$(BIN)/python -P tests/bench/gpu.py $(SECTIONS)

chaos: setup  ## breaks what docs/reliability.md promises to survive, within 40 minutes, or some: make chaos SECTIONS=flood
	$(BIN)/python -P tests/chaos/run.py $(SECTIONS)

soak: setup  ## a mixed load with cancels and a kill a minute: does anything grow or stick? make soak MINUTES=30
	$(BIN)/python -P tests/chaos/soak.py --minutes $(or $(MINUTES),30)

containers: setup  ## builds the images with buildah and runs the compose file's services from them; root, no Docker
	$(BIN)/python -P tests/containers

clean:
	rm -rf .venv $(OUT) build dist
