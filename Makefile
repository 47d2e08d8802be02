# The everyday commands; `make help` lists them.
.PHONY: setup demo test lint bench clean help
.DEFAULT_GOAL := help
SHELL := /bin/bash

# The environment is complete in itself: nothing of a ROS installation that the shell has sourced,
# or of another Python environment, may leak in.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV LD_LIBRARY_PATH
unexport AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH ROS_DISTRO RMW_IMPLEMENTATION
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE

# Virtual environments hold absolute paths: one that was copied or moved counts as not made.
STAMPS := .venv/stamps-$(shell pwd | cksum | cut -d ' ' -f 1)
RUN := .venv/bin/event-binning-grad
RECORDING ?=
CALIB ?=
SECTION ?=

setup: $(STAMPS)/package  ## prepare .venv: pinned packages, event messages, this package

demo: setup  ## simulate, replay through the node, check; RECORDING=path (CALIB=file) takes yours
	$(RUN) demo $(if $(RECORDING),--recording "$(RECORDING)") $(if $(CALIB),--calib "$(CALIB)")

# Nodes in processes of their own need the cores for themselves: those tests run one after the other.
test: setup  ## run the tests
	failed=0; \
	.venv/bin/python -m pytest -n auto --dist loadfile --ignore-glob='*/test_ros_*' || failed=1; \
	.venv/bin/python -m pytest test/test_ros_*.py || failed=1; \
	exit $$failed

lint: setup  ## ruff and pyright
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright

bench: setup  ## measure speed on this machine; SECTION=decoding, load, operator, egomotion, flow or intake: one part
	$(RUN) bench $(SECTION)

clean:  ## remove the environment and everything that was built or written
	rm -rf .venv build install log out *.egg-info .pytest_cache .ruff_cache .hypothesis

help:  ## list these commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(STAMPS)/environment: dev/setup.sh dev/requirements.txt dev/constraints.txt
	@dev/setup.sh environment
	@mkdir -p $(@D) && touch $@

$(STAMPS)/messages: $(STAMPS)/environment $(shell find dev/msgs -type f)
	@dev/setup.sh messages
	@touch $@

$(STAMPS)/package: $(STAMPS)/messages setup.py package.xml
	@dev/setup.sh package
	@touch $@
