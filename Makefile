# Two commands do all set-up: `git clone`, `make setup`. Everything else makes sure of it first.

PYTHON ?= python3
BIN := .venv/bin
LOCK := constraints.txt
# A further index to find torch on: one with builds for the CPU alone, or for one version of CUDA.
TORCH_INDEX ?=
OUT ?= out
# Each process of the suite has its own servers. Tests of one module stay together until a process has nothing left.
PARALLEL ?= -n auto --dist worksteal
PROMPT ?= a photo of a red star left of a blue circle

export PYTHONSAFEPATH := 1

.PHONY: setup lock demo up test test-busy test-latest test-lowest check bench bench-gpu check-gpu chaos soak docker clean

setup: .venv/.ready

.venv/.ready: pyproject.toml $(LOCK)
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=$(LOCK) PIP_BUILD_CONSTRAINT=$(LOCK) $(BIN)/pip install --quiet \
		$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[dev]'
	@touch $@

lock:  ## constraints.txt with the newest versions in pyproject.toml's ranges; another torch: make lock TORCH=2.14.1
	.ci/lock

demo: setup  ## queue, API and worker; one prompt over HTTP; the winner and an image of all candidates
	@mkdir -p $(OUT)
	BESTOFN_DATA_DIR=$(CURDIR)/$(OUT)/demo $(BIN)/bestofn up --port 0 --run \
		"$(BIN)/bestofn generate '$(PROMPT)' -n 32 -o $(OUT)/best.png --contact-sheet $(OUT)/all.png"

up: setup  ## queue, API and worker until Ctrl-C
	$(BIN)/bestofn up

test: setup  ## in random order: `make test TESTS="-p randomly --randomly-seed=N"` repeats one
	$(BIN)/pytest $(PARALLEL) $(TESTS)

test-busy: setup  ## the same with eight busy loops; they end with this shell
	@for loop in 1 2 3 4 5 6 7 8; do while kill -0 $$$$ 2>/dev/null; do :; done & done; \
	$(BIN)/pytest $(PARALLEL) $(TESTS)

test-latest:  ## the suite with the newest versions that pyproject.toml allows, in .venv-latest
	.ci/suite latest $(PARALLEL) $(TESTS)

test-lowest:  ## the suite with the lowest versions that pyproject.toml allows, in .venv-lowest
	.ci/suite lowest $(PARALLEL) $(TESTS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	for folder in bench chaos docker; do \
		MYPYPATH=src:tests/$$folder $(BIN)/mypy tests/$$folder || exit; done  # much of it runs on a GPU, or for an hour
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml docker/mirror.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/kubernetes-validate --strict --quiet --no-warn docker/kubernetes/*.yaml

bench: setup  ## all sections within ten minutes, or some: make bench SECTIONS="queue scaling"
	$(BIN)/python -P tests/bench $(SECTIONS)

bench-gpu: setup  ## one GPU, no network, within nine minutes, or some: make bench-gpu SECTIONS="engine strict"
	$(BIN)/python -P tests/bench/gpu.py $(SECTIONS)

check-gpu:  ## what a GPU would run, checked and counted without one: 4.5 GB in .venv-gpu; more: TRITON="3.9.0"
	.ci/check-gpu

chaos: setup  ## breaks what docs/operate/reliability.md promises to survive, within 40 minutes, or some: make chaos SECTIONS=flood
	$(BIN)/python -P tests/chaos/run.py $(SECTIONS)

soak: setup  ## a mixed load with cancels and a kill a minute: does anything grow or stick? make soak MINUTES=30
	$(BIN)/python -P tests/chaos/soak.py --minutes $(or $(MINUTES),30)

docker: setup  ## the compose file on a Docker daemon, its own where none is here, within 15 minutes; Linux, root
	$(BIN)/python -P tests/docker

clean:
	rm -rf .venv .venv-latest .venv-lowest .venv-gpu .venv-tools $(OUT) build dist
