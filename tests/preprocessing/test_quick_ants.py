"""antspyx is loaded without what only its plots and statistics take, and works all the same."""

import subprocess
import sys
from types import ModuleType

import pytest

LATER = "matplotlib mpl_toolkits sklearn statsmodels scipy.stats"


def run(code, folder):
    """What the code prints in a Python of its own, in words."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_what_n4_does_not_take_is_not_loaded_and_is_there_when_it_is_used(tmp_path):
    code = f"""
import sys
import numpy as np
from bagau_bids.preprocessing.quick_ants import load_ants
ants = load_ants()
print(set("{LATER}".split()).isdisjoint(sys.modules))
print(any(type(finder).__module__.startswith("bagau_bids") for finder in sys.meta_path))
field = np.random.default_rng(0).random((12, 12, 12)).astype(np.float32)
image = ants.from_numpy(field)
ants.plot(image, filename="slices.png")  # by Matplotlib
two = ants.regression_match_image(image, image, poly_order=1)  # by scikit-learn
print(np.abs(two.numpy() - field).max() < 1e-4)
import matplotlib.figure
from scipy import stats
print(stats.spearmanr([1, 2, 4], [2, 3, 9]).statistic > 0.99)
print(matplotlib.figure.Figure.__module__, load_ants() is ants, sys.modules["ants"] is ants)
"""
    unloaded, found, *works = run(code, tmp_path)
    assert (unloaded, found) == ("True", "False")
    assert works == ["True", "True", "matplotlib.figure", "True", "True"]
    assert (tmp_path / "slices.png").stat().st_size > 1000


@pytest.mark.parametrize("done", ["sklearn.one + 1", "class Plot(matplotlib.figure.Figure): pass"])
def test_an_antspyx_that_uses_them_at_once_is_loaded_as_it_is(tmp_path, done):
    for name, text in {
        "ants": f"import matplotlib.figure, sklearn\n{done}",
        "sklearn": "one = 1",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(text)
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text("")
    (tmp_path / "matplotlib" / "figure.py").write_text("class Figure: pass")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from bagau_bids.preprocessing.quick_ants import load_ants
ants = load_ants()
print(ants.sklearn.one, ants.matplotlib.figure.Figure.__module__)
"""
    assert run(code, tmp_path) == ["1", "matplotlib.figure"]


def test_nothing_is_put_off_beside_threads_of_the_user(tmp_path):
    code = """
import sys
from concurrent.futures import ThreadPoolExecutor
from bagau_bids.preprocessing.quick_ants import load_ants
with ThreadPoolExecutor(2) as pool:
    first, second = pool.map(lambda _: load_ants().n4_bias_field_correction, range(2))
print(first is second, "sklearn" in sys.modules)
"""
    assert run(code, tmp_path) == ["True", "True"]


def test_a_version_that_is_loaded_already_is_taken(monkeypatch):
    from bagau_bids.preprocessing.quick_ants import load_ants

    there = ModuleType("ants")
    monkeypatch.setitem(sys.modules, "ants", there)
    assert load_ants() is there
