# The habits. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help setup quick test coverage lint format docs figures lock audit image

help: ## this list
	@grep -E '^[a-z]+: ?.*## ' Makefile | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

setup: ## install into the active environment, with what tests need
	pip install -c constraints.txt -e '.[test]'

quick: ## what finds most mistakes soonest
	pytest -n 0 -x tests/test_style.py tests/test_package.py tests/detect/test_clip_inspector.py tests/reports/test_formats.py

test: ## everything, on two cores
	pytest

coverage: ## lines that no test runs, in any process (needs the extra `coverage`; slower than test)
	pytest --cov --cov-report=term-missing

lint: ## ruff, mypy, and zizmor on what GitHub runs
	ruff check .
	ruff format --check .
	mypy
	zizmor --offline --persona=auditor . .github/examples/*.yml

format: ## what ruff can mend
	ruff check --fix .
	ruff format .

docs: ## the pages, into site/; a broken link is an error
	mkdocs build --strict

figures: ## figures and pictures of README and docs, from their records
	hf-ci lab docs

lock: ## pin what CI installs, with hashes (needs uv and network)
	uv pip compile pyproject.toml requirements-ci.in --extra test -c constraints.txt --universal --python-version 3.11 \
		--generate-hashes --no-config --custom-compile-command 'make lock' --output-file requirements-ci.txt

audit: ## known weaknesses of what is pinned (needs network)
	pip-audit --strict --disable-pip --require-hashes -r requirements-ci.txt

image: ## the container image (needs Docker and network)
	docker build -t hf-ci .
