# make demo   install into .venv, segment two bundled photographs with the embedded model into demo_output/
# make test   the same installation, then the tests          make test PYTEST_ARGS="tests/unit -k boxes"
# make lint   ruff and mypy                                  make format: what ruff can set right by itself
# make embedded   train the head that the package carries; images below HQSAM_DATA (docs/models/hq_vit_tiny.md)
# make lock   rewrite requirements/lock.txt from .venv
# HQSAM_PYTHON names the interpreter (default python3, >= 3.10); versions are locked for Python 3.11.

PYTHON := $(if $(HQSAM_PYTHON),$(HQSAM_PYTHON),python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.hqsam-installed
WORKERS ?= 2
PYTEST_ARGS ?=

# albumentations asks the network for a newer version on import unless told not to
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: demo test lint format embedded lock clean

demo: $(STAMP)
	$(BIN)/hqsam predict data/samples/rocket.jpg --box 311,127,333,406 --out demo_output/box
	$(BIN)/hqsam predict data/samples/camera.png --point 293,280 --point 347,400 --point 256,430 --out demo_output/points
	@echo "The masks, overlays and JSON files are in $(CURDIR)/demo_output"

# one thread per worker: processes share two cores better than the threads of one process do
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

embedded: export HQSAM_DATA := $(if $(HQSAM_DATA),$(HQSAM_DATA),../shared/data)
embedded: $(STAMP)
	$(BIN)/python train.py configs/train/hq_vit_tiny_embedded.yaml
	$(BIN)/python train.py configs/train/hq_vit_tiny_embedded_2.yaml
	$(BIN)/python train.py configs/train/hq_vit_tiny_embedded_3.yaml
	$(BIN)/python train.py configs/train/hq_vit_tiny_embedded_4.yaml
	$(BIN)/hqsam convert runs/hq_vit_tiny_embedded_4/model.safetensors hqsam/assets/hq_head.safetensors --part hq --dtype float16 --recommended-refine again+again --recommended-heed-clicks yes --recommended-upsampling guided

lock: $(STAMP)
	$(BIN)/python requirements/freeze.py > requirements/lock.txt.tmp
	mv requirements/lock.txt.tmp requirements/lock.txt

clean:
	rm -rf demo_output build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(STAMP): pyproject.toml requirements/lock.txt
	@test -x $(BIN)/pip || $(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("hqsam needs Python >= 3.10, but $(PYTHON) is " + sys.version.split()[0] + "; name another one with HQSAM_PYTHON=...")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then \
		set -- --constraint requirements/lock.txt; \
	else \
		echo "Note: $$($(BIN)/python -V) is not Python 3.11, for which requirements/lock.txt fixes the versions;"; \
		echo "      the newest versions that pyproject.toml allows are installed instead (HQSAM_PYTHON names another interpreter)."; \
	fi; \
	$(BIN)/pip install --quiet --disable-pip-version-check "$$@" --editable '.[app,dev,lvis,onnx,parity,text]'
	@touch $@
