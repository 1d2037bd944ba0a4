"""Intervals, detection and calibration are those of their definitions."""

import math

import pytest
import torch

from worldmodel.stats import auroc, bootstrap_interval, calibration, jensen_shannon_divergence


def test_an_interval_holds_the_mean_and_narrows_with_the_root_of_the_number():
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0)) + 3
    few, many = bootstrap_interval(values[:250]), bootstrap_interval(values)
    assert few["low"] < few["mean"] < few["high"]
    assert many["high"] - many["low"] == pytest.approx(2 * 1.96 / math.sqrt(4000), rel=0.1)
    assert (few["high"] - few["low"]) / (many["high"] - many["low"]) == pytest.approx(4, rel=0.2)
    assert bootstrap_interval(torch.full((5,), 2.0)) == {"mean": 2, "low": 2, "high": 2}


def test_an_interval_over_episodes_is_as_wide_as_their_number_says():
    generator = torch.Generator().manual_seed(0)
    levels = torch.randn(16, generator=generator)
    values, episodes = levels.repeat_interleave(100), torch.arange(16).repeat_interleave(100)
    alone, together = bootstrap_interval(values), bootstrap_interval(values, episodes)
    assert together["mean"] == pytest.approx(alone["mean"])
    assert (together["high"] - together["low"]) / (alone["high"] - alone["low"]) == pytest.approx(10, rel=0.3)
    assert bootstrap_interval(torch.tensor([1.0, 2, 3]), torch.zeros(3)) == {"mean": 2, "low": 2, "high": 2}


def test_auroc_counts_the_pairs_in_order():
    positive = torch.tensor([False, False, True, True])
    assert auroc(torch.tensor([0.1, 0.2, 0.3, 0.4]), positive) == 1
    assert auroc(torch.tensor([0.4, 0.3, 0.2, 0.1]), positive) == 0
    assert auroc(torch.tensor([0.1, 0.3, 0.2, 0.4]), positive) == 0.75
    assert auroc(torch.ones(4), positive) == 0.5
    assert auroc(torch.ones(4), torch.zeros(4, dtype=torch.bool)) == 0.5


def test_calibration_of_true_probabilities_is_the_diagonal():
    generator = torch.Generator().manual_seed(0)
    chance = torch.rand(50_000, generator=generator)
    groups = calibration(chance, torch.rand(50_000, generator=generator) < chance)
    assert len(groups) == 10
    for group in groups:
        assert group["observed"] == pytest.approx(group["predicted"], abs=0.03)


def test_divergence_is_zero_for_equal_histograms_and_one_bit_for_disjoint_ones():
    assert jensen_shannon_divergence(torch.tensor([2, 0, 6]), torch.tensor([1, 0, 3])) == pytest.approx(0)
    assert jensen_shannon_divergence(torch.tensor([5, 0]), torch.tensor([0, 1])) == pytest.approx(1)
