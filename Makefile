# hksd: `make search` and `make test` do everything on a fresh machine, set-up included.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SPACE  ?= quickstart
DATA   ?=
JOBS   ?= 2
STAMP  := $(VENV)/.installed
CLUSTER := $(VENV)/.cluster-installed

.PHONY: search test test-slow cluster-check test-cluster test-cluster-all test-cloud lint bench clean

search: $(STAMP)  ## search the embedded data set and export the best student (SPACE=cifar10 for another space)
	$(BIN)/hksd search $(SPACE)

test: $(STAMP)  ## lint, types and all tests that a normal run allows
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -m "not slow and not cluster and not cloud" -n $(JOBS) --dist loadfile

test-slow: $(STAMP)  ## also the long proofs
	$(BIN)/python -m pytest

cluster-check: $(STAMP)  ## the files that bring up clusters, in seconds: no cloud, no network, no root (part of `make test`)
	$(BIN)/python -m pytest tests/cluster_files

# Clusters that really run, as root, on machines out of namespaces of the kernel (tests/cluster). What they need beside
# Python is looked at first, and never installed by itself; what is missing ends the target with the command for it.
test-cluster: $(CLUSTER)  ## three machines, `ray up`, searches, a lost machine, a killed driver, open ports: about 2 minutes
	$(BIN)/python tests/cluster/needs.py
	$(BIN)/python -m pytest tests/cluster -m "cluster and not slow"

test-cluster-all: $(CLUSTER)  ## also a cut cable, MLflow gone, the head started anew, GPUs: about 8 minutes
	$(BIN)/python tests/cluster/needs.py
	$(BIN)/python -m pytest tests/cluster -m cluster

test-cloud: $(CLUSTER)  ## the file for AWS, against an imitation of it: about 4 minutes
	$(BIN)/python tests/cluster/needs.py --cloud
	$(BIN)/python -m pytest tests/cluster -m cloud

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

$(CLUSTER): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,cluster-test]'
	touch $(CLUSTER)

clean:
	rm -rf $(VENV) build dist *.egg-info
