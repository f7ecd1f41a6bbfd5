"""What data_validation is measured against: a plain loop over `json.loads` that makes the same checks and output."""

import hashlib
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_MARKER = re.compile(r"\[\w+\]:|tl;?dr:?|[\w;]{1,20}:", re.IGNORECASE)
_COLUMNS = ("id", "prompt", "chosen", "rejected", "split")


def validate(source: Path, target: Path, suffix: str, rows_per_shard: int = 50_000) -> tuple[int, int]:
    """Check Vertex text preferences row by row and write canonical Parquet.

    Args:
        source: JSON lines.
        target: Folder for the shards.
        suffix: How prompts end.

    Returns:
        Rows kept, rows put aside.
    """
    target.mkdir(parents=True)
    mark = suffix.strip()
    ids, rows, aside, kept, shards = set(), [], [], 0, 0
    digest = hashlib.sha256()

    def write() -> None:
        nonlocal rows, shards
        table = pa.table({name: pa.array([row[i] for row in rows]) for i, name in enumerate(_COLUMNS)})
        pq.write_table(table, target / f"{shards}.parquet", compression="snappy", use_dictionary=False)
        rows, shards = [], shards + 1

    with source.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                prompt, texts = row["input_text"], (row["candidate_0"], row["candidate_1"])
                choice = row["choice"]
                if isinstance(choice, bool) or choice not in (0, 1):
                    raise ValueError("choice")
                for text in (prompt, *texts):
                    bare = text.strip()
                    if not bare or _MARKER.fullmatch(bare) or bare == mark:
                        raise ValueError("blank")
                chosen, rejected = texts[choice], texts[1 - choice]
                if chosen.strip() == rejected.strip():
                    raise ValueError("equal")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                aside.append((number, str(error), line))
                continue
            chosen, rejected = (
                text.lstrip().removeprefix(mark) if text.lstrip().startswith(mark) else text
                for text in (chosen, rejected)
            )
            body = prompt.rstrip().removesuffix(mark).strip()
            keys = [hashlib.md5(text.strip().encode()).digest()[8:] for text in (body, chosen, rejected)]
            name = hashlib.md5(b"".join(keys)).hexdigest()[:16]
            while name in ids:
                name += "-2"
            ids.add(name)
            draw = int.from_bytes(hashlib.md5(b"0:" + keys[0]).digest()[:8], "little") / 2**64
            rows.append((name, prompt, chosen, rejected, "eval" if draw < 0.1 else "train"))
            digest.update(json.dumps(rows[-1]).encode())
            kept += 1
            if len(rows) >= rows_per_shard:
                write()
    if rows:
        write()
    return kept, len(aside)
