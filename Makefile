PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
SUITE ?= mini
OPTIONS ?=
RUN := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup reproduce report test lint format train bench clean data-voc2007 data-coco2014 data-coco2014-train data-severstal weights

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 20

$(VENV)/.done: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "camexp needs Python >= 3.11, found " + sys.version.split()[0] + "; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[dev]'
	@touch $@

setup: $(VENV)/.done  ## make the virtual environment and install (CONSTRAINTS= for the newest versions)

reproduce: setup  ## run the suite that fills the papers' tables, and print them (SUITE=mini DRY= OPTIONS=)
	@$(RUN) -m camexp.reproduce $(SUITE) $(if $(DRY),--dry-run) $(OPTIONS)

report: setup  ## print the tables again from the records alone (OPTIONS=--details)
	@$(RUN) scripts/report.py $(OPTIONS)

test: setup  ## run the tests
	$(RUN) -m pytest -n auto

lint: setup  ## check style, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: setup  ## bring the code into format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: setup  ## measure speed against the network's own and other libraries', in 15 minutes (OPTIONS="--budget 60")
	@$(RUN) scripts/bench.py $(OPTIONS)

train: setup  ## train the embedded checkpoints anew (about an hour on two cores)
	$(RUN) scripts/train.py dataset=minivoc model=resnet50 output=embedded overwrite=true
	$(RUN) scripts/train.py dataset=minivoc model=vgg16 model.head=128 recipe.half_epochs=28 recipe.full_epochs=5 output=embedded overwrite=true
	$(RUN) scripts/train.py dataset=minicoco model=resnet50 output=embedded overwrite=true
	$(RUN) scripts/train.py dataset=minicoco model=vgg16 model.head=128 recipe.half_epochs=28 recipe.full_epochs=6 output=embedded overwrite=true
	$(RUN) scripts/train.py dataset=ministeel model=resnet101 output=embedded overwrite=true

data-voc2007: setup  ## fetch VOC 2007 into data/ (0.9 GB; OPTIONS=--dry-run shows what and from where)
	@$(RUN) scripts/download.py voc2007 $(OPTIONS)

data-coco2014: setup  ## fetch COCO 2014's validation images and annotations into data/ (6.9 GB)
	@$(RUN) scripts/download.py coco2014 $(OPTIONS)

data-coco2014-train: setup  ## also fetch COCO 2014's training images, for training on them (another 13 GB)
	@$(RUN) scripts/download.py coco2014 coco2014_train $(OPTIONS)

data-severstal: setup  ## explain Kaggle's step for Severstal, and unpack it (OPTIONS="--from FILE")
	@$(RUN) scripts/download.py severstal $(OPTIONS)

weights: setup  ## fetch TorchRay's four checkpoints (CC BY-NC 4.0) into data/weights and convert them
	@$(RUN) scripts/download.py weights $(OPTIONS)

clean:  ## delete the environment, caches, generated data and results (fetched data and published numbers stay)
	rm -rf $(VENV) data/minivoc data/minicoco data/ministeel build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find results -mindepth 1 -maxdepth 1 ! -name published ! -name README.md -exec rm -rf {} +
	find . -name __pycache__ -prune -exec rm -rf {} +
