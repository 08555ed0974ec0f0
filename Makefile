# Two commands matter: `make run` and `make test`. Everything else depends on `setup`, too.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
RUN_DIR := results/demo
DEMO := --dataset hopper-medium-small --seeds 4 --updates 20000 --eval-every 5000 --batch-size 128 --hidden-dims 128 128

.PHONY: setup run test test-all test-faults mutate report benchmark benchmark-gpu speed speed-gpu datasets format clean

setup: $(VENV)/.installed  ## environment in .venv, only when requirements.txt changed

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

run: setup  ## train TD3+BC with 4 seeds in one job beside BC; score table and $(RUN_DIR)/demo.png
	rm -rf $(RUN_DIR)
	$(PY) algorithms/offline/bc.py $(DEMO) --out $(RUN_DIR)/bc
	$(PY) algorithms/offline/td3_bc.py $(DEMO) --out $(RUN_DIR)/td3_bc
	$(PY) results/report.py $(RUN_DIR)/td3_bc $(RUN_DIR)/bc --picture $(RUN_DIR)/demo.png

test: setup  ## the test suite, on at most four cores
	$(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal

test-all: setup  ## the test suite with its long tests, before a release
	$(PY) -m pytest -m "not learning" -n auto --maxprocesses 4 --dist worksteal

test-faults: setup  ## 10,000 malformed files, SIGKILL twenty times for each of four scripts, full disks (five minutes)
	$(PY) -m pytest tests/test_faults.py --whole-faults -n auto --maxprocesses 4

mutate: setup  ## defects in every algorithm's equations, and which its own tests do not catch (hours)
	$(PY) tests/mutate.py

report: setup  ## every table, page and picture, from the raw files alone
	$(PY) results/report.py

benchmark: setup  ## the runs of all claims and tables (hours), then the checks on learning
	$(PY) results/benchmark.py
	$(PY) -m pytest -m learning

benchmark-gpu: setup  ## the score tables at the papers' sizes, eight jobs at once on one accelerator (hours, resumable)
	$(PY) results/benchmark.py --full --at-once 8

speed: setup  ## updates per second as a share of the machine's limit, evaluation steps per second, memory (an hour)
	$(PY) results/speed.py

speed-gpu: setup  ## the same on one accelerator: 1 to 256 lanes, both layouts, precisions of products, lengths of calls
	$(PY) results/speed.py --lanes 1 8 32 64 256 --layouts map vmap --precisions float32 tensorfloat32 bfloat16 \
	  --chunks 12 120 --at-once 6 --shapes hopper --algorithms td3_bc iql cql rebrac fql hiql decision_transformer \
	  --out results/speed_gpu.json

datasets: setup  ## every dataset that can be made here, and the table of them
	$(PY) datasets/make.py --all
	$(PY) datasets/make.py --table

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) $(RUN_DIR)
