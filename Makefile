# hksd: `make search` and `make test` do everything on a fresh machine, set-up included.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SPACE  ?= quickstart
DATA   ?=
JOBS   ?= 2
STAMP  := $(VENV)/.installed

.PHONY: search test test-slow cluster-check lint bench clean

search: $(STAMP)  ## search the embedded data set and export the best student (SPACE=cifar10 for another space)
	$(BIN)/hksd search $(SPACE)

test: $(STAMP)  ## lint, types and all tests that a normal run allows
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile

test-slow: $(STAMP)  ## also the long proofs
	$(BIN)/python -m pytest

cluster-check: $(STAMP)  ## the files that bring up clusters, in seconds: no cloud, no network, no root (part of `make test`)
	$(BIN)/python -m pytest tests/cluster_files

lint: $(STAMP)
	$(BIN)/ruff check hksd search spaces tests benchmarks
	$(BIN)/mypy

# Settings that two idle cores get through in about 20 minutes; figures to publish take the defaults of each file.
BENCH  := $(BIN)/python benchmarks
RESULT := benchmarks/results/quick

bench: $(STAMP)  ## benchmarks that need no GPU, on an idle machine (DATA=PATH_TO_CIFAR10, else noise and digits)
	$(BENCH)/step.py --out $(RESULT)/step.json --terms kd+at --batch 64 --rounds 3 --images 1280 $(DATA:%=--root %)
	$(BENCH)/limit.py --out $(RESULT)/limit.json --rounds 7
	$(BENCH)/accuracy.py --out $(RESULT)/accuracy.json --lrs 0.05 0.1 --seeds 3 $(if $(DATA),--root $(DATA) \
		--set data.limit=2000 --set teacher.epochs=10)
	$(BENCH)/search_speed.py --out $(RESULT)/search.json --trials 16 --seeds 1
	$(BENCH)/scale.py --out $(RESULT)/scale.json --trials 10 100
	$(if $(DATA),$(BENCH)/data.py --root $(DATA) --out $(RESULT)/data.json)

# The stamp is older than pyproject.toml after a change of the dependencies, and only then is anything installed again.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info
