"""No formula can change by one percent without a test that notices (tests/mutants.py)."""

import time

import pytest

import mutants

EXCUSES = {module: mutants.excuses_of(module) for module in mutants.MODULES}


def is_excused(mutant):
    return any(excuse.covers(mutant) for excuse in EXCUSES[mutant.module])


def test_every_excuse_is_of_something_that_is_still_there():
    for module, excuses in EXCUSES.items():
        every = list(mutants.mutants_of(module))
        for excuse in excuses:
            assert any(map(excuse.covers, every)), f"{module}.py:{excuse.comment}"


@pytest.mark.slow
def test_no_mutant_survives(capsys):
    every = [mutant for module in mutants.MODULES for mutant in mutants.mutants_of(module)]
    start = time.monotonic()
    left = mutants.survivors([mutant for mutant in every if not is_excused(mutant)])
    seconds = time.monotonic() - start
    with capsys.disabled():
        print(
            f"\n{len(every)} mutants in {seconds:.0f} s; {sum(map(is_excused, every))} "
            f"excused as unobservable, {len(left)} survive"
        )
        for mutant in left:
            print(f"  {mutant.module}.py:{mutant.line} {mutant.name}")
    assert not left and seconds < 1800
