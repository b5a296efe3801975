"""Streams and samplers of other libraries, killed and resumed in a loop of one's own.

The libraries are the dependency groups ``streams`` and ``mosaicml`` of the repository; a library
that is missing is skipped.
"""

from __future__ import annotations

import io
import tarfile
from typing import Any

import pytest
from data_helpers import USES_WORKERS
from stream_kinds import ROWS, assert_resumes_everywhere
from torch.utils.data import Dataset

from brain_data import SaveableDataLoader

pytestmark = [pytest.mark.long, *USES_WORKERS, pytest.mark.filterwarnings("ignore")]

WORKERS = pytest.mark.parametrize(
    ("workers", "persistent"),
    [(0, False), (2, False), (2, True)],
    ids=["no workers", "new workers", "persistent workers"],
)
SHARDS = 4


def shard(number: int) -> range:
    return range(number * ROWS // SHARDS, (number + 1) * ROWS // SHARDS)


def assert_a_stream_resumes(make_stream: Any, workers: int, *, persistent: bool) -> None:
    def make() -> Any:
        return SaveableDataLoader(
            make_stream(), batch_size=4, num_workers=workers, persistent_workers=persistent
        )

    compared = assert_resumes_everywhere(make)
    assert compared > 100


@WORKERS
@pytest.mark.parametrize("buffer_size", [None, 8], ids=["in order", "shuffled"])
def test_a_stream_of_hugging_face_resumes(
    buffer_size: int | None, workers: int, persistent: bool
) -> None:
    """Its own state is exact only without shuffling."""
    datasets = pytest.importorskip("datasets")

    def rows(shards: list[int]) -> Any:
        for number in shards:
            yield from ({"row": row} for row in shard(number))

    def make() -> Any:
        stream = datasets.IterableDataset.from_generator(
            rows, gen_kwargs={"shards": list(range(SHARDS))}
        )
        return stream.shuffle(seed=3, buffer_size=buffer_size) if buffer_size else stream

    assert_a_stream_resumes(make, workers, persistent=persistent)


@WORKERS
def test_a_map_style_dataset_of_hugging_face_resumes_as_a_stream(
    workers: int, persistent: bool
) -> None:
    """With ``to_iterable_dataset``."""
    datasets = pytest.importorskip("datasets")

    def make() -> Any:
        rows = datasets.Dataset.from_dict({"row": list(range(ROWS))})
        return rows.to_iterable_dataset(num_shards=SHARDS)

    assert_a_stream_resumes(make, workers, persistent=persistent)


@WORKERS
@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
def test_a_webdataset_resumes(
    tmp_path: Any, shuffled: bool, workers: int, persistent: bool
) -> None:
    """It has no state and is read again; shuffling needs a seed."""
    webdataset = pytest.importorskip("webdataset")
    urls = [str(tmp_path / f"{number}.tar") for number in range(SHARDS)]
    for number, url in enumerate(urls):
        with tarfile.open(url, "w") as tar:
            for row in shard(number):
                info = tarfile.TarInfo(f"{row:04d}.txt")
                info.size = len(str(row))
                tar.addfile(info, io.BytesIO(str(row).encode()))

    def make() -> Any:
        shards = {"shardshuffle": SHARDS, "seed": 5} if shuffled else {"shardshuffle": False}
        stream = webdataset.WebDataset(urls, empty_check=False, **shards)
        stream = stream.shuffle(8, seed=5) if shuffled else stream
        return stream.map(lambda sample: int(sample["txt"]))

    assert_a_stream_resumes(make, workers, persistent=persistent)


@WORKERS
@pytest.mark.parametrize("shuffled", [False, True], ids=["in order", "shuffled"])
def test_a_stream_of_mosaicml_resumes(
    tmp_path: Any, shuffled: bool, workers: int, persistent: bool
) -> None:
    """Its state is asked for with the number of samples, as its own loader does."""
    streaming = pytest.importorskip("streaming")
    with streaming.MDSWriter(out=str(tmp_path), columns={"row": "int"}, size_limit=256) as writer:
        for row in range(ROWS):
            writer.write({"row": row})

    def make() -> Any:
        streaming.base.util.clean_stale_shared_memory()
        return streaming.StreamingDataset(
            local=str(tmp_path), batch_size=4, shuffle=shuffled, shuffle_seed=9
        )

    assert_a_stream_resumes(make, workers, persistent=persistent)


class CutIds(Dataset[Any]):
    """Is indexed by cuts, and has no length."""

    def __getitem__(self, cuts: Any) -> list[int]:
        return [int(cut.id.rpartition("-")[2]) for cut in cuts]


class SizedCutIds(CutIds):
    """Has the length that older code gives such datasets."""

    def __len__(self) -> int:
        return ROWS


@WORKERS
@pytest.mark.parametrize("dataset", [CutIds, SizedCutIds])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SimpleCutSampler", {"shuffle": True}),
        ("DynamicCutSampler", {"shuffle": True}),
        ("BucketingSampler", {"shuffle": True, "num_buckets": 3}),
        ("DynamicBucketingSampler", {"shuffle": True, "num_buckets": 3}),
    ],
)
def test_a_sampler_of_lhotse_resumes(
    name: str, options: dict[str, Any], dataset: Any, workers: int, persistent: bool
) -> None:
    """A data set that is indexed by cuts needs no length."""
    pytest.importorskip("lhotse")
    from lhotse import CutSet
    from lhotse.dataset import sampling
    from lhotse.testing.dummies import dummy_cut

    cuts = [dummy_cut(row, duration=1.0 + row % 5) for row in range(ROWS)]

    def make() -> Any:
        sampler = getattr(sampling, name)(CutSet.from_cuts(cuts), max_duration=12.0, **options)
        return SaveableDataLoader(
            dataset(),
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=persistent,
        )

    assert assert_resumes_everywhere(make) > 100
