"""How varied conversations are is counted, not estimated; the numbers here are counted by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from workbench.conversation import Conversation, Image, Message
from workbench.instruct.diversity import Diversity, describe_conversations
from workbench.instruct.parse import LETTER, WORD


def talk(name: str, *turns: tuple[str, str], task: str | None = "conversation") -> Conversation:
    messages = [Message("system", ("You see an image.",))]
    for question, answer in turns:
        messages += [Message("user", (Image("a.jpg"), question)), Message("assistant", (answer,))]
    return Conversation(name, tuple(messages), task=task)


def described() -> Diversity:
    return describe_conversations(
        iter(
            [
                talk("1", ("What is this?", "A brown dog on the grass."), ("How many dogs?", "One.")),
                talk("2", ("What is  THIS?", "A brown dog, on the grass!"), task="caption"),
                talk("3", (f"What color is it?\n{WORD}", "Brown"), task="short_answer"),
                talk("4", (f"Which one?\nA. a dog\nB. a cat\n{LETTER}", "B"), task=None),
            ]
        )
    )


def test_tasks_are_counted_with_their_share() -> None:
    rows = described().tasks.rows()
    assert rows == [("caption", 1, 0.25), ("conversation", 1, 0.25), ("other", 1, 0.25), ("short_answer", 1, 0.25)]


def test_questions_are_counted_by_their_first_two_words_and_once_each() -> None:
    found = described()
    assert found.first_words.rows() == [
        ("what is", 2, 0.4), ("how many", 1, 0.2), ("what color", 1, 0.2), ("which one", 1, 0.2),
    ]  # fmt: skip
    assert (found.questions, found.distinct_questions) == (5, 4)


def test_lengths_leave_out_the_line_that_says_how_to_answer() -> None:
    assert described().lengths.rows() == [
        ("conversation", 2, 6, 7), ("caption", 1, 3, 6), ("short_answer", 1, 4, 1), ("other", 1, 8, 1),
    ]  # fmt: skip


def test_topics_are_the_words_of_answers_by_the_conversations_that_have_them() -> None:
    assert described().topics.rows() == [("brown", 3, 0.75), ("dog", 2, 0.5), ("grass", 2, 0.5), ("one", 1, 0.25)][:3]


def test_only_long_answers_that_another_conversation_gives_are_repeated() -> None:
    assert described().repeated_answers == 1.0
    twice = talk("1", ("What?", "A brown dog on the grass."), ("And this?", "A brown dog on the grass."))
    assert describe_conversations([twice]).repeated_answers == 0.0
    short = [talk(str(number), ("Is it red?", "Yes, it is.")) for number in range(5)]
    assert describe_conversations(short).repeated_answers == 0.0
    other = [talk("1", ("What?", "A brown dog on the grass.")), talk("2", ("What?", "A brown cat on the grass."))]
    assert describe_conversations(other).repeated_answers == 0.0


def test_chinese_is_counted_by_characters() -> None:
    found = describe_conversations([talk("1", ("图片中有什么?", "一只棕色的狗。"))])
    assert found.first_words.rows() == [("图 片", 1, 1.0)]
    assert "狗" in found.topics["word"].to_list()
    assert found.lengths.rows() == [("conversation", 1, 6, 6)]


def test_the_card_section_holds_plain_facts_that_yaml_gives_back() -> None:
    card = described().card()
    assert yaml.safe_load(yaml.safe_dump(card)) == card
    assert card["tasks"] == {"caption": 1, "conversation": 1, "other": 1, "short_answer": 1}
    assert card["distinct questions"] == "4 of 5"
    assert card["questions per conversation, median"] == 1
    assert "distinct questions: 4 of 5" in str(described())
    assert "4 of 5" in described()._repr_html_()


def test_nothing_at_all_is_described_and_plotted_too(tmp_path: Path) -> None:
    found = describe_conversations([])
    assert found.card()["distinct questions"] == "0 of 0" and found.tasks.is_empty() and "none" in str(found)
    found.plot().savefig(tmp_path / "nothing.png")


def test_the_figure_shows_every_table_and_leaves_no_plot_open(tmp_path: Path) -> None:
    figure = described().plot()
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5_000
    shown = [[label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes]
    assert shown[0] == ["short_answer", "other", "conversation", "caption"]
    assert shown[1][-1] == "what is" and shown[3][-1] == "brown"
    bars = [round(bar.get_width()) for bar in figure.axes[1].patches]
    assert bars == described().first_words["count"].to_list()[::-1]


def test_plotting_needs_no_screen_and_no_global_state() -> None:
    code = (
        "import sys; from workbench.instruct.diversity import describe_conversations as d; d([]).plot();"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
