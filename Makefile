# Everything happens in .venv; each target sets up what it needs.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: install demo test lint format screenshots docs clean
.DEFAULT_GOAL := install

install: $(READY)

# torch first and pinned: an open range would download a different build for every machine.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all,dev]"
	touch $(READY)

demo: install
	$(VENV)/bin/scorefield demo

# Two processes of one thread each: small tensors gain nothing from more threads.
test: install
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: install
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Pictures of the studio for the docs, by Debian's chromium.
screenshots: install
	$(PY) tools/screenshots.py docs/pictures

# A site without anything from elsewhere: build/site/index.html opens from the disk.
docs: install
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet
	$(PY) tools/website.py build/site

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
