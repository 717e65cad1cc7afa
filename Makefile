# Everything needs only python3 (3.11 or later) and make; the rest is installed into .venv once.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test lint types docs package check fuzz lowest clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is missing or older than 3.11; run make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt \
	  -e '.[onnx,openvino,report,tensorboard,zoo,dev]'
	@touch $@

demo: setup
	$(BIN)/acq quantize resnet20-cifar10 --bits w4a4 --preset fast --data sample --out runs/demo --overwrite

# two workers; a file of tests stays with one
test: setup
	$(BIN)/pytest -n 2 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

# a site in build/site; warnings are errors
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# the wheel, built and used in an environment of its own
package: setup
	.ci/package

check: lint types docs package test

# 10,000 random inputs per reader of files and 2,000 drawn networks, then one minute of inputs that are guided by coverage
fuzz: setup
	ACQ_FUZZ=10000 $(BIN)/pytest tests/test_fuzz.py
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(BIN)/python tests/fuzz_readers.py --seconds 60

# the tests with the oldest torch that is allowed, a download of 3.5 GB
lowest:
	PYTHON=$(PYTHON) .ci/lowest

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
