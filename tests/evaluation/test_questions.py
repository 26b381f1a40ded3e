"""Published files become the very prompts that LLaVA's evaluation sends, with their pictures and references."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image as PILImage

from workbench.chat_model import ScriptedModel
from workbench.conversation import Conversation
from workbench.data.images import load_image
from workbench.errors import DataError
from workbench.evaluation.benchmarks import BENCHMARKS
from workbench.evaluation.prompting import LETTER_CN
from workbench.evaluation.questions import read_benchmark
from workbench.evaluation.scores import score_again
from workbench.evaluation.task import Evaluation, evaluate

LETTER = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."


def picture(color: str = "red") -> bytes:
    held = io.BytesIO()
    PILImage.effect_noise((64, 48), 50).convert("RGB").save(held, "PNG") if color == "noise" else PILImage.new(
        "RGB", (64, 48), color
    ).save(held, "PNG")
    return held.getvalue()


def place(path: Path, color: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(color))


def made(folder: Path, name: str, rows: Any, file: str = "data.json", **more: Any) -> Evaluation:
    (folder / file).write_text(json.dumps(rows))
    return read_benchmark(name, folder / file, **more)


def asks(evaluation: Evaluation, number: int = 0) -> str:
    return evaluation.conversations[number].prompt.messages[-1].text


def shown(evaluation: Evaluation, number: int = 0) -> tuple[int, int, int]:
    """The colour of the middle of a question's picture."""
    [image] = evaluation.conversations[number].images
    assert evaluation.resolve is not None
    return load_image(evaluation.resolve(image)).getpixel((5, 5))  # type: ignore[return-value]


RED, BLUE = (255, 0, 0), (0, 0, 255)


def table(folder: Path, name: str, hint: str = "nan") -> Path:
    """An MMBench file of two rows; the second's picture is the first's, named by its index."""
    image = base64.b64encode(picture("noise")).decode()
    lines = ["index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage"]
    lines += [f"7\tWhat is it?\t{hint}\tcat\tdog\t\t\tA\tanimals\t{image}"]
    lines += [f"1000007\tWhat is it?\t{hint}\tdog\tcat\t\t\tB\tanimals\t7"]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def test_mmbench_has_hint_options_and_one_item_for_all_rotations(tmp_path: Path) -> None:
    found = read_benchmark("mmbench", table(tmp_path, "mmbench_dev_20230712.tsv", "It meows."))
    assert asks(found) == f"It meows.\nWhat is it?\nA. cat\nB. dog\n{LETTER}"
    assert [one.reference for one in found.conversations] == ["A", "B"]
    assert {one.metadata["item"] for one in found.conversations} == {"7"}
    assert found.conversations[0].images == found.conversations[1].images
    bare = read_benchmark("mmbench", table(tmp_path, "mmbench_dev_20230712.tsv"), prompts="question")
    assert asks(bare) == "What is it?\nA. cat\nB. dog"
    chinese = read_benchmark("mmbench", table(tmp_path, "mmbench_dev_cn_20231003.tsv"))
    assert asks(chinese).endswith(f"B. dog\n{LETTER_CN}")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_a_picture_in_a_table_may_be_small(tmp_path: Path, form: str) -> None:
    held = io.BytesIO()
    PILImage.new("RGB", (16, 8), "red").save(held, form)
    cell = base64.b64encode(held.getvalue()).decode()
    assert len(cell) < 2000
    lines = ["index\tquestion\tA\tB\tanswer\timage", f"7\tWhat is it?\tcat\tdog\tA\t{cell}"]
    (tmp_path / "mmbench_dev.tsv").write_text("\n".join(lines) + "\n")
    found = shown(read_benchmark("mmbench", tmp_path / "mmbench_dev.tsv"))
    assert found[0] > 200 > 60 > found[1]


def test_seedbench_finds_pictures_by_data_id(tmp_path: Path) -> None:
    place(tmp_path / "SEED-Bench-image" / "1_2.jpg", "blue")
    row = {"answer": "B", "choice_a": "x", "choice_b": "y", "choice_c": "z", "choice_d": "w", "data_id": "1_2"}
    row |= {"question": "Which?", "question_id": "101669", "question_type_id": 3, "data_type": "image"}
    found = made(tmp_path, "seedbench", {"question_type": {"Instance Location": 3}, "questions": [row]})
    assert asks(found) == f"Which?\nA. x\nB. y\nC. z\nD. w\n{LETTER}" and shown(found)[2] > 200
    assert found.conversations[0].metadata["type"] == "Instance Location"


def test_a_video_is_its_middle_frame_or_several_or_itself_for_a_model_that_reads_videos(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for color in [*["red"] * 10, *["blue"] * 10, *["red"] * 10]:
            container.mux(stream.encode(av.VideoFrame.from_image(PILImage.new("RGB", (64, 48), color))))
        container.mux(stream.encode())
    row = {"answer": "A", "choice_a": "x", "choice_b": "y", "choice_c": "z", "choice_d": "w", "data_id": "clip.mp4"}
    row |= {"question": "What happens?", "question_id": "v1", "question_type_id": 10, "data_type": "video"}
    found = made(tmp_path, "seedbench", {"question_type": {}, "questions": [row]})
    [image] = found.conversations[0].images
    from workbench.conversation import Image, Video
    from workbench.inference.attachments import open_file

    assert found.resolve is not None
    middle = open_file(Image(str(found.resolve(image)))).getpixel((5, 5))
    assert middle[2] > 150 > middle[0]
    several = made(tmp_path, "seedbench", {"question_type": {}, "questions": [row]}, frames=3)
    assert len(several.conversations[0].images) == 3
    told = {}
    for name, asked, frames in (("pictures", found, 0), ("videos", found, 8), ("as asked", several, 8)):
        model = ScriptedModel(lambda asked: "A", name=name)
        model.frames = frames  # type: ignore[attr-defined]
        results = evaluate(model, asked)
        told[name] = (
            [(type(one), Path(one.path).name) for one in model.asked[0].media],
            results.settings["questions"]["frames"],
        )
    assert told["pictures"] == ([(Image, "clip.mp4#t=1.500")], 1)
    assert told["videos"] == ([(Video, "clip.mp4")], "as the model: 8")
    assert [kind for kind, _ in told["as asked"][0]] == [Image] * 3 and told["as asked"][1] == 3


def test_pope_tells_its_splits_apart(tmp_path: Path) -> None:
    place(tmp_path / "val2014" / "COCO_val2014_000000000001.jpg")
    for split in ("random", "popular"):
        row = {
            "question_id": 1,
            "image": "COCO_val2014_000000000001.jpg",
            "text": "Is there a dog in the image?",
            "label": "yes",
        }
        (tmp_path / f"coco_pope_{split}.json").write_text(json.dumps(row) + "\n")
    found = read_benchmark("pope", tmp_path)
    assert asks(found) == f"Is there a dog in the image?\n{SHORT}"
    assert sorted(one.id for one in found.conversations) == ["popular/1", "random/1"]
    assert {one.metadata["type"] for one in found.conversations} == {"random", "popular"}


def test_mme_leaves_out_please_answer_yes_or_no_as_llava_does(tmp_path: Path) -> None:
    for task, color in (("count", "red"), ("color", "blue")):
        place(tmp_path / task / "images" / "0001.png", color)
        (tmp_path / task / "questions_answers_YN").mkdir()
        text = "Is there one? Please answer yes or no.\tYes\nAre there two? Please answer yes or no.\tNo\n"
        (tmp_path / task / "questions_answers_YN" / "0001.txt").write_text(text)
    found = read_benchmark("mme", tmp_path)
    assert asks(found) == f"Is there one?\n{SHORT}" and len({one.id for one in found.conversations}) == 4
    by_task = {one.metadata["type"]: shown(found, number) for number, one in enumerate(found.conversations)}
    assert by_task == {"count": RED, "color": BLUE}


def test_scienceqa_is_worded_as_llava_converted_it(tmp_path: Path) -> None:
    place(tmp_path / "images" / "test" / "5" / "image.png")
    place(tmp_path / "images" / "test" / "6" / "image.png", "blue")
    problem = {"question": "Which is  red?", "choices": ["this", "that"], "answer": 1, "hint": "", "split": "test"}
    problem |= {"subject": "natural science", "grade": "grade2", "image": "image.png"}
    other = problem | {"hint": "Look closely."}
    trained = problem | {"split": "train"}
    rows = {"5": problem, "6": other, "7": trained, "8": problem | {"image": None}}
    found = made(tmp_path, "scienceqa", rows, "problems.json")
    assert [one.id for one in found.conversations] == ["5", "6", "8"]
    assert asks(found) == f"Context: N/A\nQuestion: Which is red?\nOptions: (A) this (B) that\n{LETTER}"
    assert asks(found, 1).startswith("Context: Look closely.\nQuestion:") and shown(found, 1) == BLUE
    assert not found.conversations[2].images and found.conversations[0].reference == "B"
    asked = {"from": "human", "value": "Context: N/A\nQuestion: Q?\nOptions: (A) a (B) b\n<image>"}
    line = {"id": "9", "conversations": [asked, {"from": "gpt", "value": "The answer is A."}]}
    ready = made(tmp_path, "scienceqa", [line], "llava_test_CQM-A.json")
    assert asks(ready) == f"Context: N/A\nQuestion: Q?\nOptions: (A) a (B) b\n{LETTER}"


def test_vqa_puts_questions_and_annotations_together(tmp_path: Path) -> None:
    place(tmp_path / "val2014" / "COCO_val2014_000000000042.jpg")
    people = [{"answer": "net", "answer_id": number} for number in range(10)]
    note = {
        "question_id": 1,
        "image_id": 42,
        "answers": people,
        "answer_type": "other",
        "multiple_choice_answer": "net",
    }
    (tmp_path / "annotations.json").write_text(json.dumps({"annotations": [note]}))
    question = {"question_id": 1, "image_id": 42, "question": "What is this?"}
    (tmp_path / "questions.json").write_text(json.dumps({"questions": [question]}))
    found = read_benchmark("vqa", [tmp_path / "questions.json", tmp_path / "annotations.json"], tmp_path / "val2014")
    assert asks(found) == f"What is this?\n{SHORT}" and found.conversations[0].reference == "net"
    assert found.conversations[0].metadata["type"] == "other" and shown(found) == RED


@pytest.mark.parametrize(
    ("name", "rows", "image", "wanted", "reference"),
    [
        ("gqa", {"201": {"question": "Is it?", "imageId": "n1", "answer": "no", "types": {"structural": "verify"}}},
         "n1.jpg", f"Is it?\n{SHORT}", "no"),
        ("textvqa", {"data": [{"question_id": 1, "question": "brand?", "image_id": "0f", "answers": ["dakota"] * 10}]},
         "0f.jpg", f"brand?\n{SHORT}", "dakota"),
        ("textvqa",
         [{"question_id": 1, "question": "brand?", "image_id": "0f", "answers": ["a"], "ocr_tokens": ["X", "Y"]}],
         "0f.jpg", f"brand?\nReference OCR token: X, Y\n{SHORT}", "a"),
        ("vizwiz", [{"image": "VizWiz_val_1.jpg", "question": "Can you see?", "answers": [{"answer": "no"}]}],
         "VizWiz_val_1.jpg",
         f"Can you see?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT}", "no"),
        ("docvqa", {"data": [{"questionId": 3, "question": "Date?", "image": "d/x.png", "answers": ["1/2"]}]},
         "d/x.png", f"Date?\n{SHORT}", "1/2"),
        ("chartqa", [{"imgname": "7.png", "query": "How many?", "label": "12"}], "7.png", f"How many?\n{SHORT}", "12"),
        ("refcoco",
         [{"image": "r.jpg", "sentences": [{"sent": "left dog"}], "bbox": [0, 0, 32, 24], "width": 64, "height": 48}],
         "r.jpg", "Please provide the bounding box coordinate of the region this sentence describes: left dog",
         "[0.00, 0.12, 0.50, 0.50]"),
    ],
)  # fmt: skip
def test_short_answers(tmp_path: Path, name: str, rows: Any, image: str, wanted: str, reference: str) -> None:
    place(tmp_path / image)
    found = made(tmp_path, name, rows)
    assert asks(found) == wanted and found.conversations[0].reference == reference and shown(found)[0] > 200
    read = found.rules.read(reference, {"id": "1", "reference": reference, **_row(found.conversations[0])})
    assert read.earned == pytest.approx(1.0), "the reference itself is right"


def _row(asked: Conversation) -> dict[str, Any]:
    return {"about": asked.metadata["about"]}


def test_mmmu_brings_its_pictures_in_parquet(tmp_path: Path) -> None:
    rows = [
        {"id": "validation_Art_1", "question": "<image 1> Which?", "options": "['one', 'two']", "answer": "B",
         "question_type": "multiple-choice", "image_1": {"bytes": picture(), "path": "1.png"}},
        {"id": "validation_Art_2", "question": "How many?", "options": "[]", "answer": "3",
         "question_type": "open", "image_1": {"bytes": picture("blue"), "path": "2.png"}},
    ]  # fmt: skip
    pl.DataFrame(rows).write_parquet(tmp_path / "mmmu.parquet")
    found = read_benchmark("mmmu", tmp_path / "mmmu.parquet")
    assert asks(found) == f"<image 1> Which?\n\n(A) one\n(B) two\n\n\n{LETTER}" and shown(found) == RED
    assert asks(found, 1) == f"How many?\n\n{SHORT}" and shown(found, 1) == BLUE
    assert found.conversations[0].metadata["type"] == "Art" and found.conversations[0].reference == "B"


def test_every_benchmark_is_tried_here() -> None:
    tried = {"mmbench", "seedbench", "pope", "mme", "scienceqa", "vqa", "mmmu"}
    tried |= {"gqa", "textvqa", "vizwiz", "docvqa", "chartqa", "refcoco"}
    assert tried == set(BENCHMARKS)


def test_what_is_missing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data; expected its published files; give --data FILE.*coco_pope_random"):
        read_benchmark("pope", ())
    with pytest.raises(DataError, match=r"nowhere.tsv: found no such file.*mmbench_dev"):
        read_benchmark("mmbench", tmp_path / "nowhere.tsv")
    row = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"}
    with pytest.raises(DataError, match="no picture a.jpg.*--images"):
        made(tmp_path, "pope", [row])
    with pytest.raises(DataError, match="row 1: found the reference 'yes'; expected the letter of an option"):
        made(tmp_path, "seedbench", [row])
    row |= {"choice_a": "x", "choice_b": "y", "answer": "E"}
    with pytest.raises(DataError, match="row 1: found the reference 'E'; expected one of A, B"):
        made(tmp_path, "seedbench", [row])
    with pytest.raises(DataError, match="no reference in the fields.*; expected what is right under label or answer"):
        made(tmp_path, "pope", [{"question_id": 1, "image": "a.jpg", "text": "Is there a dog?"}])


def test_what_was_left_out_or_came_twice_is_told_with_the_score(tmp_path: Path) -> None:
    place(tmp_path / "a.jpg")
    row = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"}
    lines = [json.dumps(row), json.dumps(row)[:30], json.dumps(row), json.dumps(row | {"question_id": 2})]
    (tmp_path / "coco_pope_random.json").write_text("\n".join(lines) + "\n")
    asked = read_benchmark("pope", tmp_path)
    results = evaluate(ScriptedModel(lambda one: "yes"), asked, out=tmp_path / "results")
    told = [
        "coco_pope_random.json: 1 broken row(s) left out, at line 2",
        "1 row(s) have the question_id of another; each is a question of its own",
    ]
    assert results.scores["notes"][:2] == told and len(results.rows) == 3
    assert score_again(tmp_path / "results").scores["notes"][:2] == told
