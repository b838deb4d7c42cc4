"""Prints the values that the tests of reward/src/eval compare with.

pip install numpy scipy scikit-learn
python tests/golden/comparison_statistics.py
"""

import numpy as np
from scipy.stats import binomtest, spearmanr
from sklearn.metrics import roc_auc_score

for wins, pairs in [(7, 10), (0, 5), (5, 5), (697, 1000)]:
    interval = binomtest(wins, pairs).proportion_ci(0.95, method="wilson")
    print("wilson", wins, pairs, repr(float(interval.low)), repr(float(interval.high)))

# Scores on a grid of 16 levels, so that ties are frequent; the same integers in Rust.
state = 1
def draw():
    global state
    state = (state * 48271) % 2147483647
    return state
pairs = [(draw() % 20 / 16, draw() % 16 / 16) for _ in range(500)]
positives, negatives = np.array(pairs).T
outcomes = (positives > negatives) + 0.5 * (positives == negatives)
print("accuracy", repr(outcomes.mean()), "ties as wins", repr((positives >= negatives).mean()), "ties", (positives == negatives).sum())
print("gap", repr((positives - negatives).mean()))
print("auc", repr(float(roc_auc_score([1] * 500 + [0] * 500, np.concatenate([positives, negatives])))))

# Prompt-clustered bootstrap, drawn cluster by cluster: prompts of 1 to 9 pairs, pair i belongs to prompt (i * i) % 97.
generator = np.random.default_rng(0)
prompts = np.arange(500) ** 2 % 97
clusters = [outcomes[prompts == prompt] for prompt in np.unique(prompts)]
wins, counts = np.array([c.sum() for c in clusters]), np.array([len(c) for c in clusters])
chosen = generator.integers(len(clusters), size=(200_000, len(clusters)))
print("bootstrap", len(clusters), np.percentile(wins[chosen].sum(1) / counts[chosen].sum(1), [2.5, 97.5]))

for wins, pairs in [(7, 10), (0, 5), (3, 3), (50, 100), (61, 100), (231, 400), (1200, 2300)]:
    print("sign test", wins, pairs, repr(float(binomtest(wins, pairs).pvalue)))
print("spearman", spearmanr([1, 2, 2, 3.5, 5, 4, 0.5, 2], [0.3, 0.9, 0.7, 0.7, 1.2, 1.1, 0.4, 0.1]).statistic)
