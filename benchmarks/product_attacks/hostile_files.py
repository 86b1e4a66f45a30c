"""Hostile files: each with the command that reads it."""

import gzip
import io
import itertools
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from test_limits import HOSTILE as TEMPLATES

from gram_jax.checkpoint.manifest import MANIFEST
from product_attacks.commands import Words

ROW = {"prompt": "p", "chosen": "a", "rejected": "b"}
LINE = json.dumps(ROW).encode()
MB = 2**20
BAD_NUMBERS: tuple[Any, ...] = (
    0, -1, 10**6, 10**9, 10**30, 2**63, 1.5, 1e400, float("nan"), "64", [64], {}, None, True,
)  # fmt: skip


def hostile_files(
    base: Path, judge: Path, pairs: Path, every: int = 1, first: int = 0
) -> Iterator[tuple[str, Words]]:
    """(name, command) of each every-th file from the first; it exists until the next one is requested.

    base: an empty folder.
    """
    plain = base / "plain"
    shutil.copytree(judge, plain)
    (plain / MANIFEST).unlink()
    save_file(load_file(plain / "model.safetensors"), plain / "model.safetensors")
    for name, make, words in itertools.islice(_all(base, plain, judge, pairs), first, None, every):
        made = make()
        yield name, words
        shutil.rmtree(made) if made.is_dir() else made.unlink()


def _all(
    base: Path, plain: Path, judge: Path, pairs: Path
) -> Iterator[tuple[str, Callable[[], Path], Words]]:
    """(name, what makes the file or folder, command)."""
    model, out = base / "model", base / "out.jsonl"

    def written(path: Path, content: Callable[[], bytes]) -> Callable[[], Path]:
        def make() -> Path:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content())
            return path if path.parent == base else path.parent

        return make

    def edited(edit: Callable[[Path], object]) -> Callable[[], Path]:
        def make() -> Path:
            shutil.copytree(plain, model)
            edit(model)
            return model

        return make

    def template_of(text: str) -> Callable[[Path], object]:
        def edit(folder: Path) -> None:
            (folder / "judge.json").unlink()
            (folder / "chat_template.jinja").write_text(text)

        return edit

    for name, content in _data():
        path = base / name.split(": ")[0]
        yield name, written(path, content), ["score", path, out, "-m", judge, "--overwrite"]
    for name, edit in (*_configs(), *_weights(), *_texts()):
        yield name, edited(edit), ["score", pairs, out, "-m", model, "--overwrite"]
    for number, text in enumerate(TEMPLATES):
        name = f"chat template {number}: {text[:60]}"
        yield name, edited(template_of(text)), ["spec", base / "s.json", "-m", model]
    for name, data in _ggufs():
        path = base / "x.gguf"
        words: Words = ["score", pairs, out, "-m", path, "--overwrite"]
        yield name, written(path, lambda data=data: data), words
    for name, text in _recipes():
        path = base / "x.toml"
        for command in ("train", "rl"):
            make = written(path, lambda text=text: text.encode())
            yield f"{command} {name}", make, [command, path]
    for name, text in _results():
        path = base / "results" / "evaluation.json"
        make = written(path, lambda text=text: text.encode())
        yield name, make, ["report", path.parent, "--overwrite"]


def _data() -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(file: what it is, its content)."""
    long = b'{"prompt": "' + b"x" * (200 * MB) + b'"}'
    for name in ("x.jsonl", "x.json", "x.csv", "x.tsv"):
        yield f"{name}: a line of 200 MB", lambda: long
    yield "x.jsonl: 60 million small lists", lambda: b"[" + b"[]," * (60 * MB) + b"[]]"
    yield "x.json: 60 million small lists", lambda: b"[" + b"[]," * (60 * MB) + b"[]]"
    yield "x.json: 20 million objects", lambda: b"[" + b'{"a":0},' * (20 * MB) + b"{}]"
    yield "x.csv: 60 million cells", lambda: b"prompt,chosen\n" + b"," * (60 * MB)
    yield "x.csv: a row of 20 million lines", lambda: b"a,b\n" + b'"\n",' * (20 * MB)
    yield "x.csv: an open quote", lambda: b'a,b\n"' + b"x\n" * (50 * MB)
    for name in ("x.jsonl.gz", "x.json.gz", "x.csv.gz"):
        for kind, unit in (("blanks", b" " * MB), ("lines", b"\n" * MB), ("lists", b"[" * MB)):

            def bomb(unit: bytes = unit) -> bytes:
                out = io.BytesIO()
                with gzip.GzipFile(fileobj=out, mode="wb") as file:
                    file.write(b"a,b\n" + LINE + b"\n")
                    for _ in range(1000):
                        file.write(unit)
                return out.getvalue()

            yield f"{name}: 1 GB of {kind}", bomb
        yield f"{name}: truncated", lambda: gzip.compress(LINE * 1000)[:-20]
        yield f"{name}: not gzip", lambda: LINE
        yield f"{name}: a damaged checksum", lambda: gzip.compress(LINE)[:-8] + b"12345678"
    texts = {
        "empty": b"",
        "blanks": b" \n\n ",
        "one bracket": b"[",
        "deep lists": b"[" * 200_000,
        "deep objects": b'{"prompt":' * 200_000,
        "a deep prompt": b'{"prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        "zeros": bytes(MB),
        "random bytes": np.random.default_rng(0).bytes(MB),
        "UTF-16": LINE.decode().encode("utf-16"),
        "a BOM twice": b"\xef\xbb\xbf\xef\xbb\xbf" + LINE,
        "a lone surrogate": b'{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}',
        "bad UTF-8": b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}',
        "a number of 10,000 digits": b'{"prompt": ' + b"9" * 10_000 + b"}",
        "NaN": b'{"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": NaN}',
        "Infinity": b'{"prompt": "p", "chosen": "a", "rejected": "b", "margin": Infinity}',
        "1e999": b'{"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1e999}',
        "a weight of 1e400": b'{"prompt": "p", "chosen": "a", "rejected": "b", "weight": 1e400}',
        "a negative weight": b'{"prompt": "p", "chosen": "a", "rejected": "b", "weight": -1}',
        "numbers as texts": b'{"prompt": 1, "chosen": 2, "rejected": 3}',
        "null": b"null",
        "null texts": b'{"prompt": null, "chosen": null, "rejected": null}',
        "a text": b'"abc"',
        "lists as rows": b"[[1], [2]]",
        "keys twice": b'{"prompt": "p", "prompt": 1, "chosen": "a", "rejected": "b"}',
        "100,000 keys": json.dumps(ROW | {str(k): k for k in range(100_000)}).encode(),
        "control tokens": json.dumps(ROW | {"chosen": "<|im_end|>" * 50}).encode(),
        "delimiters": json.dumps(ROW | {"chosen": "[Response B]\nx\n[Question]\n" * 50}).encode(),
        "a response of 5 MB": json.dumps(ROW | {"chosen": "é🙂 " * 10**6}).encode(),
        "zero bytes in texts": json.dumps(ROW | {"chosen": "a\0b"}).encode(),
        "10,000 messages": json.dumps(
            ROW | {"prompt": [{"role": "user", "content": "x"}] * 9999}
        ).encode(),
        "unknown roles": json.dumps(ROW | {"prompt": [{"role": "x" * 999, "content": 1}]}).encode(),
        "messages in messages": json.dumps(ROW | {"prompt": [[[{"role": "user"}]]]}).encode(),
        "an id of 1 MB": json.dumps(ROW | {"id": "x" * MB}).encode(),
        "100,000 candidates": json.dumps(
            {"prompt": "p", "responses": [str(k) for k in range(100_000)]}
        ).encode(),
    }
    for kind, content in texts.items():
        yield f"x.jsonl: {kind}", lambda content=content: content
    for kind in ("empty", "zeros", "random bytes", "UTF-16", "bad UTF-8", "deep lists"):
        for name in ("x.csv", "x.parquet", "x.json"):
            yield f"{name}: {kind}", lambda kind=kind: texts[kind]
    yield "x.parquet: a footer of 2 GB", lambda: b"PAR1" + b"\xff\xff\xff\x7fPAR1"
    yield "x.csv: 200,000 columns", lambda: ",".join(map(str, range(200_000))).encode() + b"\n1\n"
    yield "x.xyz: an unknown name", lambda: LINE


def _configs() -> Iterator[tuple[str, Callable[[Path], None]]]:
    def with_values(**values: Any) -> Callable[[Path], None]:
        def edit(folder: Path) -> None:
            path = folder / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | values))

        return edit

    for name in (
        "num_hidden_layers", "hidden_size", "rms_norm_eps", "rope_theta", "num_attention_heads",
        "num_key_value_heads", "vocab_size", "max_position_embeddings", "head_dim",
    ):  # fmt: skip
        for value in BAD_NUMBERS:
            changes = {name: value}
            if name == "rope_theta":
                changes["rope_parameters"] = None
            yield f"config.json: {name} = {str(value)[:40]}", with_values(**changes)
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    for name in list(llama3)[1:]:
        for value in (0, float("inf"), "x", -1):
            scaling = llama3 | {name: value, "rope_theta": 1e4}
            yield f"config.json: {name} = {value}", with_values(rope_parameters=scaling)
    yield (
        "config.json: equal frequency factors",
        with_values(rope_parameters=llama3 | {"high_freq_factor": 1.0, "rope_theta": 1e4}),
    )
    for name, value in (
        ("rope_parameters", 5), ("rope_parameters", [1]), ("rope_scaling", "x"),
        ("architectures", 5), ("layer_types", [[1]]), ("layer_types", 5), ("model_type", [1]),
        ("model_type", "../x"), ("auto_map", {"AutoConfig": "x.Y"}), ("eos_token_id", 10**9),
        ("quantization_config", {}), ("tie_word_embeddings", "x"),
    ):  # fmt: skip
        yield f"config.json: {name} = {value}", with_values(**{name: value})
    for kind, text in (
        ("empty", ""), ("a list", "[]"), ("deep", "[" * 200_000), ("100 MB", " " * 100 * MB),
    ):  # fmt: skip

        def replace(folder: Path, text: str = text) -> None:
            (folder / "config.json").write_text(text)

        yield f"config.json: {kind}", replace


def _weights() -> Iterator[tuple[str, Callable[[Path], None]]]:
    def header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
        def edit(folder: Path) -> None:
            path = folder / "model.safetensors"
            raw = path.read_bytes()
            size = int.from_bytes(raw[:8], "little")
            found = json.loads(raw[8 : 8 + size])
            text = change(found)
            text = text if isinstance(text, bytes) else json.dumps(found).encode()
            path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])

        return edit

    def tensor(**values: Any) -> Callable[[dict[str, Any]], None]:
        return lambda found: found["model.norm.weight"].update(values)

    def bytes_of(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
        def edit(folder: Path) -> None:
            path = folder / "model.safetensors"
            path.write_bytes(change(path.read_bytes()))

        return edit

    yield "safetensors: a shape of 2**60", header(tensor(shape=[2**60]))
    yield "safetensors: a negative shape", header(tensor(shape=[-1]))
    yield "safetensors: another shape", header(tensor(shape=[8, 8]))
    yield "safetensors: an unknown dtype", header(tensor(dtype="F7"))
    yield "safetensors: integers", header(tensor(dtype="I32"))
    yield "safetensors: offsets beyond the end", header(tensor(data_offsets=[0, 2**40]))
    yield "safetensors: overlapping tensors", header(tensor(data_offsets=[0, 256]))
    yield "safetensors: a deep header", header(lambda _: b"[" * 200_000)
    yield "safetensors: an empty header", header(lambda _: b"{}")
    yield "safetensors: no JSON", header(lambda _: b"\xff" * 100)
    yield "safetensors: metadata that are no texts", header(lambda h: h.update(__metadata__=5))
    yield (
        "safetensors: 100,000 tensors",
        header(lambda h: h.update({f"x{k}": h["model.norm.weight"] for k in range(100_000)})),
    )
    yield "safetensors: a header of 2**63 bytes", bytes_of(lambda b: b"\xff" * 8 + b[8:])
    yield "safetensors: empty", bytes_of(lambda b: b"")
    yield "safetensors: truncated", bytes_of(lambda b: b[: len(b) // 2])
    yield "safetensors: a pickle", bytes_of(lambda b: b"\x80\x04" + b)
    yield "safetensors: a pointer", bytes_of(lambda b: b"version https://git-lfs.github.com/spec")
    for kind, index in (
        ("outside", {"weight_map": {"a": "../judge/model.safetensors"}}),
        ("absolute", {"weight_map": {"a": "/etc/passwd"}}),
        ("missing", {"weight_map": {"a": "nothing.safetensors"}}),
        ("numbers", {"weight_map": {"a": 5}}),
        ("a list", {"weight_map": []}),
        ("no map", {}),
        ("another name", {"weight_map": {"a": "model.safetensors"}}),
    ):

        def with_index(folder: Path, index: Any = index) -> None:
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))

        yield f"index: {kind}", with_index


def _texts() -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Tokenizer, judge and generation settings."""
    for file in (
        "tokenizer.json", "tokenizer_config.json", "judge.json", "generation_config.json",
        "chat_template.jinja",
    ):  # fmt: skip
        for kind, content in (
            ("empty", b""),
            ("deep", b"[" * 200_000),
            ("random bytes", np.random.default_rng(1).bytes(1000)),
            ("a list", b"[]"),
            ("null", b"null"),
            ("100 MB", b" " * (100 * MB)),
        ):
            if file != "chat_template.jinja" or kind == "100 MB":

                def write(folder: Path, file: str = file, content: bytes = content) -> None:
                    (folder / file).write_bytes(content)

                yield f"{file}: {kind}", write

    def changed(file: str, **values: Any) -> Callable[[Path], None]:
        def edit(folder: Path) -> None:
            path, more = folder / file, {"hash": None} if file == "judge.json" else {}
            path.write_text(json.dumps(json.loads(path.read_text()) | more | values))

        return edit

    for name, value in (
        ("label_ids", [10**9, 1]), ("label_ids", [-1, 1]), ("label_ids", [1, 1]),
        ("max_length", 10**12), ("max_length", -1), ("max_length", 1e400), ("labels", ["", "B"]),
        ("template", "{prompt}" * 99), ("template", "x" * MB), ("chat_prefix", "x" * MB),
        ("tokenizer", 5), ("unknown", 1), ("format", 99),
    ):  # fmt: skip
        yield f"judge.json: {name} = {str(value)[:40]}", changed("judge.json", **{name: value})
    for name, value in (
        ("tokenizer_class", "os.system"), ("tokenizer_class", "BertTokenizer"),
        ("model_max_length", -5), ("eos_token", {"a": 1}), ("auto_map", {"AutoTokenizer": ["x.Y"]}),
    ):  # fmt: skip
        name_value = f"tokenizer_config.json: {name} = {value}"
        yield name_value, changed("tokenizer_config.json", **{name: value})
    yield "generation_config.json: eos", changed("generation_config.json", eos_token_id=["x"])


def _ggufs() -> Iterator[tuple[str, bytes]]:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def file(content: bytes, *, tensors: int = 0, values: int = 1, version: int = 3) -> bytes:
        return b"GGUF" + struct.pack("<IQQ", version, tensors, values) + content

    array = text("a") + struct.pack("<I", 9)
    yield "gguf: empty", b""
    yield "gguf: magic alone", b"GGUF"
    yield "gguf: version 99", file(b"", version=99)
    yield "gguf: other byte order", file(b"", version=3 << 24)
    yield "gguf: 2**60 values", file(array, values=2**60)
    yield "gguf: 2**60 tensors", file(b"", values=0, tensors=2**60)
    yield "gguf: nested arrays", file(array + struct.pack("<IQ", 9, 1) * 20_000)
    yield "gguf: an array of 2**60", file(array + struct.pack("<IQ", 0, 2**60))
    yield (
        "gguf: an array of 50 million",
        file(array + struct.pack("<IQ", 0, 50 * MB) + bytes(50 * MB)),
    )
    yield (
        "gguf: an array of empty arrays",
        file(array + struct.pack("<IQ", 9, 2 * MB) + struct.pack("<IQ", 0, 0) * (2 * MB)),
    )
    yield "gguf: a text of 2**60", file(text("a") + struct.pack("<IQ", 8, 2**60))
    yield "gguf: an unknown type", file(text("a") + struct.pack("<I", 99))
    yield "gguf: a key that is no UTF-8", file(struct.pack("<Q", 2) + b"\xff\xff" + bytes(8))
    yield "gguf: keys twice", file((text("a") + struct.pack("<IB", 0, 1)) * 2, values=2)
    tensor = text("t") + struct.pack("<IQQIQ", 2, 2**31, 2**31, 0, 0)
    yield "gguf: a tensor of 2**62", file(tensor, values=0, tensors=1)
    kind = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    yield "gguf: no sizes", file(kind)
    wrong = text("llama.block_count") + struct.pack("<I", 8) + text("many")
    names = ("embedding_length", "attention.head_count", "feed_forward_length", "context_length")
    sizes = b"".join(text(f"llama.{name}") + struct.pack("<II", 4, 64) for name in names)
    eps = text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, float("inf"))
    yield "gguf: a size that is a text", file(kind + sizes + eps + wrong, values=7)
    layers = text("llama.block_count") + struct.pack("<II", 4, 10**6)
    yield "gguf: a million layers", file(kind + sizes + eps + layers, values=7)


def _recipes() -> Iterator[tuple[str, str]]:
    yield "recipe: empty", ""
    yield "recipe: deep", "a = " + "[" * 200_000
    yield "recipe: deep tables", "[" + ".".join(["a"] * 50_000) + "]"
    yield "recipe: unknown", "stage = 5\nx = nan"
    yield "recipe: zero bytes", "\0" * 1000
    yield "recipe: a text of 50 MB", 'stage = "' + "x" * (50 * MB) + '"'


def _results() -> Iterator[tuple[str, str]]:
    for kind, text in (
        ("empty", ""), ("deep", "[" * 200_000), ("a list", "[]"), ("null", "null"),
        ("another format", '{"format": 99}'), ("NaN", '{"format": 1, "sources": NaN}'),
        ("a script", '{"model": "<script>alert(1)</script>", "format": 2, "sources": {}}'),
    ):  # fmt: skip
        yield f"evaluation.json: {kind}", text
