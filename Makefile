# hksd: `make search` and `make test` do everything on a fresh machine, set-up included.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SPACE  ?= quickstart
STAMP  := $(VENV)/.installed

.PHONY: search test test-slow lint clean

search: $(STAMP)  ## search the embedded data set and export the best student (SPACE=cifar10 for another space)
	$(BIN)/hksd search $(SPACE)

test: $(STAMP)  ## lint, types and all tests that a normal run allows
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(STAMP)  ## also the long proofs
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check hksd search tests benchmarks
	$(BIN)/mypy

# The stamp is older than pyproject.toml after a change of the dependencies, and only then is anything installed again.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info
