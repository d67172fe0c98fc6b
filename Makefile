# Two commands do everything, set-up included: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Written when everything is installed: a repeat installs nothing until one of these files changes.
STAMP  := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help install demo up down test lint bench-model bench-data bench-training bench-release bench-service test-faults test-hosts test-ceph test-faults-20 test-training-20 test-cluster-20 test-release-20 endurance soak full-size claims sbom audit clean

help:  ## say what there is
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/make \1\t\2/' | expand -t 20

install: $(STAMP)  ## create .venv with the pinned packages

# torch on its own first: nothing else may choose which build of it arrives.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[test]' -c constraints.txt
# wids, one of the readers of our shards under test: webdataset 1.0 no longer brings it.
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/wids webdataset==0.2.111
	touch $@

demo: $(STAMP)  ## photos in, a verified checkpoint and runs/demo/report.html out
	$(BIN)/moa demo

# OPTIONS are those of `moa up`: OPTIONS='--preset sd15 --source folder:/photos --workspace /srv/moa'.
up: $(STAMP)  ## the whole service on this machine, without containers; OPTIONS='--source folder:PATH' as for moa up
	$(BIN)/moa up $(OPTIONS)

down: $(STAMP)  ## and down again, with the same OPTIONS
	$(BIN)/moa down $(OPTIONS)

test: lint  ## lint, types and the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not faults and not hosts" -n 2 --dist loadfile --no-loadscope-reorder --durations 12

lint: $(STAMP)  ## style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-model: $(STAMP)  ## the model's speed beside the stock pipeline's and full fine-tuning's (20 GB)
	$(BIN)/python -m tests.benchmarks.model

bench-data: $(STAMP)  ## ingest, caption, segment and shards beside the bare work in them
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.data

test-faults: $(STAMP)  ## kill a training in every way that it should survive, and compare its weights bit for bit
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m faults tests

test-hosts: $(STAMP)  ## a retraining on six hosts over a slow, lossy network, each cut off and killed; root, half an hour
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m hosts tests

# What asks a store for anything.
RELEASE_TESTS := $(addprefix tests/infra/test_,storage.py large_objects.py multipart_upload.py steady_file.py blobs.py registry.py old_registry.py release_names.py \
	release_signatures.py release_cache.py upkeep.py pulling.py) tests/faults/test_release_faults.py

TRAINING_FAULTS := $(addprefix tests/faults/test_,training_processes.py training_storage.py training_course.py)
CLUSTER_FAULTS := $(addprefix tests/faults/test_,preemption.py growth.py sharded_training.py cluster_job_faults.py) \
	tests/flows/test_training_loop.py

test-ceph: $(STAMP)  ## storage and releases on a real Ceph gateway: apt-get install ceph-mon ceph-osd radosgw
	OMP_NUM_THREADS=1 $(BIN)/python -m infra.ceph run $(BIN)/python -m pytest $(RELEASE_TESTS) tests/infra/test_ceph.py

test-faults-20: $(STAMP)  ## the same 20 times in a row, each with other random moments; goes on where it was
	$(BIN)/python -m tests.faults.repeat --times 20

test-training-20: $(STAMP)  ## of the same what concerns trainings alone: processes, nodes, stores, disks, shards
	$(BIN)/python -m tests.faults.repeat --times 20 --name training-faults $(TRAINING_FAULTS)

test-cluster-20: $(STAMP)  ## and what concerns clusters: preemption, sharded weights, Ray Jobs
	$(BIN)/python -m tests.faults.repeat --times 20 --name cluster-faults $(CLUSTER_FAULTS)

test-release-20: $(STAMP)  ## publishing, pulling and hostile registries 20 times in a row; goes on where it was
	$(BIN)/python -m tests.faults.repeat --times 20 --select "" --name release-faults $(RELEASE_TESTS) tests/faults/test_hostile_registry.py

bench-training: $(STAMP)  ## the loader beside webdataset, workers, checkpoints; with a GPU also steps beside full fine-tuning
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.training
	if $(BIN)/python -c "import torch, sys; sys.exit(not torch.cuda.is_available())"; then \
		$(BIN)/python -m tests.benchmarks.training_gpu; fi

bench-release: $(STAMP)  ## publish and pull of 1 GB beside boto3's own transfers, an evaluation beside its drawing; ENDPOINT=… for another server than moto's
	$(BIN)/python -m tests.benchmarks.release $(if $(ENDPOINT),--endpoint $(ENDPOINT))

bench-service: $(STAMP)  ## Prefect's pages after 10,000 runs beside those after one
	$(BIN)/python -m tests.benchmarks.prefect_history

endurance: $(STAMP)  ## 20,000 photos on two Ray nodes and S3, once in peace, once killed ten times; hours on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.endurance

soak: $(STAMP)  ## the service retrains 20 times by itself, a random fault each, into a dated page; as root with PostgreSQL and a disk that runs full
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.soak --retrains 20

claims: $(STAMP)  ## train and measure what the paper claims, into evaluation/CLAIMS.md; hours, goes on where it was
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.claims

full-size: $(STAMP)  ## SD 1.5 and SDXL at full size, random weights: attach, train, draw, save, load (12 GiB)
	$(BIN)/python -m tests.benchmarks.full_size

# In an environment of its own: the tools are no part of what they look at.
TOOLS := build/tools
$(TOOLS)/installed: Makefile
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet cyclonedx-bom==7.5.0 pip-audit==2.10.1
	touch $@

sbom: $(STAMP) $(TOOLS)/installed  ## all that is installed, as CycloneDX in build/sbom.json
	$(TOOLS)/bin/cyclonedx-py environment --output-reproducible --of JSON -o build/sbom.json $(BIN)/python
	@echo build/sbom.json

audit: $(STAMP) $(TOOLS)/installed  ## known holes in what is installed; asks a public database, so it needs a network
	$(BIN)/python -m infra.audit $(TOOLS)/bin/pip-audit

clean:  ## remove .venv, runs and caches
	rm -rf $(VENV) runs build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
