# make install   .venv with locked dependencies; the command is .venv/bin/lanner
# make demo      the whole service on real data, with drift and an attack, in about three minutes
# make test      all tests, on real servers
# make check     ruff, mypy strict, import-linter
# make bench     benchmarks as ratios in one run
# make bench-attacks  attacks and honest clients against real models; writes docs/attacks.md (about an hour the first time)
# Everything but `install` installs first. PYTHON=python3.12 chooses another Python for the environment.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
PY := $(VENV)/bin/python
DONE := $(VENV)/.installed
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --use-pep517

.PHONY: install demo test check format bench bench-attacks acceptance lock clean
.DEFAULT_GOAL := install

install: $(DONE)

$(DONE): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Lanner needs Python 3.11 or newer: on Debian 12 or newer, apt-get install python3 python3-venv."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv is missing: on Debian, apt-get install python3-venv."; exit 1; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@# setuptools comes first, so that the few source distributions are built with it and not with an unlocked one
	@awk '/^setuptools==/ {p = 1} p {print} p && !/\\$$/ {exit}' requirements.lock > $(VENV)/setuptools.lock
	$(PIP) --require-hashes -r $(VENV)/setuptools.lock
	$(PIP) --require-hashes -r requirements.lock
	$(PIP) --editable .
	$(PY) -m pip check --disable-pip-version-check
	@touch $(DONE)
	@echo "Installed: $(VENV)/bin/lanner"

demo: $(DONE)
	$(PY) -m benchmarks.demo

# Each of the test processes starts its own servers (some 2 GB of memory); JOBS=1 runs all tests in one.
# Models answer thousands of small calls in tests; on a busy machine more threads only wait for each other.
JOBS ?= 2
test: export OMP_NUM_THREADS ?= 1
test: $(DONE)
	$(PY) -m pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder

check: $(DONE)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(DONE)
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .

bench: $(DONE)
	$(PY) -m benchmarks

bench-attacks: $(DONE)
	$(PY) -m benchmarks.attacks --all

acceptance: $(DONE)
	$(PY) -m pytest -m acceptance --override-ini timeout=7200

# Resolves pyproject.toml anew, for every supported Python at once; uv is only needed for this.
lock:
	@test -x .cache/uv/bin/uv || { $(PYTHON) -m venv .cache/uv && .cache/uv/bin/pip install --quiet uv; }
	.cache/uv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --custom-compile-command "make lock" --extra dev pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist *.egg-info
