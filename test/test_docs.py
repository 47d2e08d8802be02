"""The documentation: its code runs, its table is that of the code, its links lead somewhere."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType

import numpy as np
import pytest
import torch

from event_binning_grad.binning import bspline, kernel, operator
from event_binning_grad.binning.kernels import KERNELS, synthesis, tap_table
from event_binning_grad.binning.piecewise import PiecewisePolynomial
from event_binning_grad.cli import main
from event_binning_grad.evaluation.operator_picture import plot_operator, slopes

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OPERATOR = ROOT / "docs" / "operator.md"


def code_blocks() -> Iterator[tuple[str, CodeType]]:
    """Every Python block of the pages, by page and line, compiled so that errors name the line."""
    for page in PAGES:
        text = page.read_text()
        for block in re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            line = text.count("\n", 0, block.start(1)) + 1
            code = compile("\n" * (line - 1) + block[1], page.name, "exec")
            yield f"{page.name}:{line}", code


BLOCKS = dict(code_blocks())


@contextmanager
def as_in_a_fresh_interpreter() -> Iterator[None]:
    """Puts back what a block changes for all: the random numbers and the registered kernels."""
    before, threads = dict(KERNELS), torch.get_num_threads()
    torch.set_num_threads(1)  # small problems: threads only wait for one another
    with torch.random.fork_rng():
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            KERNELS.clear()
            KERNELS.update(before)
            operator.kernel_pairs.cache_clear()  # it goes by the kernels' names


def test_every_page_has_code():
    assert {name.partition(":")[0] for name in BLOCKS} == {"README.md", "operator.md"}


@pytest.mark.parametrize("name", BLOCKS)
def test_code_of_the_documentation_runs(name: str):
    with as_in_a_fresh_interpreter():
        exec(BLOCKS[name], {"__name__": name})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path):
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text())
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in anchors, link


def commands() -> list[str]:
    found = [re.findall(r"event-binning-grad ([a-z-]+)", page.read_text()) for page in PAGES]
    return sorted({command for page in found for command in page})


@pytest.mark.parametrize("command", commands())
def test_commands_of_the_documentation_exist(command: str):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0


# ----------------------------------------------------------------------------------------- picture


@pytest.mark.parametrize("binning", ["rect", "linear"])
def test_slopes_of_the_picture_are_what_the_text_says(binning: str):
    found = slopes(binning, points=41)
    difference = found.long_range

    def error(slope: np.ndarray) -> float:
        return float(np.linalg.norm(slope - difference) / np.linalg.norm(difference))

    assert 0.9 < found.synthesised @ difference / (difference @ difference) < 1.2
    assert error(found.synthesised) < 0.3
    assert error(found.raw) > 1.5 * error(found.synthesised)
    assert found.raw.any() == (binning != "rect")


def test_picture_is_drawn_and_is_there(tmp_path: Path):
    pytest.importorskip("matplotlib")
    drawn = plot_operator(tmp_path / "operator.png").read_bytes()
    kept = (ROOT / "docs" / "operator.png").read_bytes()
    for picture in (drawn, kept):
        assert picture.startswith(b"\x89PNG")
        assert len(picture) < 150_000


# ------------------------------------------------------------------------------------ kernel table

COLUMNS = 8
U = np.linspace(-4, 4, 1601) + 1e-4  # not at a break


def kernel_rows() -> list[list[str]]:
    section = OPERATOR.read_text().partition("## Kernels")[2].partition("\n## ")[0]
    lines = [line.replace(r"\|", "") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def derivatives_that_are_continuous(shape: PiecewisePolynomial) -> str:
    """In the words of the table."""
    continuous = -1
    while True:
        breaks = np.array([float(b) for b in shape.breaks])
        if np.abs(shape(breaks + 1e-9) - shape(breaks - 1e-9)).max() > 1e-5:
            return f"C{continuous}" if continuous >= 0 else "with jumps"
        continuous += 1
        shape = shape.derivative()


def total_over_bins(shape: PiecewisePolynomial) -> str:
    positions = np.linspace(0, 1, 1001)[:-1, None] + 1e-4
    totals = shape(positions - np.arange(-8, 9)).sum(1)
    if np.ptp(totals) < 1e-9:
        return f"{totals[0]:g}"
    return f"{totals.min():.3f} to {totals.max():.3f}"


def test_kernel_table_has_every_kernel():
    names = [row[0].strip('`"') for row in kernel_rows()]
    # In a process of its own: other tests register kernels.
    script = "from event_binning_grad.binning.kernels import KERNELS; print(*KERNELS)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {*run.stdout.split(), "gaussian", "lanczos"} == set(names)
    assert all(len(row) == COLUMNS for row in kernel_rows())


@pytest.mark.parametrize("row", kernel_rows(), ids=lambda row: row[0].strip('`"'))
def test_kernel_table_is_that_of_the_code(row: list[str]):
    name, formula, reach, smoothness, total, kappa_reach, kappa_smoothness, bins = row
    k = kernel(name.strip('`"'))
    kappa = synthesis(k, bspline(1))
    names = {"exp": math.exp, "sqrt": math.sqrt, "pi": math.pi, "abs": abs, "sinc": np.sinc}
    expression = compile(formula.strip("`"), "formula", "eval")
    values = [eval(expression, names | {"u": u}) if abs(u) < float(reach) else 0.0 for u in U]
    np.testing.assert_allclose(k(U), values, atol=1e-5)

    assert [-float(reach), float(reach)] == [k.shape.breaks[0], k.shape.breaks[-1]]
    assert float(kappa_reach) == kappa.breaks[-1]
    assert smoothness == derivatives_that_are_continuous(k.shape)
    assert kappa_smoothness == derivatives_that_are_continuous(kappa)
    assert total == total_over_bins(k.shape)
    assert bins == f"{tap_table(k.shape).taps}, {tap_table(kappa).taps}"


def test_splines_and_their_synthesis_kernels_are_as_documented():
    for binning, same_as in (("rect", "quadratic"), ("linear", "cubic")):
        kappa, expected = synthesis(kernel(binning), kernel("linear")), kernel(same_as).shape
        assert (kappa.breaks, kappa.pieces) == (expected.breaks, expected.pieces)
    assert f"{float(kernel('gaussian').shape.integral()):.4f}" in OPERATOR.read_text()
