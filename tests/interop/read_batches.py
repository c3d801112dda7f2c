"""Reads batches with kafka-python and prints what it sees, a JSON line a record; or writes batches that we then read.

read_batches.py read FILE..       prints offset, timestamp, key, value and headers of each record
read_batches.py write DIRECTORY   writes one file of a batch for each codec, and what is in it as JSON lines
"""

import json
import sys

from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}


def text(data):
    return None if data is None else bytes(data).hex()


def line(record):
    return json.dumps(
        [record.offset, record.timestamp, text(record.key), text(record.value), [[n, text(v)] for n, v in record.headers]]
    )


def read(paths):
    for path in paths:
        with open(path, "rb") as file:
            records = MemoryRecords(file.read())
        while records.has_next():
            batch = records.next_batch()
            assert batch.validate_crc(), path
            for record in batch:
                print(line(record))


def write(directory):
    for name, codec in CODECS.items():
        builder = DefaultRecordBatchBuilder(
            magic=2,
            compression_type=codec,
            is_transactional=False,
            producer_id=-1,
            producer_epoch=-1,
            base_sequence=-1,
            batch_size=1 << 20,
        )
        expected = []
        for index in range(50):
            key = None if index % 7 == 0 else f"key-{index}".encode()
            value = None if index % 11 == 0 else (f"value-{index}-" * 9).encode()
            headers = [("h", b"x"), ("n", None)] if index % 3 == 0 else []
            builder.append(index, timestamp=1700000000000 + index * 13, key=key, value=value, headers=headers)
            expected.append([index, 1700000000000 + index * 13, text(key), text(value), [[n, text(v)] for n, v in headers]])
        with open(f"{directory}/{name}.batch", "wb") as file:
            file.write(bytes(builder.build()))
        with open(f"{directory}/{name}.jsonl", "w") as file:
            file.writelines(json.dumps(record) + "\n" for record in expected)


if __name__ == "__main__":
    read(sys.argv[2:]) if sys.argv[1] == "read" else write(sys.argv[2])
