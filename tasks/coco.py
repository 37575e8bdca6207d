"""COCO's pictures, which several benchmarks ask about: https://cocodataset.org/#download."""

from __future__ import annotations

from vlmamba_eval.sources import Pictures, Terms

TERMS = Terms("pictures under Flickr's terms, annotations CC BY 4.0", "https://cocodataset.org/#termsofuse")
HOST = "http://images.cocodataset.org"  # the official address; https is not served under this name
VAL2014 = Pictures(
    terms=TERMS,
    url=f"{HOST}/zips/val2014.zip",
    member="val2014/{name}",
    each=f"{HOST}/val2014/{{name}}",
    size=164_000,
    zip_size=6_650_000_000,
)
TRAIN2014 = Pictures(
    terms=TERMS,
    url=f"{HOST}/zips/train2014.zip",
    member="train2014/{name}",
    each=f"{HOST}/train2014/{{name}}",
    size=164_000,
    zip_size=13_500_000_000,
)
TEST2015 = Pictures(
    terms=TERMS,
    url=f"{HOST}/zips/test2015.zip",
    member="test2015/{name}",
    each=f"{HOST}/test2015/{{name}}",
    size=153_000,
    zip_size=12_500_000_000,
)
