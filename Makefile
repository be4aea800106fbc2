# Everything runs in .venv, which `make install` makes from the package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.docs
export HF_HUB_OFFLINE ?= 1

.PHONY: install demo test e2e pictures docs lint format bench recipe-mini clean

install: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,eval,webui,test]'
	@touch $@

demo: $(STAMP)
	$(BIN)/simpletuner demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

# In a real browser: needs Debian's chromium, chromium-driver, fonts-noto-core and fonts-noto-cjk.
e2e: $(DOCS_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest e2e

# Of the WebUI, for the documentation. Beside them lies demo-curves.png, which is curves.png of `make demo`.
pictures: $(STAMP)
	OMP_NUM_THREADS=1 E2E_PICTURES=documentation/images $(BIN)/python -m pytest e2e/test_pages.py

# The site, in site/, and every check of the documentation.
docs: $(DOCS_STAMP)
	$(BIN)/python -m documentation_tools.generate --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	$(BIN)/python -m documentation_tools.site
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/documentation

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py $(if $(JSON),--json $(JSON))

recipe-mini: $(STAMP)
	$(BIN)/python examples/recipe_mini.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) output build dist .mypy_cache .ruff_cache .pytest_cache
