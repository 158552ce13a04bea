# make run    installs what is missing, runs the study of the core models, prints the headline table
# make study  the same with all models
# make test   installs what is missing, runs linter, type checker and tests
# Both need Python 3.11 or newer, make, git, gcc and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
# pip compiles in one process. Some packages bring files that do not compile, and are not meant to.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib src || true
DATA_WHEEL := recbole==1.2.1
export KEDRO_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help run study test tests lint data new-dataset lab viz map notebooks provenance report coverage serve pictures browser bench-quality bench-speed bench-scale bench-spark confirm audit mutate clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	@$(COMPILE)
	@touch $@

$(VENV)/.development: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[dev]'
	@$(COMPILE)
	@touch $@ $(VENV)/.runtime

$(VENV)/.report: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[notebooks,report]'
	@$(COMPILE)
	@touch $@ $(VENV)/.runtime

# The wheel carries MovieLens-100k; of the package itself nothing is used, so its dependencies stay out.
$(VENV)/.data: Makefile | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps '$(DATA_WHEEL)'
	@touch $@

data: $(VENV)/.data ## get the data: MovieLens-100k inside a wheel

run: $(VENV)/.runtime $(VENV)/.data ## the study of the core models and its headline table
	$(BIN)/kedro run

study: $(VENV)/.runtime $(VENV)/.data ## the study of all models
	$(BIN)/kedro run --params study.core_only=false

new-dataset: $(VENV)/.runtime ## a commented starting point for your own data: make new-dataset NAME=my_books FROM=path/to/files
	$(BIN)/python -m multitask_recommender.new_dataset '$(NAME)' $(if $(FROM),'$(FROM)')

lint: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tests of the report site need a browser. Where it cannot be installed they are skipped and say so.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null; } \
		|| echo 'No chromium, and no right to install it: the tests of the report site in a browser are skipped.'

test: ## linter, type checker and tests
	$(MAKE) --no-print-directory --jobs 2 lint tests

tests: $(VENV)/.development browser
	$(BIN)/pytest --numprocesses auto --dist worksteal

coverage: $(VENV)/.development browser ## which lines no test runs, in build/coverage; of some tests: make coverage TESTS=tests/use
	mkdir -p build/coverage
	$(BIN)/pytest --numprocesses auto --dist worksteal \
		--cov --cov-report term-missing:skip-covered --cov-report html:build/coverage/html $(TESTS)

lab: $(VENV)/.development $(VENV)/.data ## JupyterLab on the notebooks
	KEDRO_LOGGING_CONFIG=$(CURDIR)/conf/logging.yml $(BIN)/jupyter lab notebooks

viz: $(VENV)/.runtime $(VENV)/.data ## the pipeline map in a browser
	@echo 'The pipeline map: http://127.0.0.1:4141/'
	$(BIN)/kedro viz run --no-browser

map: $(VENV)/.runtime $(VENV)/.data ## the pipeline map as a static site in build/
	$(BIN)/kedro viz build --include-previews

notebooks: $(VENV)/.development $(VENV)/.data ## execute the notebooks in place on the outputs of the last run
	$(BIN)/python notebooks/execute.py

provenance: $(VENV)/.runtime ## the chain that made an output: make provenance OF=metrics MODEL=shared_bottom FOLDER=data
	@$(BIN)/python -m multitask_recommender.runs.provenance '$(or $(OF),metrics)' $(if $(MODEL),--model '$(MODEL)') --folder '$(or $(FOLDER),data)'

report: $(VENV)/.report $(VENV)/.data ## the report site in build/report from the outputs of the last run, of an environment: make report ENV=bookstore
	$(BIN)/python report/build.py $(if $(ENV),--env '$(ENV)')

serve: | $(BIN)/python ## the report site in a browser; stop it with Ctrl+C
	@test -f build/report/index.html || { echo "There is no report yet: run 'make report' first."; exit 1; }
	@echo 'The report: http://127.0.0.1:8000/'
	@$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory build/report

pictures: $(VENV)/.development $(VENV)/.data browser ## the pictures of the README from the report and the explorer: make pictures STUDY=bookstore
	$(BIN)/python report/pictures.py $(if $(STUDY),--study '$(STUDY)')

bench-quality: $(VENV)/.runtime $(VENV)/.data ## this project's model and its peers on one split; see benchmarks/README.md
	$(BIN)/python benchmarks/quality/run.py
	$(BIN)/python benchmarks/quality/five_fold.py

bench-speed: $(VENV)/.runtime $(VENV)/.data ## seconds of this project and its peers, in turn; see benchmarks/README.md
	$(BIN)/python benchmarks/speed/run.py

confirm: $(VENV)/.runtime $(VENV)/.data ## the core study on fresh splits, after everything is fixed; see benchmarks/README.md
	$(BIN)/python benchmarks/confirmation/run.py $(if $(ENV),--env '$(ENV)')

bench-scale: $(VENV)/.runtime ## time and memory of the pipelines by size of the data; see docs/scale.md
	$(BIN)/python benchmarks/scale/run.py

bench-spark: $(VENV)/.development ## one and two processes that train on Spark; see docs/scale.md
	$(BIN)/python benchmarks/spark/run.py

audit: $(BIN)/python ## known vulnerabilities of the pinned packages; needs an index that offers vulnerability data
	$(PIP) '.[audit]'
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

mutate: $(VENV)/.development ## mutation testing of metrics, statistics and splits: about an hour, not part of the tests
	$(PIP) --editable '.[dev,mutation]'
	nice -n 15 $(BIN)/mutmut run
	$(BIN)/mutmut results

clean: ## remove outputs of runs and caches; data/01_raw and the environment stay
	find data -mindepth 2 -not -path 'data/01_raw*' -not -name .gitkeep -type f -delete
	find data -mindepth 2 -type d -empty -delete
	rm -rf build mutants .pytest_cache .mypy_cache .ruff_cache
