"""The README's example, as a newcomer would run it."""

import re
from pathlib import Path

import numpy as np
import pytest


@pytest.mark.slow
def test_the_example_runs_and_its_students_balance_the_pole():
    code = re.search(
        r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL
    )
    names: dict = {}
    exec(code.group(1), names)
    assert names["metrics"]["return"].shape == (16, 100) and names["score"].shape == (16,)
    assert (
        np.median(names["score"]) >= 400
    )  # of 500; sixteen students without any teaching would have about 20
