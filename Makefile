# PYTHON: any Python 3.11 or newer. PARAMS: the params file of `make study`. MARK: which tests; `make test MARK=` for all.
# VENV: the environment, created where there is none; `make study VENV=$CONDA_PREFIX` takes conda's.
# EXECUTE: `make book EXECUTE=1`. The book needs no torch; it trains nothing.
PYTHON = python3
VENV = .venv
PARAMS = params/smoke.yaml
MARK = not slow
export PYTHONDONTWRITEBYTECODE =  # empty: rewritten tests are kept for the next time

.PHONY: study test attack check book bench clean

study: $(VENV)/installed  ## run the study of PARAMS, build its book, print the page to open
	$(VENV)/bin/iumad run $(PARAMS) && $(VENV)/bin/iumad book $(PARAMS)

test: check  ## all checks, then the tests that MARK chooses, on up to four cores
	$(VENV)/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadgroup --durations 25 -m "$(MARK)"

attack: $(VENV)/installed  ## hostile params, data, results, names and commands by the hundred, kills; prints the tally
	IUMAD_EXAMPLES=300 IUMAD_KILLS=20 $(VENV)/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadgroup tests/attack

check: $(VENV)/installed  ## style, types, import rules
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy && $(VENV)/bin/lint-imports

book: $(VENV)/book  ## build the published book; EXECUTE=1 executes its pages anew from the published tables first
	$(VENV)/bin/iumad book $(if $(EXECUTE),--execute)

bench: $(VENV)/installed  ## timings on this machine
	for script in benchmarks/bench_*.py; do $(VENV)/bin/python $$script; done

clean:  ## remove what was built; results/ stays
	rm -rf build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/book: pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable ".[book]" && touch $@

$(VENV)/installed: $(VENV)/book
	$(VENV)/bin/python -m pip install --quiet --editable ".[dev]" && touch $@
