"""MNIST-1D is the data set that its authors publish."""

import numpy as np
import pytest

from elman.data.mnist1d import mnist1d


def test_the_default_set_equals_the_authors_package() -> None:
    data = pytest.importorskip("mnist1d.data")
    theirs, ours = data.make_dataset(), mnist1d()
    for (signals, labels), suffix in ((ours.train, ""), (ours.test, "_test")):
        np.testing.assert_allclose(signals, theirs["x" + suffix], rtol=0, atol=1e-14)
        assert (labels == theirs["y" + suffix]).all()


def test_another_seed_makes_another_set() -> None:
    one, other = mnist1d(), mnist1d(seed=1)
    both = np.concatenate([one.train[0], one.test[0]])
    assert both.shape == (5000, 40)
    assert both.mean() == pytest.approx(0, abs=1e-12)
    assert both.std() == pytest.approx(1)
    assert (np.bincount(np.concatenate([one.train[1], one.test[1]])) == 500).all()
    assert not np.allclose(one.train[0], other.train[0])
