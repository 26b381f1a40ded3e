"""How trees lie in a row: positions, who sees whom, and which place predicts which token."""

from __future__ import annotations

import numpy as np

from workbench.training.attention import branch_mask
from workbench.training.batch import collate
from workbench.training.example import Example


def example(name: str, question: list[int], answer: list[int], image: str | None = "i", tokens: int = 2) -> Example:
    head = [1] if image is None else [1, -200]
    ids = np.array([*head, *question, *answer], np.int32)
    trained = np.arange(len(ids)) >= len(ids) - len(answer)
    if image is None:
        return Example(name, ids, trained)
    return Example(name, ids, trained, shared=2, images=(image,), counts=(tokens,))


def test_branches_follow_the_prefix_and_restart_its_positions() -> None:
    first, second = example("a", [20], [30, 31]), example("b", [21, 22], [32])
    batch = collate([[first, second]], image_token_id=9)
    assert batch.input_ids.tolist() == [[1, 9, 9, 20, 30, 31, 21, 22, 32]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 3, 4, 5]]
    assert (batch.trees.lengths, batch.trees.prefixes) == ((9,), (3,))
    mask = batch.trees.masks[0]
    assert mask is not None and mask.shape == (6, 9)
    assert mask[5].tolist() == [True] * 3 + [False] * 3 + [True] * 3
    assert mask[2].tolist() == [True] * 6 + [False] * 3
    assert list(zip(batch.rows.tolist(), batch.targets.tolist(), strict=True)) == [(3, 30), (4, 31), (7, 32)]
    assert batch.conversations.tolist() == [0, 0, 1] and batch.ids == ("a", "b") and batch.images == ("i",)


def test_the_last_place_of_the_prefix_predicts_the_first_token_of_every_branch() -> None:
    """In template `plain` a caption begins right behind its image."""
    captions = [example(str(n), [], [30 + n, 40 + n]) for n in range(3)]
    batch = collate([captions], image_token_id=9)
    assert batch.rows.tolist() == [2, 3, 2, 5, 2, 7]
    assert batch.targets.tolist() == [30, 40, 31, 41, 32, 42]


def test_trees_of_several_images_and_text_lie_end_to_end() -> None:
    pair = [example("a", [20], [30], image="p"), example("b", [21], [31], image="p")]
    text, other = example("t", [22], [32], image=None), example("c", [], [33, 34], image="q", tokens=3)
    batch = collate([pair, [text], [other]], image_token_id=9)
    assert batch.input_ids.tolist() == [[1, 9, 9, 20, 30, 21, 31, 1, 22, 32, 1, 9, 9, 9, 33, 34]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4, 0, 1, 2, 0, 1, 2, 3, 4, 5]]
    assert (batch.trees.lengths, batch.trees.prefixes) == ((7, 3, 6), (3, 0, 0))
    assert batch.trees.masks[1] is None and batch.trees.masks[2] is None, "one conversation is plain causal"
    assert list(zip(batch.rows.tolist(), batch.targets.tolist(), strict=True)) == [
        (3, 30), (5, 31), (8, 32), (13, 33), (14, 34)
    ]  # fmt: skip
    assert batch.images == ("p", "q") and batch.ids == ("a", "b", "t", "c")


def test_an_image_in_a_later_turn_belongs_to_its_branch() -> None:
    ids = np.array([1, -200, 5, -200, 6], np.int32)
    two = Example("two", ids, ids == 6, shared=2, images=("a", "b"), counts=(2, 2))
    batch = collate([[example("one", [20], [30], image="a"), two]], image_token_id=9)
    assert batch.input_ids.tolist() == [[1, 9, 9, 20, 30, 5, 9, 9, 6]]
    assert batch.images == ("a", "b")
    assert batch.rows.tolist() == [3, 7]


def test_every_token_of_a_branch_sees_the_prefix_and_its_own_past() -> None:
    mask = branch_mask(2, [1, 3])
    assert mask.int().tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0], [1, 1, 0, 1, 1, 0], [1, 1, 0, 1, 1, 1]]
