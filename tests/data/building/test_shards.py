import os

import pytest
from array_record.python import array_record_data_source

from data.building import shards


def test_records_come_back_in_order_from_files_of_bounded_size(tmp_path):
    records = [os.urandom(size) for size in [100] * 30 + [5000, 1, 1]]
    paths = {}

    def path(number, count):
        paths[number, count] = str(tmp_path / f"x-{number:05}-of-{count:05}")
        return paths[number, count]

    written = shards.write(iter(records), path, shard_bytes=1000)
    assert written == ([10, 10, 10, 1, 2], sum(map(len, records)))
    files = sorted(str(file) for file in tmp_path.iterdir())
    assert files == [paths[number, 5] for number in range(5)]
    source = array_record_data_source.ArrayRecordDataSource(files)
    assert source.__getitems__(range(len(records))) == records


def test_an_error_of_the_records_is_theirs(tmp_path):
    def records():
        yield b"1"
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        shards.write(records(), lambda number, count: str(tmp_path / f"{number}-{count}"))
