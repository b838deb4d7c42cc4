"""Writes tests/golden/tables/: the parquet files that pandas, pyarrow and Hugging Face datasets leave, and broken ones.

Run from anywhere: python tests/golden/tables.py (pandas 3.1, pyarrow 26.0). Nothing is random.
Every readable file holds the same four rows, so one test expects one answer of all of them.
"""

import struct
import zlib
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent / "tables"
PROMPTS = ["a red fox", "a red fox", "Füchse, 狐", "a red fox"]
POSITIVE = ["a.png", "sub/b.png", "a.png", "a.png"]
NEGATIVE = ["sub/b.png", "c.png", "c.png", "sub/b.png"]
AGE = [7, 8, 7, 9]


def png(red: int) -> bytes:
    """A 1×1 image."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes([0, red, 0, 0]))) + chunk(b"IEND", b"")


BYTES = {"a.png": png(10), "sub/b.png": png(20), "c.png": png(30)}


def write(name: str, columns: dict, **options) -> None:
    pq.write_table(pa.table(columns), HERE / f"{name}.parquet", **options)


def strings(kind: pa.DataType) -> dict:
    return {
        "prompt": pa.array(PROMPTS, kind),
        "pos_path": pa.array(POSITIVE, kind),
        "neg_path": pa.array(NEGATIVE, kind),
    }


def main() -> None:
    HERE.mkdir(exist_ok=True)
    (HERE / "sub").mkdir(exist_ok=True)
    for path, content in BYTES.items():
        (HERE / path).write_bytes(content)
    (HERE / "text.jpg").write_text("This is text that somebody renamed.\n")
    (HERE / "zero.jpg").write_bytes(b"")

    # String columns in all their types.
    frame = pd.DataFrame({"prompt": PROMPTS, "pos_path": POSITIVE, "neg_path": NEGATIVE, "age": AGE})
    frame["style"] = ["oil", None, "ink", "oil"]
    frame.index = pd.Index([3, 1, 2, 0], name="id")  # becomes a column of its own, `id`
    frame.to_parquet(HERE / "pandas.parquet")
    frame.astype({"prompt": "category", "pos_path": "category", "neg_path": "category"}).to_parquet(HERE / "pandas_category.parquet")
    write("large_string", strings(pa.large_string()))
    write("string_view", strings(pa.string_view()))
    write("dictionary", {k: v.dictionary_encode() for k, v in strings(pa.string()).items()})
    write("row_groups", strings(pa.string()), row_group_size=1)
    write("no_arrow_schema", strings(pa.string()), store_schema=False, use_dictionary=False, data_page_version="2.0")
    for codec in ["snappy", "zstd", "gzip", "brotli", "lz4", "none"]:
        write(f"codec_{codec}", strings(pa.string()), compression=codec)

    # Images inside the file.
    prompt = pa.array(PROMPTS)
    for name, kind in {"binary": pa.binary(), "large_binary": pa.large_binary(), "binary_view": pa.binary_view()}.items():
        cells = lambda paths: pa.array([BYTES[path] for path in paths], kind)
        write(name, {"prompt": prompt, "pos_image": cells(POSITIVE), "neg_image": cells(NEGATIVE)})
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # datasets' Image feature
    both = lambda paths: pa.array([{"bytes": BYTES[path], "path": Path(path).name} for path in paths], image)
    by_path = lambda paths: pa.array([{"bytes": None, "path": path} for path in paths], image)
    write("struct_bytes", {"prompt": prompt, "pos_image": both(POSITIVE), "neg_image": both(NEGATIVE)}, row_group_size=2)
    write("struct_path", {"prompt": prompt, "pos_image": by_path(POSITIVE), "neg_image": by_path(NEGATIVE)})

    # What a reader has to refuse.
    write("missing_column", {"prompt": prompt, "positive": pa.array(POSITIVE), "neg_paths": pa.array(NEGATIVE)})
    write("wrong_type", {**strings(pa.string()), "prompt": pa.array(AGE)})
    write("wrong_image_type", {**strings(pa.string()), "pos_image": pa.array(POSITIVE)})
    write("null_prompt", {**strings(pa.string()), "prompt": pa.array(["a", None, "b", None])})
    write("null_path", {**strings(pa.string()), "neg_path": pa.array(["a.png", "a.png", "", None])})
    write("null_image", {"prompt": prompt, "pos_image": both(POSITIVE), "neg_image": pa.array([{"bytes": None, "path": None}] * 3 + [None], image)})
    write("all_null", {**strings(pa.string()), "prompt": pa.nulls(4)})
    write("zero_rows", {name: column.slice(0, 0) for name, column in strings(pa.string()).items()})
    frame.iloc[:0].astype(object).to_parquet(HERE / "zero_rows_pandas.parquet")
    whole = (HERE / "pandas.parquet").read_bytes()
    (HERE / "truncated.parquet").write_bytes(whole[: len(whole) // 2])
    (HERE / "text.parquet").write_text("prompt,pos_path,neg_path\n")

    # Manifests: the same three lines in each form.
    manifest = pd.DataFrame({"path": ["a.png", "sub/b.png", "a.png"], "prompt": ["a red fox", 'she said "hi", twice', "a red fox"], "seed": [1, 2, 3]})
    manifest.to_parquet(HERE / "manifest.parquet")
    manifest.to_csv(HERE / "manifest.csv", index=False)
    manifest.to_csv(HERE / "manifest_excel.csv", index=False, encoding="utf-8-sig", lineterminator="\r\n")
    manifest.to_json(HERE / "manifest.jsonl", orient="records", lines=True)


main()
