"""The data sets that can be fetched: names, files, sizes, terms of use, and how a recipe reads them.

Addresses are the publishers' own. Checksums are the publishers' (GroupLens puts an ``.md5`` beside each archive, Zenodo
lists one); the Amazon files have none.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pipelines.datasets.transfer import Checksum
from recsys.contracts.errors import ConfigError

Reviews = Literal["5core", "all", "ratings"]


@dataclass(frozen=True)
class RemoteFile:
    """A file of a data set.

    Attributes:
        url: Its address.
        checksum: As published, or ``None``.
        checksum_url: Where the publisher keeps the checksum of a file that changes; ``None`` where there is none.
    """

    url: str
    checksum: Checksum | None = None
    checksum_url: str | None = None


@dataclass(frozen=True)
class RemoteDataset:
    """A data set that can be fetched.

    Attributes:
        name: What ``recsys fetch`` is given; ``CATEGORY`` stands for a part that the user chooses.
        files: What is downloaded.
        size: To be downloaded, and unpacked, in words.
        terms: Licence or terms of use.
        page: Where the publisher describes it.
        recipe: Keys of ``source`` that read it, without the path.
        categories: What may stand for ``CATEGORY``; empty for a data set without.
    """

    name: str
    files: tuple[RemoteFile, ...]
    size: str
    terms: str
    page: str
    recipe: Mapping[str, object]
    categories: tuple[str, ...] = ()


def catalogue() -> tuple[RemoteDataset, ...]:
    """Return all data sets; those of Amazon once per version, with ``CATEGORY`` in name and addresses."""
    return (*_MOVIELENS, *_KUAIRAND, *(_amazon(version, "CATEGORY", None) for version in _AMAZON))


def find(name: str, reviews: Reviews | None = None) -> RemoteDataset:
    """Return the data set of this name.

    Args:
        name: Such as ``movielens-1m`` or ``amazon-2018/Video_Games``.
        reviews: Which of Amazon's review files; ``None``: 5-core where it is published with text, else all.

    Raises:
        ConfigError: No such data set, or no such category of it; the closest names are listed.
    """
    family, slash, category = name.partition("/")
    version = family.removeprefix("amazon-")
    if family.startswith("amazon-") and version in _AMAZON:
        categories = _AMAZON[version].categories
        if not slash or category not in categories:
            raise ConfigError(
                f"'{name}': '{family}' needs one of its categories, for example {family}/{categories[0]}; "
                f"{_closest(category, categories)}{', '.join(categories)}"
            )
        return _amazon(version, category, reviews)
    if reviews is not None:
        raise ConfigError(f"--reviews belongs to the Amazon data sets; '{name}' has one form")
    known = {dataset.name: dataset for dataset in catalogue()}
    if name not in known:
        raise ConfigError(
            f"no data set is called '{name}'; {_closest(name, list(known))}{', '.join(known)}. `recsys fetch` lists them"
        )
    return known[name]


def _closest(name: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{found[0]}'? there are: " if found else "there are: "


_GROUPLENS: Final = "https://files.grouplens.org/datasets/movielens"
_GROUPLENS_TERMS: Final = "research; no redistribution, no commercial use without permission (GroupLens)"


def _movielens(release: str, md5: str | None, size: str) -> RemoteDataset:
    url = f"{_GROUPLENS}/ml-{release}.zip"
    checksum = Checksum("md5", md5) if md5 is not None else None
    file = RemoteFile(url, checksum, None if md5 is not None else f"{url}.md5")
    page = f"https://grouplens.org/datasets/movielens/{release.removesuffix('-small')}/"
    return RemoteDataset(f"movielens-{release}", (file,), size, _GROUPLENS_TERMS, page, {"kind": "movielens"})


_MOVIELENS: Final = (
    _movielens("100k", "0e33842e24a9c977be4e0107933c0723", "5 MB, 16 MB unpacked"),
    _movielens("1m", "c4d9eecfca2ab87c1945afe126590906", "6 MB, 25 MB unpacked"),
    _movielens("20m", "cd245b17a1ae2cc31bb14903e1204af3", "190 MB, 0.9 GB unpacked"),
    _movielens("25m", "6b51fb2759a8657d3bfcbfc42b592ada", "262 MB, 1.1 GB unpacked"),
    _movielens("32m", "d472be332d4daa821edc399621853b57", "239 MB, 0.9 GB unpacked"),
    _movielens("latest-small", None, "1 MB, 3 MB unpacked"),
)

_KUAIRAND_FILES: Final = "https://zenodo.org/records/10439422/files"


def _kuairand(version: str, md5: str, size: str) -> RemoteDataset:
    file = RemoteFile(f"{_KUAIRAND_FILES}/KuaiRand-{version}.tar.gz", Checksum("md5", md5))
    return RemoteDataset(
        f"kuairand-{version.lower()}", (file,), size, "CC BY-SA 4.0", "https://kuairand.com", {"kind": "kuairand"}
    )


_KUAIRAND: Final = (
    _kuairand("Pure", "0820331067a3784d9691136f772b35a7", "45 MB, 194 MB unpacked"),
    _kuairand("1K", "6b0b9c8222d67fcd4c676218edca3f1f", "1.1 GB, 4.3 GB unpacked"),
    _kuairand("27K", "3e3c799a24e2d23a4d2c757fbf9adf59", "46 GB unpacked"),
)


@dataclass(frozen=True)
class _AmazonVersion:
    """Where the files of one version are.

    Attributes:
        reviews: Address of each form of the reviews.
        metadata: Address of the metadata.
        default: The form that is fetched unless another is asked for.
        page: Where the publisher describes it.
        categories: As they are spelled in the addresses.
    """

    reviews: Mapping[str, str]
    metadata: str
    default: Reviews
    page: str
    categories: tuple[str, ...]


_CATEGORIES_2014: Final = """
Amazon_Instant_Video Apps_for_Android Automotive Baby Beauty Books CDs_and_Vinyl Cell_Phones_and_Accessories
Clothing_Shoes_and_Jewelry Digital_Music Electronics Grocery_and_Gourmet_Food Health_and_Personal_Care
Home_and_Kitchen Kindle_Store Movies_and_TV Musical_Instruments Office_Products Patio_Lawn_and_Garden Pet_Supplies
Sports_and_Outdoors Tools_and_Home_Improvement Toys_and_Games Video_Games
"""
_CATEGORIES_2018: Final = """
AMAZON_FASHION All_Beauty Appliances Arts_Crafts_and_Sewing Automotive Books CDs_and_Vinyl Cell_Phones_and_Accessories
Clothing_Shoes_and_Jewelry Digital_Music Electronics Gift_Cards Grocery_and_Gourmet_Food Home_and_Kitchen
Industrial_and_Scientific Kindle_Store Luxury_Beauty Magazine_Subscriptions Movies_and_TV Musical_Instruments
Office_Products Patio_Lawn_and_Garden Pet_Supplies Prime_Pantry Software Sports_and_Outdoors
Tools_and_Home_Improvement Toys_and_Games Video_Games
"""
_CATEGORIES_2023: Final = """
All_Beauty Amazon_Fashion Appliances Arts_Crafts_and_Sewing Automotive Baby_Products Beauty_and_Personal_Care Books
CDs_and_Vinyl Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics Gift_Cards
Grocery_and_Gourmet_Food Handmade_Products Health_and_Household Health_and_Personal_Care Home_and_Kitchen
Industrial_and_Scientific Kindle_Store Magazine_Subscriptions Movies_and_TV Musical_Instruments Office_Products
Patio_Lawn_and_Garden Pet_Supplies Software Sports_and_Outdoors Subscription_Boxes Tools_and_Home_Improvement
Toys_and_Games Video_Games Unknown
"""
_MCAULEY: Final = "https://mcauleylab.ucsd.edu/public_datasets/data"
_AMAZON: Final = {
    "2014": _AmazonVersion(
        reviews={
            "5core": f"{_MCAULEY}/amazon/categoryFiles/reviews_CATEGORY_5.json.gz",
            "all": f"{_MCAULEY}/amazon/categoryFiles/reviews_CATEGORY.json.gz",
            "ratings": f"{_MCAULEY}/amazon/categoryFiles/ratings_CATEGORY.csv",
        },
        metadata=f"{_MCAULEY}/amazon/categoryFiles/meta_CATEGORY.json.gz",
        default="5core",
        page="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
        categories=tuple(_CATEGORIES_2014.split()),
    ),
    "2018": _AmazonVersion(
        reviews={
            "5core": f"{_MCAULEY}/amazon_v2/categoryFilesSmall/CATEGORY_5.json.gz",
            "all": f"{_MCAULEY}/amazon_v2/categoryFiles/CATEGORY.json.gz",
            "ratings": f"{_MCAULEY}/amazon_v2/categoryFilesSmall/CATEGORY.csv",
        },
        metadata=f"{_MCAULEY}/amazon_v2/metaFiles2/meta_CATEGORY.json.gz",
        default="5core",
        page="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/",
        categories=tuple(_CATEGORIES_2018.split()),
    ),
    "2023": _AmazonVersion(
        reviews={
            "5core": f"{_MCAULEY}/amazon_2023/benchmark/5core/rating_only/CATEGORY.csv.gz",
            "all": f"{_MCAULEY}/amazon_2023/raw/review_categories/CATEGORY.jsonl.gz",
            "ratings": f"{_MCAULEY}/amazon_2023/benchmark/0core/rating_only/CATEGORY.csv.gz",
        },
        metadata=f"{_MCAULEY}/amazon_2023/raw/meta_categories/meta_CATEGORY.jsonl.gz",
        default="all",
        page="https://amazon-reviews-2023.github.io",
        categories=tuple(_CATEGORIES_2023.split()),
    ),
}


def _amazon(version: str, category: str, reviews: Reviews | None) -> RemoteDataset:
    known = _AMAZON[version]
    urls = (known.reviews[reviews or known.default], known.metadata)
    return RemoteDataset(
        name=f"amazon-{version}/{category}",
        files=tuple(RemoteFile(url.replace("CATEGORY", category)) for url in urls),
        size="1 MB to 20 GB, by category",
        terms="public for research; no licence text, cite the papers",
        page=known.page,
        recipe={"kind": "amazon_reviews", "version": int(version)},
        categories=known.categories,
    )
