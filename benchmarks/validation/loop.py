"""What data_validation is measured against: a plain loop over `json.loads` with the same checks and the same output."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from rlhf.data.formats import Reason, Unfit, convert, own_id, parse, recognise
from rlhf.data.store import CODEC
from rlhf.data.template import Template
from rlhf.data_validation.suffix import without_marker

ROWS_PER_SHARD = 50_000
_COLUMNS = ("id", "prompt", "chosen", "rejected", "split", "position", "margin")
_TYPES = {"position": pa.int8(), "margin": pa.float32()}
_INDEX = ("line", "offset", "position", "prompt_key", "one_key", "other_key", "draw", *(f"{n}_chars" for n in "pcr"))


def validate(source: Path, target: Path, template: Template) -> tuple[int, int]:
    """Check preferences row by row; write canonical Parquet, and beside it what data_validation keeps of each row.

    Args:
        source: JSON lines.
        target: Folder for the shards.
        template: How prompts end.

    Returns:
        Rows kept, rows put aside.
    """
    target.mkdir(parents=True)
    ids, rows, index, aside = set(), [], [], []
    digest = xxhash.xxh3_128()
    shape, kept, shards, offset = None, 0, 0, 0

    def write() -> None:
        nonlocal shards
        for names, values, part in ((_COLUMNS, rows, "part"), (_INDEX, index, "index")):
            types = [pa.uint64() if name.endswith("_key") else _TYPES.get(name) for name in names]
            columns = [pa.array([row[i] for row in values], kind) for i, kind in enumerate(types)]
            table = pa.table(columns, names=list(names))
            pq.write_table(table, target / f"{part}-{shards}.parquet", compression=CODEC, use_dictionary=False)
            values.clear()
        shards += 1

    with source.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.decode()
            try:
                row = parse(text)
                shape = shape or recognise(row)
                if recognise(row) != shape:
                    raise Unfit(Reason.MISSING_FIELD)
                canonical = convert(row, shape, "preferences", template.suffix)
            except Unfit as unfit:
                aside.append((number, offset, unfit.reason, unfit.field, text))
            else:
                chosen, rejected = (without_marker(canonical[name], template.suffix) for name in ("chosen", "rejected"))
                texts = template.body(canonical["prompt"]), chosen.strip(), rejected.strip()
                keys = [xxhash.xxh3_64_intdigest(text.encode()) for text in texts]
                name = own_id(row) or xxhash.xxh3_64_hexdigest(json.dumps(keys).encode())
                while name in ids:
                    name += "-2"
                ids.add(name)
                draw = xxhash.xxh3_64_intdigest(f"0:{keys[0]}".encode()) / 2**64
                position, margin = canonical["position"], canonical["margin"]
                side = "eval" if draw < 0.1 else "train"
                rows.append((name, canonical["prompt"], chosen, rejected, side, position, margin))
                index.append((number, offset, position, *keys, draw, *map(len, texts)))
                digest.update(json.dumps(rows[-1]).encode())
                kept += 1
                if len(rows) >= ROWS_PER_SHARD:
                    write()
            offset += len(line)
    write()
    return kept, len(aside)
