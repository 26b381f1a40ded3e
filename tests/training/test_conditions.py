"""Random numbers of a run: every library's follow from seed, step and process, and those of the caller come back."""

from __future__ import annotations

import random

import numpy as np
import torch

from workbench.training.conditions import conditions, seed_step


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_step_draws_the_same_again_and_another_step_or_process_others() -> None:
    with conditions(threads=1):
        held = {}
        for place in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0), (2**63 - 1, 10**6, 63)):
            seed_step(*place)
            held[place] = drawn()
            seed_step(*place)
            assert drawn() == held[place]
    for numbers in zip(*held.values(), strict=True):
        assert len(set(numbers)) == len(held)


def test_the_caller_s_random_numbers_and_threads_are_left_as_they_were() -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    expected = drawn()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    threads = torch.get_num_threads()
    with conditions(threads=threads + 1):
        seed_step(0, 0, 0)
        drawn()
    assert drawn() == expected and torch.get_num_threads() == threads
