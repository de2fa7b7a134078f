"""The inputs that the cases of bad input name: a small corpus, checkpoints, runs and images, whole and broken in many ways."""

import contextlib
import gzip
import io
import json
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "the",
    "dog",
    "run",
    "over",
    "green",
    "hills",
    "far",
    "away",
]
PWNED = "PWNED"  # the file that code in a model's folder would write


def make_inputs(folder: Path, run: Callable[[str], None]) -> None:
    """Fill `folder`. `run` runs a command of this checkout, written as in the cases, and raises where it fails."""
    make_texts(folder)
    make_tokenizers(folder)
    run("launch/train_lm.py {tiny} {bpe} data=in/c.jsonl run.dir=in/run")
    small = "length=16 tokenizer=train vocab_size=300 validation_share=0.1 shard_tokens=2000"
    run(f"tools/prepare_shards.py path=in/c.jsonl out=in/shards {small}")
    break_shards(folder)
    break_models(folder)
    break_runs(folder)
    make_decoders(folder)
    make_images(folder)


def make_texts(folder: Path) -> None:
    """Corpora: whole under names that are hard to say, and broken."""
    lines = [json.dumps({"text": " ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(80))}) for i in range(1, 61)]
    whole = "\n".join(lines) + "\n"
    for name in ("c.jsonl", "a,b.jsonl", "back\\slash.jsonl", "epoch=3-step=1.jsonl", "#1 (é).jsonl"):
        (folder / name).write_text(whole, encoding="utf-8")
    (folder / "docs.txt").write_text("\n\n".join(json.loads(line)["text"] for line in lines), encoding="utf-8")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "blank.jsonl").write_bytes(b"\n\n \n")
    (folder / "one.txt").write_text("a single document\nof two lines", encoding="utf-8")
    (folder / "broken.jsonl").write_text("\n".join([*lines[:2], '{"text": "cut', *lines[2:]]), encoding="utf-8")
    (folder / "lists.jsonl").write_text("[1, 2]\n", encoding="utf-8")
    (folder / "nokey.jsonl").write_text('{"body": "x"}\n', encoding="utf-8")
    (folder / "number.jsonl").write_text('{"text": 3}\n', encoding="utf-8")
    (folder / "deep.jsonl").write_text('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n", encoding="utf-8")
    (folder / "utf16.jsonl").write_bytes(whole.encode("utf-16"))
    (folder / "table.csv").write_text("text\nhello\n", encoding="utf-8")
    packed = gzip.compress(whole.encode())
    (folder / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (folder / "notgz.jsonl.gz").write_bytes(whole.encode())
    with gzip.open(folder / "line.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(300):
            file.write(b"x" * (1 << 20))
    (folder / "page.parquet").write_text("<html>404</html>", encoding="utf-8")
    _write_parquets(folder)
    (folder / "nothing").mkdir()
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(b"\x89PNG")
    (folder / "dangling").mkdir()
    shutil.copy(folder / "c.jsonl", folder / "dangling" / "c.jsonl")
    (folder / "dangling" / "gone.jsonl").symlink_to("nowhere.jsonl")
    (folder / "noted").mkdir()
    shutil.copy(folder / "c.jsonl", folder / "noted" / "c.jsonl")
    for name in ("README.md", "README.txt", "requirements.txt", ".hidden.txt"):
        (folder / "noted" / name).write_text("no part of the corpus", encoding="utf-8")
    (folder / "evilset").mkdir()
    (folder / "evilset" / "evilset.py").write_text(f"open({PWNED!r}, 'w').write('ran')\n", encoding="utf-8")
    (folder / "specials.txt").write_text(
        "\n\n".join(f"{line} <s> </s> [MASK] <unk>" for line in lines), encoding="utf-8"
    )
    (folder / "zero.json").write_text('{"zero_optimization": {"stage": 3}}', encoding="utf-8")
    (folder / "cut.json").write_text('{"zero_optim', encoding="utf-8")


def _write_parquets(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [f"document {n} " + " ".join(WORDS) for n in range(60)]
    pq.write_table(pa.table([pa.array(texts), pa.array(texts)], names=["text", "text"]), folder / "two.parquet")
    pq.write_table(pa.table({"text": list(range(60))}), folder / "ints.parquet")
    pq.write_table(pa.table({"body": texts}), folder / "nokey.parquet")
    pq.write_table(pa.table({"text": pa.array(texts).dictionary_encode()}), folder / "dict.parquet")


def make_tokenizers(folder: Path) -> None:
    """Tokenizers that say too little, or are none."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabularies = {"words.json": ({"[UNK]": 0, "the": 1, "</s>": 2}, "[UNK]"), "nounk.json": ({"the": 0}, None)}
    for name, (vocab, unk) in vocabularies.items():
        tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=unk))  # pyright: ignore[reportCallIssue, reportArgumentType]
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
        tokenizer.save(str(folder / name))
    content = (folder / "words.json").read_text(encoding="utf-8")
    (folder / "cuttok.json").write_text(content[: len(content) // 2], encoding="utf-8")
    (folder / "notok.json").write_text('{"a": 1}', encoding="utf-8")
    (folder / "holes.json").write_text(content.replace('"</s>": 2', '"</s>": 7'), encoding="utf-8")


def break_shards(folder: Path) -> None:
    """Copies of a folder of shards, each damaged in its own way."""
    for name in ("shards_cut", "shards_flip", "shards_gone", "shards_index", "shards_noindex", "shards_format"):
        shutil.copytree(folder / "shards", folder / name)
    first = sorted(path.name for path in (folder / "shards").glob("train*.bin"))[0]
    _cut(folder / "shards_cut" / first)
    _flip(folder / "shards_flip" / first)
    (folder / "shards_gone" / first).unlink()
    _cut(folder / "shards_index" / "index.json")
    (folder / "shards_noindex" / "index.json").unlink()
    index = json.loads((folder / "shards" / "index.json").read_text(encoding="utf-8"))
    (folder / "shards_format" / "index.json").write_text(json.dumps({**index, "format": 99}), encoding="utf-8")


def break_models(folder: Path) -> None:
    """Copies of a teacher, each damaged in its own way, and files that are no checkpoints."""
    import torch
    from safetensors.torch import load_file, save_file

    teacher = folder / "run" / "teacher"
    tensors = load_file(teacher / "model.safetensors")
    first = sorted(tensors)[0]

    def copy(name: str) -> Path:
        shutil.copytree(teacher, folder / name)
        return folder / name

    def with_tensors(name: str, change: Mapping[str, Any]) -> None:
        merged = {key: value for key, value in {**tensors, **change}.items() if value is not None}
        save_file(merged, copy(name) / "model.safetensors", metadata={"format": "pt"})

    def with_config(name: str, **change: Any) -> None:
        path = copy(name) / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")

    shutil.copytree(teacher, folder / "teacher")
    one_nan = tensors[first].clone()
    one_nan.view(-1)[0] = float("nan")
    with_tensors("nan1", {first: one_nan})
    with_tensors("nan", {name: torch.full_like(tensor, float("nan")) for name, tensor in tensors.items()})
    with_tensors("inf", {first: torch.full_like(tensors[first], float("inf"))})
    with_tensors("less", {first: None})
    with_tensors("more", {"extra.weight": torch.zeros(3)})
    with_tensors("wider", {first: torch.zeros(*(2 * size for size in tensors[first].shape))})
    with_tensors("ints", {first: torch.zeros(tensors[first].shape, dtype=torch.int32)})
    _cut(copy("cut") / "model.safetensors")
    (copy("hollow") / "model.safetensors").write_bytes(b"")
    (copy("html") / "model.safetensors").write_text("<!doctype html><title>404</title>" * 9, encoding="utf-8")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 5242880\n"
    (copy("lfs") / "model.safetensors").write_text(pointer, encoding="utf-8")
    (copy("noweights") / "model.safetensors").unlink()
    (copy("noconfig") / "config.json").unlink()
    _cut(copy("cutconfig") / "config.json")
    (copy("listconfig") / "config.json").write_text("[]", encoding="utf-8")
    (copy("deepconfig") / "config.json").write_text("[" * 100_000, encoding="utf-8")
    with_config("llama", architectures=["LlamaForCausalLM"], architecture=None, model_type="llama")
    with_config("vast", num_states=10**12)
    shutil.copy(folder / "words.json", copy("othertok") / "tokenizer.json")
    (copy("notok") / "tokenizer.json").unlink()
    _cut(copy("cuttok") / "tokenizer.json")
    _with_code(copy("evil"))
    with_config(
        "evilmodel", auto_map={"AutoModelForMaskedLM": "evil.Model", "AutoConfig": "evil.Config"}, model_type="evil"
    )
    _with_code(folder / "evilmodel")
    (folder / "system.ckpt").write_bytes(b"cos\nsystem\n(S'touch " + PWNED.encode() + b"'\ntR.")
    torch.save({"state_dict": {f"backbone.{name}": tensor for name, tensor in tensors.items()}}, folder / "whole.ckpt")
    _cut(shutil.copy(folder / "whole.ckpt", folder / "cut.ckpt"))
    (folder / "empty.ckpt").write_bytes(b"")
    (folder / "text.ckpt").write_text("not a checkpoint", encoding="utf-8")
    torch.save({"state_dict": {"weights": 3}}, folder / "odd.ckpt")
    save_file(tensors, folder / "lonely.safetensors")


def _with_code(folder: Path) -> None:
    """A tokenizer whose configuration names code in its folder, which writes a file when it runs."""
    (folder / "evil.py").write_text(f"open({PWNED!r}, 'w').write('ran')\n", encoding="utf-8")
    path = folder / "tokenizer_config.json"
    plain = json.loads(path.read_text(encoding="utf-8"))
    plain |= {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}, "tokenizer_class": "EvilTokenizer"}
    path.write_text(json.dumps(plain), encoding="utf-8")


def make_decoders(folder: Path) -> None:
    """A small decoder in LLaDA's format with chats, copies of it that are broken, and records that make no sequence."""
    from safetensors.torch import load_file, save_file

    from di4c_lm.runs.prepare.miniature import Settings, write_miniature

    whole = folder / "mini"
    write_miniature(Settings(out=str(whole), hidden_size=16, num_blocks=1, rows=600))

    def changed(name: str, file: str, **change: Any) -> None:
        shutil.copytree(whole, folder / name)
        path = folder / name / file
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")

    changed("mini_moe", "config.json", architectures=["LLaDAMoEModelLM"])
    changed("mini_mask", "config.json", mask_token_id=600)
    changed("mini_heads", "config.json", n_heads=8)
    changed("mini_rope", "config.json", partial_rotary_factor=0.5)
    template = "{{ raise_exception('no such role') }}"
    changed("mini_template", "tokenizer_config.json", chat_template=template)
    (folder / "mini_template" / "chat_template.jinja").write_text(template, encoding="utf-8")
    tensors = load_file(whole / "model.safetensors")
    files = {name: "model-00001-of-00002.safetensors" for name in tensors}
    last = sorted(tensors)[-1]
    for name, lost in (
        ("mini_shard", {last: "model-00002-of-00002.safetensors"}),
        ("mini_index", {"absent.weight": ""}),
    ):
        shutil.copytree(whole, folder / name)
        (folder / name / "model.safetensors").unlink()
        kept = {one: tensor for one, tensor in tensors.items() if one not in lost}
        save_file(kept, folder / name / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
        where = {one: place or "model-00001-of-00002.safetensors" for one, place in {**files, **lost}.items()}
        index = {"metadata": {}, "weight_map": where}
        (folder / name / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    for name, response in (("unsaid", ""), ("longwinded", "one and " * 100)):
        records = [{"prompt": f"What is {number}?", "response": response} for number in range(60)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")


def break_runs(folder: Path) -> None:
    """Copies of a finished run, each lacking or damaged in its own way."""

    def copy(name: str) -> Path:
        shutil.copytree(folder / "run", folder / name, symlinks=True)
        return folder / name

    (copy("run_noparts") / "parts.json").unlink()
    (copy("run_cutconfig") / "config.yaml").write_text("train: {steps: [", encoding="utf-8")
    (copy("run_listconfig") / "config.yaml").write_text("- 1\n", encoding="utf-8")
    (copy("run_otherkey") / "config.yaml").write_text("train: {stepps: 3}\n", encoding="utf-8")
    shutil.rmtree(copy("run_noteacher") / "teacher")
    (copy("run_novalidation") / "validation.safetensors").unlink()
    _cut(copy("run_cutstudent") / "student" / "model.safetensors")
    (folder / "file").write_text("a file", encoding="utf-8")


def make_images(folder: Path) -> None:
    """Folders, tars and .npz files of images, whole and broken."""
    from PIL import Image

    def png(size: int, mode: str = "RGB") -> bytes:
        buffer = io.BytesIO()
        Image.new(mode, (size, size), 100).save(buffer, "PNG")
        return buffer.getvalue()

    def classes(name: str, **more: bytes) -> None:
        for label in ("cats", "dogs"):
            (folder / name / label).mkdir(parents=True)
            for number in range(6):
                (folder / name / label / f"{number}.png").write_bytes(png(8))
        for file, content in more.items():
            (folder / name / "cats" / file.replace("_", ".")).write_bytes(content)

    classes("faces")
    classes("faces_ps", x_png=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    classes("faces_sizes", x_png=png(9))
    classes("faces_cut", x_png=png(8)[:40])
    classes("faces_text", x_png=b"no image")
    classes("faces_huge", x_png=_huge_png(30_000))
    (folder / "faces_flat").mkdir()
    (folder / "faces_flat" / "a.png").write_bytes(png(8))
    shutil.copytree(folder / "faces", folder / "faces_hollow")
    (folder / "faces_hollow" / "owls").mkdir()
    _tar(folder / "label.tar", {"a.png": png(8), "a.cls": b"1000000000"})
    _tar(folder / "negative.tar", {"a.png": png(8), "a.cls": b"-1"})
    _tar(folder / "nolabel.tar", {"a.png": png(8)})
    _tar(folder / "deep.tar", {"a.png": png(8), "a.json": b"[" * 100_000})
    _cut(shutil.copy(folder / "label.tar", folder / "cut.tar"))
    (folder / "text.tar").write_text("not a tar", encoding="utf-8")
    images, labels = np.zeros((6, 8, 8, 3), np.uint8), np.arange(6) % 2
    np.savez(folder / "images.npz", images=images, labels=labels)
    np.savez(folder / "floats.npz", images=images.astype(float), labels=labels)
    np.savez(folder / "label.npz", images=images, labels=np.full(6, 10**9))
    np.savez(folder / "fewer.npz", images=images, labels=labels[:3])
    np.savez(folder / "nolabels.npz", images=images)
    np.savez(folder / "pickled.npz", images=np.array([None, {}], dtype=object), labels=labels[:2])
    _cut(shutil.copy(folder / "images.npz", folder / "cut.npz"))
    with zipfile.ZipFile(folder / "lying.npz", "w") as archive:
        for name in ("images", "labels"):
            archive.writestr(f"{name}.npy", _npy_header((10**9, 64, 64, 3)) + b"\0" * 64)


def _npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _huge_png(side: int) -> bytes:
    """A PNG that says it has `side` rows and columns, in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def _tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def _cut(path: Path | str) -> None:
    """Half of a file."""
    os.truncate(path, Path(path).stat().st_size // 2)


def _flip(path: Path) -> None:
    """One bit of a file turned."""
    with contextlib.closing(path.open("r+b")) as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
