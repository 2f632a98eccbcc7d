# Every promise is a command: `make help` lists them. Needs make, git, a C compiler and Python 3.11 or later; the rest it installs itself.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
# The tests start many daemons: each would compile all its modules where bytecode is not kept.
export PYTHONDONTWRITEBYTECODE :=
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo demo-failover demo-partition test check wheel models test-vllm interop bench lock clean natlab natlab-quick natlab-peers natlab-scenarios natlab-netcheck sim-probes sim-reputation sim-rounds sim-claims sim-mesh bench-claims crash-claims

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(VENV)/.installed ## start a mesh of seven daemons here and ask it a question
	$(BIN)/swarmd demo $(ARGS)

demo-failover: $(VENV)/.installed-dev ## kill, freeze and cut off the daemon that streams an answer, and compare the whole text
	$(BIN)/python -m bench.failover --end kill --end freeze --end cut --check $(ARGS)

demo-partition: $(VENV)/.installed-dev ## part a mesh of four daemons, let both halves write, heal it, compare their hashes (root)
	$(BIN)/python -m bench.partition --check $(ARGS)

test: $(VENV)/.installed-dev ## run the default suite
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

check: $(VENV)/.installed-dev ## lint, types and import contracts
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

wheel: $(VENV)/.installed-dev ## build the wheel into dist/
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist

models: $(VENV)-models/.installed ## train the shipped models anew (some twelve minutes on two free cores)
	$(VENV)-models/bin/python -m models.recipe

$(VENV)-models/.installed: models/recipe/requirements.txt
	$(PYTHON) -m venv $(VENV)-models
	$(VENV)-models/bin/python -m pip install --quiet --disable-pip-version-check -r models/recipe/requirements.txt
	@touch $@

test-vllm: $(VENV)/.installed-dev ## run the tests that need a real vLLM; tests/engine/vllm/README.md says how to get one
	$(BIN)/pytest -m vllm $(ARGS) tests/engine/vllm

interop: $(VENV)/.installed-dev $(VENV)-interop/.installed tests/interop/node_modules/.package-lock.json ## run our transport against js-libp2p and rust-libp2p (needs node and npm)
	SWARMD_LATTICA_PYTHON=$(abspath $(VENV)-interop/bin/python) $(BIN)/pytest -m interop $(ARGS) tests/interop

$(VENV)-interop/.installed:
	$(PYTHON) -m venv $(VENV)-interop
	$(VENV)-interop/bin/python -m pip install --quiet --disable-pip-version-check lattica==1.0.21
	@touch $@

tests/interop/node_modules/.package-lock.json: tests/interop/package.json tests/interop/package-lock.json
	cd tests/interop && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

natlab: $(VENV)/.installed-dev ## run real daemons behind 36 pairs of NATs in network namespaces (needs root, iproute2 and nftables)
	$(BIN)/python -m tests.natlab --skip $(ARGS)

natlab-quick: $(VENV)/.installed-dev ## the same with twelve of the pairs
	$(BIN)/python -m tests.natlab --skip --quick $(ARGS)

natlab-peers: $(VENV)/.installed-dev tests/natlab/rivals/node_modules/.package-lock.json ## the same pairs for Lattica and py-libp2p, beside ours (ARGS=--quick for twelve; needs node and npm)
	$(BIN)/python -m tests.natlab.beside --skip $(ARGS)

# Not `npm ci`: it insists on the QUIC library's builds for other systems, which not every registry has. The lock still decides.
tests/natlab/rivals/node_modules/.package-lock.json: tests/natlab/rivals/package.json tests/natlab/rivals/package-lock.json
	cd tests/natlab/rivals && npm install --no-save --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

natlab-scenarios: $(VENV)/.installed-dev ## relays that die, changes of network, IPv6, port mapping, bad lines: a row each (ARGS="--only WORD" for some)
	$(BIN)/python -m tests.natlab.scenarios --skip $(ARGS)

natlab-netcheck: $(VENV)/.installed-dev ## what netcheck says behind each type of NAT, and whether it is so
	$(BIN)/python -m tests.natlab.netcheck --skip $(ARGS)

bench: $(VENV)/.installed-dev ## measure calls and streams against Lattica, in one run
	$(BIN)/python -m bench.rpc $(ARGS)

sim-probes: $(VENV)/.installed-dev ## cheat on probes in simulation: canned answers, lazy judges
	$(BIN)/python -m tests.sim.probe_attacks $(ARGS)

sim-rounds: $(VENV)/.installed-dev ## attack rounds in simulation, R1 to R9, over 1,000 seeds (SEEDS=n, or SEED=n for one)
	$(BIN)/python -m tests.sim.run_rounds $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000)) $(ARGS)

sim-mesh: $(VENV)/.installed-dev ## attack finding (D1 to D7) and gossip (G1 to G10) in simulation, ten seeds (SEEDS=n, or SEED=n for one)
	$(BIN)/python -m tests.sim.run_mesh $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),10)) $(ARGS)
	$(BIN)/python -m tests.sim.gossip_attacks $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),10))

sim-reputation: $(VENV)/.installed-dev ## attack reputation in simulation over many seeds (SEEDS=n, or SEED=n for one)
	$(BIN)/python -m tests.sim.run_reputation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),5)) $(ARGS)

sim-claims: $(VENV)/.installed-dev ## fifty peers, loss, partitions, churn and forks over a thousand seeds (SEEDS=n, or SEED=n for one)
	$(if $(SEED),SEED=$(SEED)) $(BIN)/python -m tests.sim.claim_network --seeds $(or $(SEEDS),1000) $(ARGS)

crash-claims: $(VENV)/.installed-dev ## kill a writer of claims 500 times, and fill its disk (ARGS="--kills n --seed n")
	PYTHONPATH=. $(BIN)/python tests/live/crash_claims.py $(ARGS)

bench-claims: $(VENV)/.installed-dev $(VENV)-claims/.installed ## measure the claim store, beside pycrdt
	$(BIN)/python -m bench.claims $(ARGS)

$(VENV)-claims/.installed:
	$(PYTHON) -m venv $(VENV)-claims
	$(VENV)-claims/bin/python -m pip install --quiet --disable-pip-version-check pycrdt==0.14.13
	@touch $@

lock: $(VENV)/.installed-dev ## write requirements.lock from what is installed
	$(BIN)/python deploy/lock.py > requirements.lock

clean: ## remove what was built; the virtual environment stays
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# fastecdsa, which libp2p needs, is compiled at installation: say what is missing before pip fails on it.
CHECK := @PYTHON='$(PYTHON)' sh deploy/prerequisites.sh

$(VENV)/bin/python:
	$(CHECK)
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml requirements.lock | $(VENV)/bin/python
	$(CHECK)
	$(PIP) --constraint requirements.lock -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml requirements.lock | $(VENV)/bin/python
	$(CHECK)
	$(PIP) --constraint requirements.lock -e '.[dev]'
	@touch $@ $(VENV)/.installed
