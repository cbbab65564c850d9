# `make demo` and `make test` need Python 3.11 or later and nothing else: they set up the virtual environment .venv
# first, and again whenever setup.cfg or constraints.txt has changed.

.DEFAULT_GOAL := help
.PHONY: help demo test notebooks docs interop test-ignite-range bench check clean

BIN := .venv/bin
INSTALLED := .venv/.installed
INTEROP := .venv-interop
BENCH := .venv-bench

# The first of these that runs; only looked for when there is something to set up.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c '' 2> /dev/null && echo $$python && break; done)

# One process for each of two cores: more of them spend their time importing torch.
WORKERS ?= 2

help: ## show this list
	@echo 'make TARGET, where TARGET is one of'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-17s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## train a network on handwritten digits; options: make demo ARGS='--max-epochs 3'
	@$(BIN)/python examples/digits.py $(ARGS)

test: $(INSTALLED) ## run all tests; options: make test ARGS='-k packaging'
	$(BIN)/pytest -n $(WORKERS) $(ARGS)

notebooks: $(INSTALLED) ## execute the notebooks and keep their outputs; one: make notebooks ARGS=notebooks/1_first_run.ipynb
	$(BIN)/python tests/notebooks/executing.py $(ARGS)

interop: $(INTEROP)/.installed ## print which handler, Ignite's and ours, was tested on which engine, and how it went
	$(INTEROP)/bin/python -P -m pytest -n $(WORKERS) --matrix tests/interop $(ARGS)
# Not on several processes: each of them would run every vendor's client.
	$(INTEROP)/bin/python -P -m pytest tests/contrib/loggers tests/together/test_ray.py

test-ignite-range: $(INSTALLED) ## run the tests on the oldest and the newest Ignite that setup.cfg admits
	WORKERS=$(WORKERS) .ci/test-ignite-range $(ARGS)

docs: $(INSTALLED) ## build the documentation site, build/docs/index.html, and look for what is broken in it
	@rm -rf build/docs
	$(BIN)/sphinx-build -q -b html -c docs -d build/docs-doctrees -E -W --keep-going . build/docs
	$(BIN)/python docs/check_site.py build/docs

bench: $(BENCH)/.installed ## measure beside the peers and write benchmarks/RESULTS.md; options: make bench ARGS='--quick scaling'
	$(BENCH)/bin/python benchmarks/run_all.py $(ARGS)

check: $(INSTALLED) ## check style, types and the examples in docstrings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy -p camshaft
# importlib, the mode of the tests, would import a module of ours a second time if it were collected first.
	$(BIN)/pytest --import-mode=prepend --doctest-modules camshaft

clean: ## delete what builds and tools leave behind, but no environment and no run
	rm -rf build dist camshaft.egg-info .coverage htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): setup.cfg constraints.txt
	@python=$(BIN)/python; test -x $$python || python="$(PYTHON)"; \
	test -n "$$python" || { echo 'No Python was found: install Python 3.11 or later.' >&2; exit 1; }; \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Tests and examples need Python 3.11 or later, and $$python is not that:" \
			"delete .venv if there is one, and name another Python, as in: make test PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	@test -x $(BIN)/pip || { echo 'Making the virtual environment .venv …'; "$(PYTHON)" -m venv .venv; }
	@echo 'Installing into .venv, at the versions of constraints.txt (the first time this takes minutes) …'
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt pip setuptools
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev,docs,examples,vision]'
	@touch $@

# On top of .venv, which it sees, because these clients want other versions of what is there. visdom's own build needs
# what setuptools has had until version 80.
$(INTEROP)/.installed: $(INSTALLED) tests/interop/requirements.txt
	@echo "Installing the clients of vendors' services into $(INTEROP) (the first time this takes a minute) …"
	@$(BIN)/python -m venv --clear --without-pip $(INTEROP)
	@below=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	above=$$($(INTEROP)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	echo "import site; site.addsitedir('$$below')" > "$$above/on_top_of_venv.pth"
	@echo 'setuptools<81' > $(INTEROP)/build-constraints.txt
	@$(BIN)/python -m pip --python $(INTEROP)/bin/python install --quiet --no-deps \
		--build-constraint $(INTEROP)/build-constraints.txt --requirement tests/interop/requirements.txt
	@touch $@

# On links to all that is in .venv but torchvision: the peers use the same torch, and torchtnt wants an older setuptools.
# No benchmark needs torchvision, but torchmetrics imports it wherever it finds it, and one that was built for another
# torch than the one beside it (CUDA's and the CPU's) cannot be imported, and Lightning and Fabric not with it.
$(BENCH)/.installed: $(INSTALLED) benchmarks/requirements.txt
	@echo "Installing the peers into $(BENCH) (the first time this takes a minute) …"
	@$(BIN)/python -m venv --clear --without-pip $(BENCH)
	@mkdir $(BENCH)/below
	@below=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	above=$$($(BENCH)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	find "$$below" -mindepth 1 -maxdepth 1 ! -name 'torchvision*' -exec ln -s {} $(BENCH)/below \; && \
	echo "import site; site.addsitedir('$$(cd $(BENCH)/below && pwd)')" > "$$above/on_top_of_venv.pth"
	@$(BIN)/python -m pip --python $(BENCH)/bin/python install --quiet --no-deps --requirement benchmarks/requirements.txt
	@touch $@
