# Two commands are all it takes: `make demo` and `make test`. Each makes .venv, installs what is missing, and runs.
# PYTHON=python3.12 chooses an interpreter; TORCH_INDEX=<url> an index with torch's CPU build, where the default
# index would bring several GB of CUDA libraries along.

VENV := .venv
BIN := $(VENV)/bin
# The first of these that runs: a name on the path may be a shim for a version that is not there.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p -c '' 2>/dev/null && { echo $$p; break; }; done)
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
export HF_HUB_OFFLINE := 1
export ORT_DISABLE_TELEMETRY := 1

.PHONY: demo test coverage lint setup runner boards clean

demo: setup
	@$(BIN)/toggle-edge demo

test: setup lint runner boards
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 20

# What lowers for ExecuTorch and builds its runner: 160 MB, fetched once. Without it those tests skip.
runner: setup
	@scripts/system-packages runner
	@$(BIN)/python -c 'from toggle_edge.export.executorch.overlay import prefetch; prefetch()'

# Emulated boards for the tests: two root file systems of 150 MB, fetched once. Without them those tests skip.
boards:
	@scripts/system-packages boards

# Statement coverage of host and runtime; agents and workers that tests start measure themselves. Each must reach 90 %.
coverage: setup
	$(BIN)/coverage erase
	TOGGLE_EDGE_COVERAGE=$(CURDIR)/pyproject.toml $(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --include='toggle_edge/*'
	$(BIN)/coverage report --include='runtime/*'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

setup: $(VENV)/installed
	@scripts/system-packages

$(VENV)/installed: pyproject.toml requirements.txt
	@$(or $(PYTHON),$(error toggle-edge needs Python 3.11 or 3.12; install one, or run make PYTHON=/path/to/it)) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v in ((3, 11), (3, 12)) else "error: toggle-edge needs Python 3.11 or 3.12, got %d.%d; run make PYTHON=python3.11" % v)'
	@echo "setting up $(VENV) (once; about 2 GB, 2 to 5 minutes)"
	@$(PYTHON) -m venv $(VENV)
	@# torch first: whatever else asks for it then finds this build instead of fetching another.
	@$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $$(grep '^torch==' requirements.txt)
	@$(PIP) install -r requirements.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@# The worker's wheels too, so that nothing is fetched while the demo or the tests run.
	@$(BIN)/python -c 'from toggle_edge.fleet.environment import prefetch; prefetch()'
	@touch $@

clean:
	rm -rf $(VENV) toggle-edge-demo
