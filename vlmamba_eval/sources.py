"""Where a benchmark's files come from: plain declarations, which `prepare` shows, plans with and fetches by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Terms:
    """Under which licence or terms files may be used, in a few words, and where they are."""

    text: str
    url: str = ""


@dataclass(frozen=True)
class File:
    """A file that a benchmark's `load` reads.

    `path` is its place below the data folder. `member` is its name if `url` is a zip: also the end of a longer name
    there. `size` is about what travels, in bytes, for a plan without a network. `digest` is `sha256:...` or `md5:...`.
    """

    path: str
    url: str
    terms: Terms
    member: str = ""
    size: int = 0
    digest: str = ""


@dataclass(frozen=True)
class Pictures:
    """The pictures of a benchmark, in a zip, one by one, or both.

    `{name}` in `member` and `each` is replaced by a picture's name below its picture folder. The source has the
    pictures whose names begin with `prefix`. `size` is about that of one picture, `zip_size` of the archive, in bytes.
    """

    terms: Terms
    url: str = ""
    member: str = "{name}"
    each: str = ""
    prefix: str = ""
    size: int = 0
    zip_size: int = 0


@dataclass(frozen=True)
class ByHand:
    """What only a person can get: behind a form, a login or a consent. `path` is where it belongs."""

    what: str
    step: str
    path: str
    url: str = ""


Source = File | Pictures | ByHand | str
"""A text says in words what only a person can get."""


def in_words(source: Source) -> str:
    """One line for people: what, from where, to which place."""
    if isinstance(source, str):
        return source
    if isinstance(source, ByHand):
        return f"by hand: {source.what}, into {source.path}: {source.step}{f' ({source.url})' if source.url else ''}"
    if isinstance(source, File):
        inside = f"{source.member} in " if source.member else ""
        return f"{source.path}: {inside}{source.url} [{source.terms.text}]"
    places = " or ".join(place for place in (source.each, source.url) if place)
    return f"pictures: {places} [{source.terms.text}]"
