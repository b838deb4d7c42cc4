"""Prints the values that the tests of reward/src/metrics/{frechet,kernel_distance}.rs compare with.

pip install numpy scipy
python tests/golden/set_distances.py
"""

import numpy as np
from scipy.linalg import sqrtm


def features(count, width, step, shift):
    values = np.sin(np.arange(count * width, dtype=np.float64) * step) + shift
    return values.reshape(count, width)


def frechet(x, y):
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)


def kernel(x, y):
    """Unbiased squared maximum mean discrepancy, polynomial kernel (x.y / d + 1)^3."""
    k = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
    off = lambda a: (k(a, a).sum() - np.trace(k(a, a))) / (len(a) * (len(a) - 1))
    return off(x) + off(y) - 2 * k(x, y).mean()


x, y = features(20, 5, 0.37, 0.0), features(15, 5, 0.53, 0.25)
print("frechet", repr(float(frechet(x, y))), "kernel", repr(float(kernel(x, y))))
