"""Captions: one sentence about a picture, compared with those of people.

Paper   COCO captions: Chen et al. 2015, arXiv 1504.00325, with Karpathy's test split (Karpathy and Fei-Fei 2015,
        arXiv 1412.2306); NoCaps: Agrawal et al. 2019, arXiv 1812.08658; Flickr30k: Young et al. 2014, Karpathy's test
        split; TextCaps: Sidorov et al. 2020, arXiv 2003.12462
Data    dataset_coco.json and dataset_flickr30k.json of https://cs.stanford.edu/people/karpathy/deepimagesent;
        nocaps_val_4500_captions.json of https://nocaps.org; TextCaps_0.1_val.json of https://textvqa.org/textcaps
Scorer  pycocoevalcap 1.2 (`caption_metrics.py`): CIDEr is the headline
Prompt  LLaVA-1.5 has no captioning protocol. Its training data asks for TextCaps' captions with this prompt (arXiv
        2310.03744, table 7), and lmms-eval uses it for all but Karpathy's split of COCO:
        https://github.com/EvolvingLMMs-Lab/lmms-eval/blob/03b2f7cbd0e4/lmms_eval/tasks/coco_cap/utils.py#L21-L22
        The limit of 64 tokens is lmms-eval's.

One image of dataset_coco.json (shortened):
    {"filepath": "val2014", "filename": "COCO_val2014_000000391895.jpg", "split": "test", "cocoid": 391895,
     "sentences": [{"raw": "A man with a red helmet on a small moped on a dirt road. ", ...}, ...]}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from vlmamba_eval.sources import ByHand, File, Pictures, Terms
from vlmamba_eval.task import Task, TaskInfo
from vlmamba_eval.tasks.caption_metrics import COLUMNS, ORDERS, Corpus, bleu, meteor
from vlmamba_eval.tasks.coco import VAL2014
from vlmamba_eval.tasks.textvqa import PICTURES
from vlmamba_eval.types import DataError, Graded, ImageRef, Loaded, Metric, Sample, Verdict

if TYPE_CHECKING:
    from vlmamba_eval.folder import Folder
    from vlmamba_eval.hub import Hub
    from vlmamba_eval.sums import Sums

PROMPT = "Provide a one-sentence caption for the provided image."
DOMAINS = ("in-domain", "near-domain", "out-domain")  # of NoCaps


KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
KARPATHY_TERMS = Terms("as the data's page says", "https://cs.stanford.edu/people/karpathy/deepimagesent")
COCO = TaskInfo(
    name="coco_caption",
    title="COCO captions",
    measures="a sentence about an everyday scene",
    split="Karpathy test",
    questions=5_000,
    images=5_000,
    headline="cider",
    max_new_tokens=64,
    paper="https://arxiv.org/abs/1504.00325",
    scorer="https://github.com/tylin/coco-caption",
    folders=("coco_caption", "coco"),
    ids=r"[1-9]\d{0,5}",
    extra="caption",
    programs=("java",),
    sources=(
        File("coco_caption/dataset_coco.json", KARPATHY, KARPATHY_TERMS, member="dataset_coco.json", size=25_000_000),
        VAL2014,
    ),
)
NOCAPS = replace(
    COCO,
    name="nocaps",
    title="NoCaps",
    measures="a sentence about things that COCO does not show",
    split="val",
    questions=4_500,
    images=4_500,
    paper="https://arxiv.org/abs/1812.08658",
    folders=("nocaps",),
    ids=r"\d|[1-9]\d{1,3}",
    hub="lmms-lab-encoder/NoCaps",
    sources=(
        File(
            "nocaps/nocaps_val_4500_captions.json",
            "https://nocaps.s3.amazonaws.com/nocaps_val_4500_captions.json",
            Terms("as the data's page says", "https://nocaps.org/download"),
            size=5_000_000,
        ),
        Pictures(
            Terms("pictures of Open Images, listed as CC BY 2.0", "https://storage.googleapis.com/openimages/web"),
            each="https://s3.amazonaws.com/open-images-dataset/validation/{name}",
            size=300_000,
        ),
    ),
)
FLICKR30K = replace(
    COCO,
    name="flickr30k",
    title="Flickr30k",
    measures="a sentence about people and what they do",
    questions=1_000,
    images=1_000,
    paper="https://aclanthology.org/Q14-1006",
    folders=("flickr30k",),
    ids=r"\d|[1-9]\d{1,4}",
    sources=(
        File(
            "flickr30k/dataset_flickr30k.json",
            KARPATHY,
            KARPATHY_TERMS,
            member="dataset_flickr30k.json",
            size=5_000_000,
        ),
        ByHand(
            "the pictures",
            "fill in the form at the foot of the data's page, and unpack flickr30k-images.tar.gz there",
            "flickr30k/flickr30k-images",
            "https://shannon.cs.illinois.edu/DenotationGraph",
        ),
    ),
)
TEXTCAPS = replace(
    COCO,
    name="textcaps",
    title="TextCaps",
    measures="a sentence about a picture that needs the text in it",
    split="val",
    questions=3_166,
    images=3_166,
    paper="https://arxiv.org/abs/2003.12462",
    folders=("textcaps", "textvqa"),
    ids=r"[0-9a-f]{16}",
    hub="lmms-lab-encoder/TextCaps",
    sources=(
        File(
            "textcaps/TextCaps_0.1_val.json",
            "https://dl.fbaipublicfiles.com/textvqa/data/textcaps/TextCaps_0.1_val.json",
            Terms("as the data's page says", "https://textvqa.org/textcaps/dataset"),
            size=14_000_000,
        ),
        PICTURES,
    ),
)


class Picture(NamedTuple):
    id: str
    image: ImageRef
    references: tuple[str, ...]
    where: str
    domain: str = ""


class Captions(Task):
    columns = COLUMNS

    def __init__(self, info: TaskInfo, read: Callable[[Folder], Iterator[Picture]], hub: tuple[str, str] = ("", "")):
        self.info = info
        self.read = read
        self.hub_split, self.hub_column = hub

    def load(self, data: Folder) -> Loaded:
        return _loaded(self.read(data))

    def load_hub(self, hub: Hub) -> Loaded:
        rows = hub.rows(self.info.hub, self.hub_split, image="image")
        return _loaded(
            Picture(row.identifier("image_id"), row.image("image"), row.texts(self.hub_column), row.where)
            for row in rows
        )

    def prompt(self, sample: Sample) -> str:
        return sample.question

    def grade(self, sample: Sample, text: str) -> Verdict:
        """A caption by itself is worth nothing that could be added up: CIDEr weighs words by the whole list."""
        return Verdict(text, 0.0, bool(text.strip()))

    def grade_all(self, answered: Sequence[tuple[Sample, str]], extra: Corpus) -> list[Verdict]:
        """The captions' amounts, from one start of each program for the whole list."""
        if not answered:
            return []
        amounts = extra.amounts({sample.id: text for sample, text in answered})
        return [replace(self.grade(sample, text), also=amounts[sample.id]) for sample, text in answered]

    def count_image(self, items: Sequence[Graded], extra: Corpus) -> Iterator[tuple[str, str, float]]:
        """A missing caption counts as an empty one."""
        for item in items:
            amounts = item.verdict.also if item.verdict else extra.blank.get(item.sample.id, {})
            for name, amount in amounts.items():
                yield name, "all", amount
            for group in item.sample.groups:
                yield "official", group, amounts.get("official", 0.0)
                yield "cider", group, amounts.get("cider_domain", 0.0)

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        """In percent; NaN if Java is missing. None of them is made of right and wrong captions (`Metric.upper`)."""
        n = sums("official")
        computed = sums.ratio(n, n)  # 1, or NaN
        yield Metric("cider", 100 * sums.ratio(sums("cider"), n), headline=True, upper=None)
        for order in ORDERS:
            yield Metric(f"bleu_{order}", 100 * computed * bleu(sums, order), upper=None)
        there = sums("meteor pictures")
        yield Metric("meteor", 100 * sums.ratio(there, there) * meteor(sums), upper=None)
        yield Metric("rouge_l", 100 * sums.ratio(sums("rouge_l"), n), upper=None)
        plain = sums("cider_plain")
        yield Metric("cider_plain", 100 * sums.ratio(plain, sums("plain")), upper=None)
        for group in sums.groups:
            value = 100 * sums.ratio(sums("cider", group), sums("official", group))
            yield Metric("cider", value, category=group, upper=None)


def _loaded(pictures: Iterator[Picture]) -> Loaded:
    """The samples, and as what belongs to the list the corpus of all captions."""
    corpus = Corpus()
    samples: list[Sample] = []
    for picture in pictures:
        if not picture.references:
            raise DataError(f"{picture.where}: picture {picture.id} has no reference captions.")
        corpus.references[picture.id] = picture.references
        if picture.domain:
            corpus.domains[picture.id] = picture.domain
        groups = (picture.domain,) if picture.domain else ()
        samples.append(
            Sample(picture.id, picture.image, PROMPT, picture.references, groups=groups, where=picture.where)
        )
    return Loaded(samples, corpus)


# =============================================================================
# Annotation files
# =============================================================================


def _karpathy(data: Folder, path: Any, images: Any, identity: str) -> Iterator[Picture]:
    for row in data.rows(path, "images"):
        if row.text("split") == "test":
            references = tuple(sentence.text("raw") for sentence in row.rows("sentences"))
            yield Picture(
                row.identifier(identity), data.image(images, row.text("filename"), row.where), references, row.where
            )


def _coco_format(data: Folder, path: Any, images: Any, name: str) -> Iterator[Picture]:
    """COCO's caption format; `name` is the file name of an image whose row has none, from its id."""
    captions: dict[str, list[str]] = {}
    for row in data.rows(path, "images"):
        captions[row.identifier("id")] = []
    for row in data.rows(path, "annotations"):
        if (key := row.identifier("image_id")) not in captions:
            row.fail(f"image {key} is not among the images of this file.")
        captions[key].append(row.text("caption"))
    for row in data.rows(path, "images"):
        key = row.identifier("id")
        file = row.text("file_name", "") or name.format(row.number("id"))
        domain = row.one_of("domain", DOMAINS) if "domain" in row else ""
        yield Picture(key, data.image(images, file, row.where), tuple(captions[key]), row.where, domain)


def _coco(data: Folder) -> Iterator[Picture]:
    images = data.find_optional("val2014", "coco/val2014", "pope/val2014", "vqav2/val2014")
    images = images or data.root / "coco_caption" / "val2014"
    names = ("dataset_coco.json", "coco_karpathy_test_gt.json", "captions_karpathy_test.json")
    path = data.find(*names, what="COCO's captions of Karpathy's test split")
    if path.name == names[0]:
        return _karpathy(data, path, images, "cocoid")
    return _coco_format(data, path, images, "COCO_val2014_{:012d}.jpg")


def _flickr30k(data: Folder) -> Iterator[Picture]:
    images = data.find_optional("flickr30k-images", "images") or data.root / "flickr30k" / "flickr30k-images"
    path = data.find("dataset_flickr30k.json", what="Flickr30k's captions with Karpathy's splits")
    return _karpathy(data, path, images, "imgid")


def _nocaps(data: Folder) -> Iterator[Picture]:
    images = data.find_optional("val", "images", "validation") or data.root / "nocaps" / "val"
    path = data.find("nocaps_val_4500_captions.json", what="NoCaps' validation captions")
    return _coco_format(data, path, images, "{:d}.jpg")


def _textcaps(data: Folder) -> Iterator[Picture]:
    """The file has one row for each caption; each repeats all captions of its picture."""
    images = data.find_optional("train_images", "textvqa/train_images") or data.root / "textcaps" / "train_images"
    path = data.find("TextCaps_0.1_val.json", "textcaps/TextCaps_0.1_val.json", what="TextCaps' validation captions")
    seen: dict[str, tuple[str, ...]] = {}
    for row in data.rows(path, "data"):
        key, references = row.identifier("image_id"), row.texts("reference_strs")
        if seen.setdefault(key, references) is references:
            yield Picture(key, data.image(images, f"{key}.jpg", row.where), references, row.where)
        elif sorted(seen[key]) != sorted(references):
            row.fail(f"picture {key} has other captions in an earlier row.")


TASKS = (
    Captions(COCO, _coco),
    Captions(NOCAPS, _nocaps, ("validation", "annotations_captions")),
    Captions(FLICKR30K, _flickr30k),
    Captions(TEXTCAPS, _textcaps, ("val", "caption_str")),
)
