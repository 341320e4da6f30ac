# make test | test-all | lint | format | docs | demo | clean.  Every target makes its own .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
MINUTES ?= 2
RUN    ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: setup test test-all lint format docs demo clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt tools/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh tools/setup.sh
	@touch $@

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-all: $(READY)
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/python -m elman.catalogue docs/cells.md

demo: $(READY)
	$(BIN)/elman train lm --run $(RUN) --max-minutes $(MINUTES)
	$(BIN)/elman evaluate $(RUN)
	$(BIN)/elman generate $(RUN) --prime "def " --length 600 --temperature 0.6

clean:
	rm -rf $(VENV) build dist src/*.egg-info
