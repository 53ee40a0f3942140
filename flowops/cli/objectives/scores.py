"""What codes and clusters are worth to someone who knows the classes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray


def match_clusters(
    train: NDArray[Any],
    train_labels: NDArray[np.int64],
    test: NDArray[Any],
    test_labels: NDArray[np.int64],
    clusters: int,
) -> dict[str, float]:
    """Return test accuracies of clusters as classes, the match being made on training images.

    Args:
        train: Cluster of each training image.
        train_labels: Class of each.
        test: Cluster of each test image.
        test_labels: Class of each.
        clusters: Number of clusters.

    Returns:
        ``many_to_one``: every cluster stands for its most frequent class, so that several may for
        one; ``hungarian``: at most one cluster for a class, the best such match.
    """
    from scipy.optimize import linear_sum_assignment

    classes = int(max(train_labels.max(), test_labels.max())) + 1
    counts = np.zeros((clusters, classes), dtype=np.int64)
    np.add.at(counts, (train, train_labels), 1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    one_to_one = np.full(clusters, -1)
    one_to_one[rows] = columns
    return {
        "many_to_one": float((counts.argmax(1)[test] == test_labels).mean()),
        "hungarian": float((one_to_one[test] == test_labels).mean()),
    }


def linear_probe(
    train: NDArray[Any],
    train_labels: NDArray[np.int64],
    test: NDArray[Any],
    test_labels: NDArray[np.int64],
) -> float:
    """Return the test accuracy of multinomial logistic regression on standardised features."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    with warnings.catch_warnings():
        # Its accuracy settles long before its weights do.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(train, train_labels)
    return float(probe.score(test, test_labels))
