# make demo | finetune-demo | test    set up .venv, build, run; need Python >= 3.10, a C++ compiler and make
# make test-more | check-fast    what takes long and finds little | the core alone, in less than two minutes
# make bench | bench-again | accuracy | results    measure kernels on this CPU | again | ten seeds | all, for the README
# make test-gpu | sanitize | bench-gpu    on a machine with an NVIDIA GPU; use the active Python, offline; sanitize-memcheck, ...
# make fuzz | sanitize-cpu    random layers, trainings, kills, processes, calls | hostile calls by a CPU library with sanitizers
# make wheel | check-wheel    one wheel for a cluster, in dist/ | the tests on it, installed
# make docs    the documentation, as HTML in build/docs
#
# PYTHON=python3.12 chooses the Python, TORCH=2.10.0 the PyTorch of .venv. ENV=active uses the active Python, which
# must hold torch and what .ci/requirements.txt names, and installs nothing.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-more lint check check-fast bench bench-again accuracy results wheel check-wheel build clean

PYTHON ?= python3
TORCH ?= 2.13.0
TRITON ?= 3.9.0
VENV ?= .venv
OUT ?= bench/results

ifeq ($(ENV),active)
  PY := $(PYTHON)
  READY :=
  KEY := active-$(shell $(PYTHON) -c 'import sys, torch; print(f"{sys.prefix}-{torch.__version__}".replace("/", "_"))')
else
  PY := $(VENV)/bin/python
  READY := $(VENV)/ready-$(TORCH)
  KEY := venv-$(TORCH)
endif
SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml
CPP := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')
BUILT := build/ready-$(KEY)

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -10

$(READY): .ci/requirements.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check torch==$(TORCH)
	$(PY) -m pip install -q --disable-pip-version-check -r .ci/requirements.txt
	$(PY) -m pip install -q --disable-pip-version-check --no-deps --target $(VENV)/torchvision torchvision==0.28.0 timm==1.0.31
	$(PY) -c "import triton" 2>/dev/null || $(PY) -m pip install -q --disable-pip-version-check "triton<=$(TRITON)"
	touch $@

build: $(BUILT)

$(BUILT): $(READY) $(SOURCES)
ifeq ($(ENV),active)
	WUSKERN_TESTING=1 $(PY) setup.py -q build_ext --inplace
else
	WUSKERN_TESTING=1 $(PY) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
endif
	@mkdir -p build && rm -f build/ready-* && touch $@

TRAIN = $(PY) -m wuskern train --data digits --epochs 20 --overwrite
VGG11 = $(TRAIN) --model vgg11 --lr .01

demo: build
	$(VGG11) --policy dense,wus,frozen --seeds 3 --out runs/demo

test: lint check

lint: build
	$(PY) -m ruff check .
	OMP_NUM_THREADS=1 $(PY) -m bench.tables --check
	$(PY) -m ruff format --check .
	$(PY) -c 'import clang_format; clang_format.clang_format()' --dry-run --Werror $(CPP)
	$(PY) -m mypy

# Parts that must be there, or the tests that need them fail instead of being skipped; unless the build, or a Python
# without headers, has said why not. torchvision is kept apart, and timm, which imports it: PyPI's is for CUDA, and transformers
# trips over it.
EXPECT := cpu,cuda-file,testing,emulated,triton

TESTS = WUSKERN_EXPECT=$(EXPECT) $(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder
SMOKE = OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 bench --benchmark-disable -p no:cacheprovider

# At most eight minutes on two cores with all of `make test`: what takes long has the mark `more`, or `pairs` (pyproject.toml).
check: build
	$(TESTS) -m "not more"
	PYTHONPATH=$(VENV)/torchvision $(PY) -m pytest -q tests/train/test_cifar.py tests/train/test_full_sized.py
	$(SMOKE) -m "not more"

# The trainers that people use, for the tests of wuskern.integrations and the examples.
ifeq ($(ENV),active)
  READY_TRAINERS :=
else
  READY_TRAINERS := $(VENV)/ready-trainers
endif

$(VENV)/ready-trainers: $(READY) .ci/trainers.txt
	$(PY) -m pip install -q --disable-pip-version-check -r .ci/trainers.txt
	touch $@

# At most twenty-five.
test-more: build $(READY_TRAINERS)
	$(TESTS) -m more
	PYTHONPATH=$(VENV)/torchvision $(PY) -m pytest -q -m more tests/train/test_cached_networks.py
	$(SMOKE) -m more
	$(MAKE) fuzz SECONDS=20
	$(MAKE) sanitize-cpu SANITIZER_SECONDS=30

# Layers, ops and optimizers: no policies, training, processes, compilers, machine code, benchmarks.
BESIDE := $(wildcard tests/policies tests/bench tests/train tests/distributed tests/simplify tests/test_bench* tests/test_cli* \
  tests/test_compile.py tests/test_cuda_graphs.py tests/test_transformers.py tests/kernels/cpu/test_instruction_sets.py \
  tests/kernels/cuda/test_cuda_*.py tests/kernels/triton/test_compile.py tests/kernels/triton/test_rowsparse.py)
check-fast: build
	$(TESTS) -m "not more" $(BESIDE:%=--ignore=%)

bench: build
	$(PY) -m pytest -q bench --benchmark-quiet --results $(OUT)/cpu.json

# A second run, and whether it agrees with the first one within the spread that they state.
bench-again: build
	$(PY) -m pytest -q bench --benchmark-quiet --results $(OUT)/cpu-again.json
	-$(PY) -m bench.compare $(OUT)/cpu.json $(OUT)/cpu-again.json

# Needs root, ip and tc: the two processes live in network namespaces.
.PHONY: bench-ddp
bench-ddp: build
	$(PY) -m bench.ddp --out $(OUT)/ddp.json

# Accuracy over time with a slow link, which goes on where it stopped: hours. It installs what evidence does; needs root, ip and tc.
.PHONY: bench-network
bench-network: build $(READY_TRAINERS)
	$(PY) -m bench.network --folder build/evidence --out $(OUT)/network.json

# Time to accuracy of every method, over ten seeds.
METHODS := vgg11 mlp gpt best sparse-vgg11 sparse-mlp sparse-gpt
accuracy: build
	for net in $(METHODS); do $(PY) -m wuskern train --recipe bench/methods/$$net.toml --overwrite --out runs/$$net; done

# Fine-tuning of real pretrained weights on a budget, which goes on where it stopped: hours. It installs weights and data, each with
# a licence of its own (bench/finetune/sources.py), into build/evidence.
.PHONY: evidence finetune-demo
evidence: build $(READY_TRAINERS)
	$(PY) -m bench.finetune --folder build/evidence --out $(OUT)/finetune.json

finetune-demo: build $(READY_TRAINERS)
	$(PY) -W ignore -m bench.finetune.demo

# Measures everything that the README states, on an otherwise idle machine, and writes it there.
results: bench bench-again accuracy demo
	cp runs/demo/results.json bench/results/demo.json
	for net in $(METHODS); do $(PY) -m bench.condense runs/$$net/results.json bench/results/methods-$$net.json; done
	for script in masks tokens simplify accelerating; do $(PY) -m bench.$$script; done
	$(PY) -m bench.tables

# ---- documentation: a warning is an error, and no network is needed but for the set-up ------------------------------

ifeq ($(ENV),active)
  READY_DOCS :=
else
  READY_DOCS := $(VENV)/ready-docs
endif

$(VENV)/ready-docs: $(READY) docs/requirements.txt
	$(PY) -m pip install -q --disable-pip-version-check -r docs/requirements.txt
	touch $@

.PHONY: docs
docs: $(READY_DOCS)
	$(PY) -m sphinx -W --keep-going -q -b html -d build/doctrees docs build/docs
	@echo build/docs/index.html

# ---- random input, and sanitizers on the CPU ------------------------------------------------------------------------

# Every generator of tests/fuzz for so many seconds, from a seed; those that find a fault are named at the end.
FUZZERS := layers soak kills distributed lost hostile convolutions
SECONDS ?= 900
SEED ?= 0
.PHONY: fuzz
fuzz: build
	failed=""; \
	for fuzz in $(FUZZERS); do \
	  echo "$$fuzz:"; OMP_NUM_THREADS=1 $(PY) -m tests.fuzz.$$fuzz --seconds $(SECONDS) --seed $(SEED) || failed="$$failed $$fuzz"; \
	done; \
	if [ -n "$$failed" ]; then echo "faults:$$failed" >&2; exit 1; fi

# Hostile calls of every op, and convolutions of any geometry, by a library that address and undefined-behaviour sanitizers watch.
SANITIZER_SECONDS ?= 60
.PHONY: sanitize-cpu
sanitize-cpu: $(READY)
	PATH="$$(dirname "$$(command -v $(PY))"):$$PATH"; \
	cmake -S . -B build/sanitized -G Ninja -DPython_EXECUTABLE="$$(command -v $(PY))" -DWUSKERN_SANITIZE=ON \
	  -DCMAKE_INSTALL_PREFIX="$(CURDIR)/build/sanitized/lib"; \
	cmake --build build/sanitized; \
	cmake --install build/sanitized; \
	compiler="$${CXX:-c++}"; \
	for fuzz in "hostile --no-emulated" convolutions; do \
	  LD_PRELOAD="$$($$compiler -print-file-name=libasan.so) $$($$compiler -print-file-name=libstdc++.so.6)" \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=1 \
	    $(PY) -m tests.fuzz.$$fuzz --library build/sanitized/lib --seconds $(SANITIZER_SECONDS); \
	done

# ---- with a GPU: the active Python, this machine's architecture only, CMake alone, no network -----------------------

GPU_PY := $(PYTHON)
TOOLS := memcheck racecheck initcheck synccheck
GPU_GOALS := gpu-build test-gpu bench-gpu sanitize sanitize-triton $(TOOLS:%=sanitize-%)
# Seconds in which bench-gpu starts cases; the build before them takes the rest of ten minutes.
BUDGET ?= 420
# Seconds that one tool may take: longer than that fails. `make gpu-build` before it keeps the build out of them.
LIMIT ?= 580
GPU_PYTEST := $(GPU_PY) -m pytest -q -o filterwarnings=default

.PHONY: $(GPU_GOALS)
ifneq ($(filter $(GPU_GOALS),$(MAKECMDGOALS)),)
ifndef GPU_STATE
GPU_STATE := $(shell $(GPU_PY) .ci/gpu.py state)
endif
endif

ifeq ($(GPU_STATE),none)
$(GPU_GOALS):
	@echo "skipped: this machine has no NVIDIA GPU, neither for its driver nor for torch"
else
gpu-build:
	@if [ "$(GPU_STATE)" != ready ]; then echo "$(or $(GPU_STATE),$(GPU_PY) has no torch)" >&2; exit 1; fi
	rm -f build/ready-*
	arguments="$$($(GPU_PY) .ci/gpu.py cmake)"; \
	TORCH_CUDA_ARCH_LIST="$$($(GPU_PY) .ci/gpu.py architecture)" cmake -S . -B build/gpu -G Ninja $$arguments \
	  -DWUSKERN_CUDA=ON -DWUSKERN_TESTING=ON -DCMAKE_INSTALL_PREFIX="$(CURDIR)/wuskern/lib"
	cmake --build build/gpu
	cmake --install build/gpu

# Several processes share the GPU where pytest-xdist is there: most of the time is Triton's compiler.
test-gpu: gpu-build
	WUSKERN_EXPECT=cpu,cuda,triton,testing,gpu $(GPU_PYTEST) -m gpu tests \
	  $$($(GPU_PY) -c "import xdist" 2>/dev/null && printf -- "-n 4 --dist loadfile")

# A tool of compute-sanitizer over every compiled kernel in every dtype (where a race is looked for, in two); the first one over
# Triton's in float32 and float16 too. Each is a target of its own, with its own ten minutes.
SANITIZED = PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout $(LIMIT) compute-sanitizer --error-exitcode 1 --tool $(1) \
  $(GPU_PYTEST) -m gpu -p no:cacheprovider tests/test_on_a_gpu.py -k "every_op_is_right and $(2)"
sanitize: $(TOOLS:%=sanitize-%) sanitize-triton
sanitize-memcheck sanitize-initcheck sanitize-synccheck: sanitize-%: gpu-build
	$(call SANITIZED,$*,native)
sanitize-racecheck: gpu-build
	$(call SANITIZED,racecheck,native and (float32 or bfloat16))
sanitize-triton: gpu-build
	$(call SANITIZED,memcheck,triton and not (bfloat16 or float64))

bench-gpu: gpu-build
	$(GPU_PYTEST) bench/gpu --benchmark-quiet --device cuda --budget $(BUDGET) \
	  --results "$(OUT)/$$($(GPU_PY) -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))').json"
endif

# All of these without a GPU, before there is one: .ci/stand_in has the CPU pass for it. Nothing that they print is a measurement.
STAND_IN := $(CURDIR)/.ci/stand_in
.PHONY: rehearse-gpu
rehearse-gpu: $(READY)
	PATH="$(STAND_IN):$(dir $(abspath $(PY))):$$PATH" PYTHONPATH="$(STAND_IN)" PYTEST_ADDOPTS="-p rehearsal" \
	  $(MAKE) -k GPU_PY="$(abspath $(PY))" OUT=build/rehearsal BUDGET=60 test-gpu sanitize bench-gpu

# ---- distribution ---------------------------------------------------------------------------------------------------

# Both libraries, checked and tagged; WUSKERN_BUILD=cpu for the CPU's alone.
wheel: $(READY)
	$(PY) .ci/make_wheel.py

# The CPU tests on the installed wheel, in an environment of its own and beside no source of the package.
HIDDEN := build/wheel-check
check-wheel: wheel
	rm -rf $(HIDDEN) && mkdir -p $(HIDDEN)
	cp -r tests bench csrc setup.py .ci pyproject.toml $(HIDDEN)
	$(MAKE) VENV=$(HIDDEN)/.venv $(HIDDEN)/.venv/ready-$(TORCH)
	$(HIDDEN)/.venv/bin/python -m pip install -q --disable-pip-version-check --no-deps dist/*.whl
	cd $(HIDDEN) && WUSKERN_EXPECT=cpu,cuda-file,triton .venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not more"

clean:
	rm -rf build dist wuskern/lib *.egg-info
