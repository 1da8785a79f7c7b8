# Each target works on a fresh clone with nothing but Python (3.11 or later) and make.
PYTHON ?= python3
BIN := .venv/bin
# Artifacts (models, pairs, scores) stay in the clone unless told otherwise, so that `make lab` finds what quickstart made.
export ONESTEP_STORE ?= $(CURDIR)/.store
# Tests, notebooks and grids start many processes: where no bytecode may be kept, each takes 2.6 s longer to import torch.
unexport PYTHONDONTWRITEBYTECODE
# Two one-thread processes use two cores better than one two-thread process.
ONE_THREAD := OMP_NUM_THREADS=1 TQDM_DISABLE=1

.PHONY: quickstart test mutants test-slow lab notebooks chaos fuzz soak faults slurm gpu lint

quickstart: .venv/grid
	$(BIN)/onestep-bench run params/quickstart.yaml

test: .venv/ready lint
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" tests
	store=$$(mktemp -d) && trap 'rm -rf $$store' EXIT && $(ONE_THREAD) ONESTEP_STORE=$$store \
	$(BIN)/python -m pytest -n 2 --dist loadfile --nbval notebooks

test-slow: .venv/ready
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadfile -m slow tests

# Break one line at a time, in a copy; a test must notice each. `.venv/bin/python scripts/mutants.py samplers` runs some.
mutants: .venv/ready
	$(ONE_THREAD) $(BIN)/python scripts/mutants.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# On copies: playing leaves the checkout, and the cells that were run with its notebooks, as they are. Reports are shared.
# The server's root is the checkout: it serves no file from behind a link that leads out of its root. The path lets cells
# call `!onestep-bench` and `!papermill`. As root, in a container: `make lab LAB=--allow-root`.
lab: .venv/lab
	test -e lab/notebooks || $(BIN)/onestep-bench start lab
	test -e lab/reports || ln -s ../reports lab/reports
	@echo "lab/ is yours to change; for fresh copies of the notebooks move it away"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/lab/notebooks/tour.ipynb $(LAB)

# Store the notebooks again with the outputs of their default parameters.
notebooks: .venv/ready
	store=$$(mktemp -d) && trap 'rm -rf $$store' EXIT && $(ONE_THREAD) ONESTEP_STORE=$$store \
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace notebooks/*.ipynb

# kill -9 in the middle of training, five times, and of a grid, twenty times; the re-run must end in the same bits.
chaos: .venv/ready
	$(ONE_THREAD) $(BIN)/python scripts/chaos_training.py
	$(BIN)/python scripts/chaos_grid.py

# Ten thousand spoilt files of every format that is read; goes on where it was stopped, with tallies in reports/fuzz.
fuzz: .venv/ready
	$(ONE_THREAD) $(BIN)/python scripts/fuzz.py

# A grid of a thousand cells while its processes are killed every few seconds. Shorter: `make soak SOAK="--minutes 3 --cells 60"`.
soak: .venv/ready
	$(ONE_THREAD) $(BIN)/python scripts/soak.py $(SOAK)

# Full disks, removed folders, a clock set back, a frozen worker; then three users at one store, of whom two share a group.
# Needs root, for small disks and for users.
faults: .venv/ready
	$(ONE_THREAD) $(BIN)/python scripts/faults.py
	$(BIN)/python scripts/shared_store.py

# A SLURM of its own on this machine runs the quickstart's stages with two jobs, one of which is cancelled in the middle.
# Needs `apt-get install slurm-wlm munge`.
slurm: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cluster]'
	$(BIN)/python scripts/slurm.py

# What only a GPU can tell: every method against the CPU, resumption, compiled networks, ranks, throughput; then the first
# minutes of the CIFAR-10 grid. In pieces: `.venv/bin/python scripts/gpu.py methods resume`. Results in reports/gpu/DEVICE.
gpu: .venv/grid
	$(BIN)/python scripts/gpu.py

# What a target needs and no more: dev for tests, grid for runs, lab for JupyterLab. Modules are compiled as they are
# first imported: compiling all of torch takes longer than all the rest of the installation.
.venv/ready: EXTRAS = dev
.venv/grid: EXTRAS = grid
.venv/lab: EXTRAS = grid,lab
.venv/ready .venv/grid .venv/lab: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@
