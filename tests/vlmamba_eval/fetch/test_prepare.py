"""`prepare`, and data that is missing before a run: what is said, asked and done."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.vlmamba_eval.fetch.colours import BY_HAND, NAMES, Colours, fill, picture, questions, serve
from tests.vlmamba_eval.fetch.server import Server
from vlmamba_eval.cli import cli
from vlmamba_eval.dataset import samples_folder
from vlmamba_eval.fetch.http import Http
from vlmamba_eval.fetch.plan import announce, look
from vlmamba_eval.images import read_image
from vlmamba_eval.preflight import missing_images
from vlmamba_eval.prepare import count_ready, describe, fetch, overview, requirements, settle
from vlmamba_eval.registry import all_tasks, get_task
from vlmamba_eval.sources import ByHand, File, Pictures
from vlmamba_eval.types import DataError, UsageError


class Asked:
    """Answers a question about a plan, and remembers it."""

    def __init__(self, answer: bool = True) -> None:
        self.answer = answer
        self.plans: list[str] = []

    def __call__(self, plan: str) -> bool:
        self.plans.append(plan)
        return self.answer


def test_from_nothing_to_ready(server: Server, http: Http, tmp_path: Path) -> None:
    task, ask, root = Colours(*serve(server)), Asked(), tmp_path / "data"
    before = look(task, str(root))
    assert (before.ready, before.dataset, before.expected, len(before.missing)) == (False, None, 4, 1)
    (after,) = fetch([before], str(root), ask=ask, say=pytest.fail if False else print, http=http)
    assert after.ready
    assert sorted(path.name for path in (root / "colours").rglob("*.png")) == sorted(f"{name}.png" for name in NAMES)
    (plan,) = ask.plans
    for part in (
        f"colours/questions.jsonl: about 300 bytes from questions.jsonl in {server.url}/q.zip",
        "terms: CC BY 4.0 (http://terms.invalid)",
        "pictures of colours: 4, about 320 bytes",
        "Together about 620 bytes;",
        f"are free in {root}",
    ):
        assert part in plan
    assert all(asked != (0, len(bytes(server.files["/p.zip"].content)) - 1) for asked in server.asked["/p.zip"])


def test_nothing_travels_before_the_answer_nor_after_a_no(server: Server, http: Http, tmp_path: Path) -> None:
    task, ask = Colours(*serve(server)), Asked(False)
    (after,) = fetch([look(task, str(tmp_path))], str(tmp_path), ask=ask, say=print, http=http)
    assert not after.ready
    assert not server.asked
    assert list(tmp_path.iterdir()) == []


def test_more_than_was_said_is_asked_again(server: Server, http: Http, tmp_path: Path) -> None:
    file, pictures = serve(server)
    task, ask = Colours(file, pictures), Asked()
    (tmp_path / "colours").mkdir()
    (tmp_path / "colours" / "questions.jsonl").write_bytes(questions())
    need = look(task, str(tmp_path))
    server.files["/p.zip"] = replace(server.files["/p.zip"])
    big = {f"all/{name}.png": bytes(5_000_000) for name in NAMES}
    from tests.vlmamba_eval.fetch.test_download import archive

    server.put("/p.zip", archive(big))
    second = Asked(False)
    asked = iter((ask, second))
    fetch([need], str(tmp_path), ask=lambda plan: next(asked)(plan), say=print, http=http)
    assert "To fetch: 4 pictures, 20 MB. That is more than was said before" in second.plans[0].replace("20.0", "20")
    assert not (tmp_path / "colours" / "pictures").exists()


def test_pictures_come_though_the_gold_labels_can_not_be_had(server: Server, http: Http, tmp_path: Path) -> None:
    file, pictures = serve(server)
    task = Colours(replace(file, path="colours/official.jsonl", url=f"{server.url}/gone.zip"), pictures)
    (tmp_path / "colours").mkdir()
    (tmp_path / "colours" / "questions.jsonl").write_bytes(questions(labels=False))
    need = look(task, str(tmp_path))
    assert not need.ready
    said: list[str] = []
    (after,) = fetch([need], str(tmp_path), ask=Asked(), say=said.append, http=http)
    assert after.missing_pictures == 0
    assert not after.ready  # nothing could be scored
    assert (
        said[0]
        == f"Not fetched: colours/official.jsonl: {server.url}/gone.zip: the server answers 404: there is no such file."
    )
    lines = describe(after, str(tmp_path))
    assert "  gold labels: not here; answers are scored here, locally, but only with colours/official.jsonl" in lines


def test_what_needs_a_form_is_named_with_the_step(server: Server, tmp_path: Path) -> None:
    file, _ = serve(server)
    (tmp_path / "colours").mkdir()
    (tmp_path / "colours" / "questions.jsonl").write_bytes(questions())
    need = look(Colours(file, BY_HAND), str(tmp_path))
    assert (need.missing, len(need.unsourced)) == ([], 4)
    assert "    by hand: the pictures, into colours/pictures: fill in the form (http://form.invalid)" in describe(
        need, str(tmp_path)
    )
    assert overview([need])[1][4] == "by hand"
    assert announce([need], tmp_path) == []


def test_what_lies_in_a_folder_that_may_not_be_entered_counts_as_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exists = Path.exists

    def refused(path: Path, **options: bool) -> bool:
        if "coco" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path, **options)

    monkeypatch.setattr(Path, "exists", refused)
    need = look(get_task("pope"), str(tmp_path))
    assert "cannot be looked for: Permission denied" in str(need.error)
    assert len(need.missing) == 3


def test_with_a_limit_only_its_pictures_are_needed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "colours").mkdir()
    (tmp_path / "colours" / "questions.jsonl").write_bytes(questions())
    need = look(Colours(*serve(server)), str(tmp_path), limit=2, seed=0)
    assert need.missing_pictures == 1


# -- before a run ------------------------------------------------------------------------------------------------------


def test_a_run_fetches_what_it_misses(server: Server, http: Http, tmp_path: Path) -> None:
    task = Colours(*serve(server))
    (dataset,) = settle([task], str(tmp_path / "data"), ask=Asked(), say=print, http=http)
    assert {read_image(s.image) for s in dataset.samples if s.image} == {picture(name) for name in NAMES}


def test_an_archive_that_is_not_there_is_never_made_a_folder(server: Server, http: Http, tmp_path: Path) -> None:
    task, gone = Colours(*serve(server)), str(tmp_path / "gone.tar")
    for ask in (None, Asked()):
        with pytest.raises(UsageError, match="no such archive"):
            settle([task], gone, ask=ask, say=print, http=http)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_may_not_ask_says_how_to_fetch(server: Server, http: Http, tmp_path: Path) -> None:
    task = Colours(*serve(server), BY_HAND)
    with pytest.raises(UsageError) as caught:
        settle([task], str(tmp_path / "data"), ask=None, say=print)
    assert f"--download fetches what is missing into {tmp_path}/data: about 620 bytes" in str(caught.value)
    assert "by hand: the pictures" in str(caught.value)
    (tmp_path / "data/colours").mkdir(parents=True)
    (tmp_path / "data/colours/questions.jsonl").write_bytes(questions())
    [dataset] = settle([task], str(tmp_path / "data"), ask=None, say=print)
    assert len(missing_images([dataset])) == 4
    assert not server.asked


def test_auto_is_the_folder_data_of_the_place_where_one_stands(
    server: Server, http: Http, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settle([Colours(*serve(server))], "auto", ask=Asked(), say=print, http=http)
    assert (tmp_path / "data/colours/questions.jsonl").exists()


def test_auto_takes_the_hub_s_copy_of_what_comes_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vlmamba_eval.prepare.hub_size", lambda task: "about 7 MB")
    task = Colours(BY_HAND)
    task.info = replace(task.info, hub="somebody/colours")
    ask = Asked(False)
    with pytest.raises(DataError, match="nothing was fetched"):
        settle([task], "auto", ask=ask, say=print)
    assert "colours, about 7 MB, from the hub's open copy somebody/colours" in ask.plans[0]
    assert "by hand: the pictures" in ask.plans[0]


def test_an_archive_is_never_filled(server: Server, http: Http, tmp_path: Path) -> None:
    from vlmamba_eval.fetch.pack import pack

    task = Colours(*serve(server))
    tar = pack([task], str(fill(tmp_path / "data")), tmp_path / "a.tar").path
    (dataset,) = settle([task], str(tar), ask=Asked(), say=print, http=http)
    assert len(dataset.samples) == 8
    with pytest.raises(UsageError, match="nothing is fetched into an archive"):
        fetch([look(task, str(tar))], str(tar), ask=Asked(), say=print, http=http)


# -- the command line --------------------------------------------------------------------------------------------------


def test_without_tasks_all_are_shown_and_counted(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["prepare", "--data", str(tmp_path)])
    lines = done.stdout.splitlines()
    assert lines[-1] == f"0 of {len(all_tasks())} ready"
    assert len(lines) == len(all_tasks()) + 2
    assert done.exit_code == 3
    by_name = {line.split()[0]: line for line in lines[1:-1]}
    assert "about 56 MB" in by_name["gqa"]
    assert "about 66 MB" in by_name["mmvet"]
    assert "pictures: at most 12.5 GB" in by_name["vqav2_testdev"]
    assert "in its file" in by_name["mmbench"]
    assert "size unknown until asked" in by_name["seed_image"]
    assert "by hand or --data hub" in by_name["mme"]
    assert by_name["textvqa"].split()[-1] == "here"  # scored locally
    assert "Java" in by_name["coco_caption"]
    assert "OPENAI_API_KEY" in by_name["mmvet"]
    assert "by its server" in by_name["vqav2_testdev"]


@pytest.mark.parametrize("option", [["--download"], ["--pack", "a.tar"]])
def test_what_to_fetch_or_pack_must_be_said(option: list[str]) -> None:
    done = CliRunner().invoke(cli, ["prepare", *option])
    assert isinstance(done.exception, UsageError)
    assert "needs --tasks" in str(done.exception)


def test_without_a_terminal_nothing_is_fetched_unasked(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["prepare", "--tasks", "pope,gqa", "--data", str(tmp_path), "--download"])
    assert isinstance(done.exception, UsageError)
    assert "Give --yes to fetch without asking" in str(done.exception)
    assert "500 pictures" not in done.stderr  # not yet known by name
    assert "pictures of pope: 500, about 82 MB from http://images.cocodataset.org/val2014/..." in done.stderr
    assert "MIT licence" in done.stderr


# -- the declarations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(all_tasks()))
def test_every_benchmark_says_where_its_files_come_from(name: str) -> None:
    info = get_task(name).info
    assert info.sources
    for source in info.sources:
        assert not isinstance(source, str)
        if isinstance(source, ByHand):
            assert source.url.startswith("https://")
            continue
        assert source.size > 0
        assert source.terms.text
        assert source.terms.url.startswith("https://")
        if isinstance(source, File):
            assert source.url.startswith("https://")
            folder, _, file = source.path.partition("/")
            assert any(folder == place.split("/")[0] for place in info.folders)
            assert file
            assert not source.digest or source.digest.partition(":")[0] in ("sha256", "md5")
        else:
            assert source.url or source.each
            assert "{name}" in source.member
            assert not source.each or "{name}" in source.each


def test_needs_of_scoring_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda program: None)
    captions = requirements(get_task("coco_caption").info)
    assert ("Java", False) in captions
    assert requirements(get_task("pope").info) == []
    assert count_ready([look(get_task("pope"), "samples"), look(get_task("gqa"), "nowhere")]) == "1 of 2 ready"


def test_pictures_are_those_of_their_source(server: Server, tmp_path: Path) -> None:
    file, pictures = serve(server)
    first, second = replace(pictures, prefix="r"), Pictures(pictures.terms, each="http://x.invalid/{name}")
    (tmp_path / "colours").mkdir()
    (tmp_path / "colours" / "questions.jsonl").write_bytes(questions())
    need = look(Colours(file, first, second), str(tmp_path))
    assert {wanted.name: wanted.source for wanted in need.missing} == {
        "red.png": first, "green.png": second, "blue.png": second, "black.png": second,
    }  # fmt: skip


def test_a_list_that_is_there_and_is_another_one_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "gqa").mkdir()
    assert overview([look(get_task("gqa"), str(tmp_path))])[1][2] == "missing"
    shutil.copy(samples_folder() / "gqa/testdev_balanced_questions.json", tmp_path / "gqa")
    assert overview([look(get_task("gqa"), str(tmp_path))])[1][2] == "not as declared"
