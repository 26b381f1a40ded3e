"""What a generation will cost is known before it starts, and what is not known is said to be unknown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from workbench.conversation import Conversation, Image, Message
from workbench.errors import RecipeError
from workbench.instruct.cost import (
    PRICES,
    REPLY_SHARE,
    ImageRule,
    Price,
    estimate_requests,
    load_prices,
    price_of,
    prompt_tokens,
    text_tokens,
)

TILES = ImageRule(tiles=(85, 170))
PATCHES = ImageRule(patches=1.0)


def asked(text: str, *images: Image) -> Conversation:
    return Conversation("a", (Message("system", ("You see an image.",)), Message("user", (*images, text))))


@pytest.mark.parametrize(
    ("width", "height", "tokens"),
    [
        (1024, 1024, 765),
        (2048, 4096, 1105),
        (128, 64, 255),
        (512, 512, 255),
        (513, 512, 425),
        (1536, 768, 1105),
        (2200, 1100, 1105),
    ],
)
def test_tiles_are_counted_as_the_documentation_does(width: int, height: int, tokens: int) -> None:
    assert TILES.count(width, height) == tokens


@pytest.mark.parametrize(
    ("width", "height", "patches"),
    [(1024, 1024, 1024), (1800, 2400, 1452), (128, 64, 8), (33, 32, 2), (2048, 768, 1536)],
)
def test_patches_are_counted_as_the_documentation_does(width: int, height: int, patches: int) -> None:
    assert PATCHES.count(width, height) == patches


@pytest.mark.parametrize(("width", "height"), [(100_000, 10), (10, 100_000), (20_000, 20_000), (1, 1)])
def test_no_picture_is_free_or_above_the_limit(width: int, height: int) -> None:
    assert 1 <= PATCHES.count(width, height) <= 1536
    assert TILES.count(width, height) >= 255


def test_a_picture_of_unknown_size_counts_as_a_large_one_and_llava_always_the_same() -> None:
    assert TILES.count(None, None) == 765
    assert ImageRule(tokens=576).count(10, 10) == ImageRule(tokens=576).count(None, None) == 576


@pytest.mark.parametrize(
    ("text", "o200k"),  # counted by o200k_base
    [
        (
            "The image shows a man riding a brown horse across a grassy field. Behind him, two people are standing next"
            " to a wooden fence, watching. The sky is clear, suggesting that the weather is pleasant, and mountains can"
            " be seen in the distance.",
            50,
        ),
        (
            '{"turns": [{"question": "What is the man doing?", "answer": "He is riding a horse."}, {"question": "How'
            ' many people are watching?", "answer": "Two people are watching."}]}',
            46,
        ),
        ("图片中一名男子骑着一匹棕色的马穿过草地。他身后有两个人站在木栅栏旁观看。天空晴朗,远处可以看到山脉。", 45),
        (
            "이미지에는 한 남자가 갈색 말을 타고 풀밭을 가로지르고 있습니다. 그의 뒤에는 두 사람이 나무 울타리 옆에"
            " 서서 지켜보고 있습니다. 하늘은 맑고 멀리 산이 보입니다.",
            55,
        ),
        (
            "На изображении мужчина едет верхом на коричневой лошади по зелёному полю. Позади него у деревянного забора"
            " стоят два человека и наблюдают. Небо ясное, вдали видны горы.",
            51,
        ),
        (
            "चित्र में एक आदमी भूरे घोड़े पर सवार होकर घास के मैदान को पार कर रहा है। उसके पीछे दो लोग लकड़ी की बाड़ के पास"
            " खड़े होकर देख रहे हैं।",
            41,
        ),
    ],
    ids=["english", "json", "chinese", "korean", "russian", "hindi"],
)
def test_texts_are_counted_within_a_fifth_of_a_real_tokenizer(text: str, o200k: int) -> None:
    assert text_tokens(text) == pytest.approx(o200k, rel=0.2)


def test_numbers_of_boxes_are_not_taken_for_words() -> None:
    boxes = "\n".join(f"{i}. person: [{i / 17:.3f}, {i / 23:.3f}, {i / 13:.3f}, {i / 11:.3f}]" for i in range(1, 11))
    assert text_tokens(boxes) == pytest.approx(240, rel=0.1)
    assert text_tokens("") == 0


def test_the_shipped_prices_say_when_and_where_they_were_looked_up(home: Path) -> None:
    prices = load_prices()
    assert PRICES.is_file() and prices
    assert all(price.as_of and price.source for price in prices.values())
    assert prices["gpt-4o"].money(1_000_000, 100_000) == pytest.approx(3.50)


def test_a_persons_prices_are_laid_over_the_shipped_ones(home: Path, tmp_path: Path) -> None:
    (home / "prices.yaml").write_text(
        "as_of: 2026-11-25\nmodels:\n  gpt-4o: {input: 1, output: 2}\n  mine: {input: 3, output: 4, as_of: 2025}\n"
    )
    named = tmp_path / "team.yaml"
    named.write_text("models:\n  theirs: {input: 5, output: 6, image: {tokens: 64}}\n  mine: {input: 7, output: 8}\n")
    prices = load_prices(named)
    assert load_prices().keys() == prices.keys() - {"theirs"}
    assert (prices["gpt-4o"].input, prices["gpt-4o"].as_of) == (1, "2026-11-25")
    assert (prices["mine"].input, load_prices()["mine"].input, load_prices()["mine"].as_of) == (7, 3, "2025")
    assert (prices["theirs"].input, prices["theirs"].image.count(9, 9)) == (5, 64)
    assert prices["gpt-4.1"] == load_prices()["gpt-4.1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models:\n  m: {input: -1, output: 2}\n", ("models.m.input", "-1")),
        ("models:\n  m: {input: .nan, output: 2}\n", ("models.m.input",)),
        ("models:\n  m: {input: 1}\n", ("models.m.output", "nothing")),
        ("models:\n  m: {input: 1, output: 2, image: {}}\n", ("image", "one of tiles, patches, tokens")),
        ("models:\n  m: {input: 1, output: 2, image: {tokens: 1, patches: 2}}\n", ("patches and tokens",)),
        ("gpt-4o: 3\n", ("gpt-4o", "unknown key")),
    ],
)
def test_a_wrong_price_is_named_with_its_file_and_key(
    home: Path, tmp_path: Path, text: str, said: Sequence[str]
) -> None:
    path = tmp_path / "team.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        load_prices(path)
    assert all(part in str(error.value) for part in ("team.yaml", *said)), str(error.value)


def test_a_model_is_found_by_name_then_without_its_date_then_by_the_longest_open_name() -> None:
    plain, dated, wide, wider = (Price(input=n, output=n) for n in range(4))
    prices = {"gpt-4o": plain, "gpt-4o-2024-05-13": dated, "qwen*": wide, "qwen-vl*": wider}
    assert price_of("gpt-4o-2024-05-13", prices) is dated
    assert price_of("gpt-4o-2024-11-20", prices) is price_of("gpt-4o-latest", prices) is plain
    assert price_of("qwen-vl-72b", prices) is wider and price_of("qwen3", prices) is wide


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-4o-audio-preview", "gpt-4o-pro", "gpt-4", "openai/gpt-4o", ""])
def test_a_variant_never_gets_the_price_of_its_cheaper_sister(model: str) -> None:
    assert price_of(model, {"gpt-4o": Price(input=1, output=1)}) is None


def test_a_model_of_this_machine_is_free_and_one_of_another_is_not() -> None:
    here = ["http://127.0.0.1:8000/v1", "http://localhost:11434/v1", "http://[::1]:8000/v1"]
    assert price_of("llava", {}, here) == Price.free()
    for urls in ([], [None], [*here, "http://10.0.0.5:8000/v1"], ["https://localhost.example.com/v1"]):
        assert price_of("llava", {}, urls) is None
    paid = Price(input=1, output=1)
    assert price_of("llava", {"llava": paid}, here) is paid  # a gateway of this machine to one that costs


def test_an_estimate_adds_up_by_task_and_keeps_the_pictures_apart() -> None:
    price = Price(input=2, output=8, image=TILES, as_of="2026-06", source="the page")
    big = asked("Describe it.", Image("a.jpg", width=1024, height=1024))
    small = asked("What is it?", Image("b.jpg", width=100, height=100))
    made = estimate_requests([("detail", big, 1000), ("caption", small, 100), ("detail", big, 1000)], price, model="m")
    assert made.calls == 3 and made.image_tokens == 2 * 765 + 255
    assert made.prompt_tokens == 2 * prompt_tokens(big, TILES) + prompt_tokens(small, TILES)
    assert made.completion_tokens == round(2100 * REPLY_SHARE) and made.most_completion_tokens == 2100
    assert made.money == pytest.approx((made.prompt_tokens * 2 + made.completion_tokens * 8) / 1e6)
    assert made.most_money == pytest.approx((made.prompt_tokens * 2 + 2100 * 8) / 1e6)
    rows = {row["task"]: row for row in made.table.to_dicts()}
    assert (rows["detail"]["calls"], rows["detail"]["image_tokens"], rows["caption"]["calls"]) == (2, 1530, 1)


def test_stored_replies_say_how_long_the_others_will_be() -> None:
    requests = [("detail", asked("Describe it."), 1000)] * 10
    price = Price(input=0, output=1)
    assert estimate_requests(requests, price, reply_tokens={"detail": 120.0}).completion_tokens == 1200
    assert estimate_requests(requests, price, reply_tokens={"detail": 5000.0}).completion_tokens == 10_000


def test_the_slower_of_two_rates_says_how_long_it_takes() -> None:
    requests = [("detail", asked("Describe it."), 1000)] * 60
    price = Price(input=0, output=1)
    assert estimate_requests(requests, price).seconds is None
    assert estimate_requests(requests, price, requests_per_minute=30).seconds == pytest.approx(120)
    made = estimate_requests(requests, price, requests_per_minute=30, tokens_per_minute=6000)
    assert made.seconds == pytest.approx(60 * (made.prompt_tokens + 60_000) / 6000)


def test_three_real_prompts_are_shown_of_different_tasks() -> None:
    requests = [(task, asked(f"{task} {n} <b>"), 10) for task in ("one", "two") for n in range(5)]
    made = estimate_requests(requests, Price.free(), model="m")
    assert [prompt.messages[-1].text for prompt in made.prompts] == ["one 0 <b>", "two 0 <b>", "one 1 <b>"]
    assert all(prompt.messages[-1].text in str(made) for prompt in made.prompts)
    assert "one 0 &lt;b&gt;" in made._repr_html_() and "<b>" not in made._repr_html_()


def test_an_unknown_price_is_never_shown_as_nothing() -> None:
    requests = [("detail", asked("Describe it."), 1000)]
    unknown = estimate_requests(requests, None, model="some-model")
    assert unknown.money is None and unknown.summary()["money"] is None
    assert "cost unknown" in str(unknown) and "some-model" in str(unknown) and "prices.yaml" in str(unknown)
    assert "free" in str(estimate_requests(requests, Price.free())) and "unknown" not in str(
        estimate_requests(requests, Price.free())
    )
    cheap = estimate_requests(requests, Price(input=0.1, output=0.4, as_of="2026-06"))
    assert "0.00 USD" not in str(cheap) and "as of 2026-06" in str(cheap)


def test_nothing_left_to_ask_is_said_so() -> None:
    assert (
        str(estimate_requests([], None, model="m", stored=7)) == "nothing is to be asked: 7 replies are there already"
    )
