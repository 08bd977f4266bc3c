# `make` lists the targets. Each sets itself up in .venv, once, from settings.ini and setup.py.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
RUNS := train_edm train_cd train_ct train_pd generate edit_images tune_levels evaluate_model compare_methods benchmark scaling

export JUPYTER_PREFER_ENV_PATH = 1
export PYTHONUNBUFFERED = 1

.DEFAULT_GOAL := help
GPU_PIECES := gpu_nets gpu_compiled gpu_runs gpu_speed_ncsn gpu_speed_adm
.PHONY: help test test-all faults docs lab clean gpu $(GPU_PIECES) $(RUNS)

help:
	@echo "make train_edm   train the teacher: a diffusion model"
	@echo "make train_cd    distil it into a consistency model"
	@echo "make train_ct    train a consistency model without a teacher"
	@echo "make train_pd    progressive distillation, the baseline"
	@echo "make generate    draw images from a model"
	@echo "make edit_images fill in, colour, sharpen, repaint pictures (ARGS='-p task inpaint -p image my.png')"
	@echo "make tune_levels search the noise levels for two and more calls"
	@echo "make evaluate_model measure quality against calls and seconds, and look for copies (ARGS='-p samples 2000')"
	@echo "make compare_methods train every method with one budget, and compare them: hours (ARGS='-p rows ct,ect')"
	@echo "make benchmark   measure speed against the plainest code, and against diffusers"
	@echo "make scaling     measure how time and memory grow"
	@echo "make test        run the tests"
	@echo "make test-all    and the slow ones: installation, many processes, kills"
	@echo "make gpu         on a machine with a graphics card: its tests and the benchmark, in pieces that end within 8 minutes:"
	@echo "                 $(GPU_PIECES), each a target of its own; no network is needed"
	@echo "make faults      hurt training runs, and write what was seen to nbs/faults.json"
	@echo "make docs        build the site into _docs/ and README.md (ARGS=--strict: fail on any warning)"
	@echo "make lab         open the notebooks in JupyterLab"
	@echo "make clean       remove what was built; runs/ and .venv stay"
	@echo
	@echo "ARGS sets parameters of a run, the names of its first code cell:  make train_cd ARGS='-p minutes 20 -p seed 1'"
	@echo "Results are in runs/NAME/: the executed notebook, metrics.json, samples.png, the checkpoint."

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=/path/to/python')"
	$(PYTHON) -m venv $(VENV)

# What a run needs; and what tests and documentation need, which holds the former.
$(VENV)/.train: settings.ini setup.py | $(BIN)/python
	@echo "installing into $(VENV) (the first time takes minutes)"
	$(PIP) -e '.[train]'
	@touch $@

$(VENV)/.dev: settings.ini setup.py | $(BIN)/python
	@echo "installing into $(VENV) (the first time takes minutes)"
	$(PIP) -e '.[dev]'
	@touch $(VENV)/.train $@

$(RUNS): $(VENV)/.train
	@mkdir -p runs/$@
	@echo "running nbs/$@.ipynb; the executed notebook will be runs/$@/$@.ipynb"
	@$(BIN)/papermill nbs/$@.ipynb runs/$@/$@.ipynb -k python3 --no-progress-bar --stdout-file - --stderr-file - --log-level WARNING --autosave-cell-every 60 $(ARGS)
	@if [ -f runs/$@/samples.png ]; then echo "pictures: runs/$@/samples.png"; fi

benchmark: $(VENV)/.dev   # diffusers comes with it

test: $(VENV)/.dev
	$(BIN)/python -m pytest tests -m "not slow and not gpu" -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest tests $(ARGS)

# A piece that takes longer than 8 minutes is ended; `make -k gpu` goes on with the next one.
gpu: $(GPU_PIECES)
GPU_TEST := HF_HUB_OFFLINE=1 timeout 480 $(BIN)/python -m pytest tests/test_gpu.py $(ARGS)
GPU_RUN := HF_HUB_OFFLINE=1 timeout 480 $(BIN)/papermill nbs/benchmark.ipynb

gpu_nets: $(VENV)/.dev
	$(GPU_TEST) -k "network and not compiled"

gpu_compiled: $(VENV)/.dev
	$(GPU_TEST) -k compiled

gpu_runs: $(VENV)/.dev
	$(GPU_TEST) -k "not network and not compiled"

gpu_speed_ncsn gpu_speed_adm: gpu_speed_%: $(VENV)/.dev
	@mkdir -p runs/$@
	$(GPU_RUN) runs/$@/$@.ipynb -k python3 --no-progress-bar --log-level WARNING --stdout-file - -p out_dir runs/$@ -p networks $* -p compile False -p seconds 0.4 -p turns 2

faults: $(VENV)/.dev
	rm -f nbs/faults.json
	FAULTS=$(CURDIR)/nbs/faults.json $(BIN)/python -m pytest tests/test_faults.py tests/test_processes.py $(ARGS)

docs: $(VENV)/.dev
	$(BIN)/python tools/docs.py $(ARGS)
	@echo "read it:  $(BIN)/python -m http.server -d _docs"

lab: $(VENV)/.dev
	$(BIN)/jupyter lab nbs

clean:
	rm -rf _proc _proc.info _site_src _site _docs build dist *.egg-info .pytest_cache nbs/.ipynb_checkpoints nbs/tutorials/.ipynb_checkpoints
	find consistency_nb tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
