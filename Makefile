# PYTHON: any Python 3.11 or newer. PARAMS: the params file of `make study`. MARK: which tests; `make test MARK=` for all.
# EXECUTE: `make book EXECUTE=1`. The book needs no torch; it trains nothing.
PYTHON = python3
PARAMS = params/smoke.yaml
MARK = not slow

.PHONY: study test check book bench clean

study: .venv/installed  ## run the study of PARAMS, build its book, print the page to open
	.venv/bin/iumad run $(PARAMS) && .venv/bin/iumad book $(PARAMS)

test: check  ## all checks, then the tests that MARK chooses, on up to four cores
	.venv/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadgroup -m "$(MARK)"

check: .venv/installed  ## style, types, import rules
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports

book: .venv/book  ## build the published book; EXECUTE=1 executes its pages anew from the published tables first
	.venv/bin/iumad book $(if $(EXECUTE),--execute)

bench: .venv/installed  ## timings on this machine
	for script in benchmarks/bench_*.py; do .venv/bin/python $$script; done

clean:  ## remove what was built; results/ stays
	rm -rf build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache

.venv/book: pyproject.toml
	$(PYTHON) -m venv .venv && .venv/bin/python -m pip install --quiet --editable ".[book]" && touch $@

.venv/installed: .venv/book
	.venv/bin/python -m pip install --quiet --editable ".[dev]" && touch $@
