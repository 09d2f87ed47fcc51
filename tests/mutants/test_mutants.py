"""The list of mutants fits the program: each still applies, and its test is there."""

import ast
from pathlib import Path

import pytest

from tests.mutants.mutants import MUTANTS, Mutant
from tests.mutants.runner import ROOT, apply


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_each_applies_once_and_names_a_test_that_is_there(mutant):
    text = (ROOT / mutant.file).read_text()
    assert text.count(mutant.old) == 1
    assert mutant.old != mutant.new
    if mutant.file.endswith(".py"):
        ast.parse(text.replace(mutant.old, mutant.new))  # broken in what it does, not in its syntax
    file, _, test = mutant.test.partition("::")
    assert f"def {test or 'test_'}" in (ROOT / file).read_text()


def test_there_are_many_and_no_two_are_the_same():
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS) >= 40
    assert len({mutant.what for mutant in MUTANTS}) == len(MUTANTS)


def test_one_that_does_not_apply_is_refused(tmp_path: Path):
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    for old in ("x = 1", "y = 1"):
        with pytest.raises(ValueError, match="does not apply: expected once"):
            apply(Mutant("broken", "a.py", old, "x = 2", "tests/test_a.py"), tmp_path)
