"""How a pack lies in a row: positions, mask, and which place predicts which token."""

from __future__ import annotations

import numpy as np
import torch

from workbench.training.batch import collate, tree_mask
from workbench.training.packing import Example, Pack


def example(name: str, question: list[int], answer: list[int], image: str | None = "i", tokens: int = 2) -> Example:
    head = [1] if image is None else [1, -200]
    ids = np.array([*head, *question, *answer], np.int32)
    trained = np.arange(len(ids)) >= len(ids) - len(answer)
    if image is None:
        return Example(name, ids, trained)
    return Example(name, ids, trained, shared=2, images=(image,), counts=(tokens,))


def test_branches_follow_the_prefix_and_restart_its_positions() -> None:
    first, second = example("a", [20], [30, 31]), example("b", [21, 22], [32])
    batch = collate([Pack((first, second))], image_token_id=9)
    assert batch.input_ids.tolist() == [[1, 9, 9, 20, 30, 31, 21, 22, 32]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 3, 4, 5]]
    assert batch.mask is not None and batch.mask.shape == (1, 1, 9, 9)
    assert batch.mask[0, 0, 8].tolist() == [True] * 3 + [False] * 3 + [True] * 3
    assert batch.mask[0, 0, 5].tolist() == [True] * 6 + [False] * 3
    assert list(zip(batch.rows.tolist(), batch.targets.tolist(), strict=True)) == [(3, 30), (4, 31), (7, 32)]
    assert batch.conversations.tolist() == [0, 0, 1] and batch.ids == ("a", "b") and batch.images == ("i",)


def test_the_last_place_of_the_prefix_predicts_the_first_token_of_every_branch() -> None:
    """In template `plain` a caption begins right behind its image."""
    captions = [example(str(n), [], [30 + n, 40 + n]) for n in range(3)]
    batch = collate([Pack(tuple(captions))], image_token_id=9)
    assert batch.rows.tolist() == [2, 3, 2, 5, 2, 7]
    assert batch.targets.tolist() == [30, 40, 31, 41, 32, 42]


def test_shorter_rows_end_in_padding_that_nothing_sees() -> None:
    long, short = Pack((example("a", [20, 21, 22], [30]),)), Pack((example("t", [], [31], image=None),))
    batch = collate([long, short], image_token_id=9, pad_id=3)
    assert batch.input_ids.tolist() == [[1, 9, 9, 20, 21, 22, 30], [1, 31, 3, 3, 3, 3, 3]]
    assert batch.mask is None, "one conversation a row is plain causal"
    assert batch.rows.tolist() == [5, 7] and batch.targets.tolist() == [30, 31]
    assert batch.images == ("i",)


def test_an_image_in_a_later_turn_belongs_to_its_branch() -> None:
    ids = np.array([1, -200, 5, -200, 6], np.int32)
    two = Example("two", ids, ids == 6, shared=2, images=("a", "b"), counts=(2, 2))
    batch = collate([Pack((example("one", [20], [30], image="a"), two))], image_token_id=9)
    assert batch.input_ids.tolist() == [[1, 9, 9, 20, 30, 5, 9, 9, 6]]
    assert batch.images == ("a", "b")
    assert batch.rows.tolist() == [3, 7]


def test_no_row_of_the_mask_is_empty() -> None:
    mask = tree_mask(torch.tensor([[0, 0, 1, 2, 0, 0], [0, 1, 2, 2, 3, 3]]))
    assert mask.any(-1).all()
    assert not mask[:, 0].triu(1).any(), "nobody sees what comes later"
