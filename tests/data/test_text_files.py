"""One rule for all texts: the same encodings are read or refused, and the advice works."""

import gzip
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_gpt_scratch.cli.predict import PredictSettings, read_prompts
from lit_gpt_scratch.data import CharDataModule
from lit_gpt_scratch.data.text_files import decode
from lit_gpt_scratch.errors import InputError

TEXT = "Où est-il ?\r\nHere: naïve, 日本語.\n" * 40
READ = {
    "utf-8": TEXT.encode(),
    "utf-8 with mark": TEXT.encode("utf-8-sig"),
    "utf-16 with mark, little": b"\xff\xfe" + TEXT.encode("utf-16-le"),
    "utf-16 with mark, big": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "gzip": gzip.compress(TEXT.encode()),
    "two gzip files": gzip.compress(TEXT[:99].encode()) + gzip.compress(TEXT[99:].encode()),
    "gzip of utf-16": gzip.compress(TEXT.encode("utf-16")),
}
WESTERN = "Où est-il ?\nHere: naïve.\n" * 40
REFUSED = {"latin-1": "Latin-1", "utf-16-le": "UTF-16 without", "utf-16-be": "UTF-16 without"}


def corpus_text(path: Path) -> str:
    data = CharDataModule(str(path), context=4)
    data.open()
    return data.tokenizer.decode(data.tokens)


@pytest.mark.parametrize("name", READ)
def test_corpus_and_prompts_are_read_alike(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text"
    path.write_bytes(READ[name])
    assert corpus_text(path) == TEXT
    lines = TEXT.replace("\r\n", "\n").removesuffix("\n").split("\n")
    assert read_prompts(PredictSettings(prompt_file=str(path))) == lines
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(READ[name]), encoding="utf-8"))
    assert read_prompts(PredictSettings(prompt_file="-")) == lines


@pytest.mark.parametrize("encoding", REFUSED)
def test_other_encodings_are_refused_alike_and_the_printed_command_converts_them(
    encoding: str, tmp_path: Path
) -> None:
    path = tmp_path / "it's a text.txt"
    path.write_bytes(WESTERN.encode(encoding))
    for read in (corpus_text, lambda p: read_prompts(PredictSettings(prompt_file=str(p)))):
        with pytest.raises(InputError, match=REFUSED[encoding]) as refused:
            read(path)
        _, found, command = str(refused.value).partition("python -c ")
        assert found
        (code,) = shlex.split(command)
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
        assert (tmp_path / "utf8.txt").read_bytes() == WESTERN.encode()
        assert corpus_text(tmp_path / "utf8.txt") == WESTERN


@given(st.text(max_size=50), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]), st.booleans(),
       st.integers(1, 7))  # fmt: skip
def test_pieces_of_any_size_give_the_same_text(
    text: str, encoding: str, is_zipped: bool, size: int
) -> None:
    text = text.replace("\0", "").lstrip("\ufeff")
    data = text.encode(encoding)
    data = gzip.compress(data) if is_zipped else data
    chunks = [data[:8]] + [data[i : i + size] for i in range(8, len(data), size)]
    assert "".join(decode(chunks, "a text", "a.txt")) == text


def test_a_truncated_or_damaged_gzip_file_is_refused() -> None:
    data = gzip.compress(TEXT.encode())
    for damaged in (data[:-9], data[:30] + b"\0\0\0\0" + data[34:]):
        with pytest.raises(InputError, match="a text is a damaged gzip file"):
            list(decode([damaged], "a text", "a.txt"))


def test_zeros_in_a_text_are_characters() -> None:
    for text in ("\0", "ab\0cd" * 30, "\0\0\0\0"):
        assert "".join(decode([text.encode()], "a text", "a.txt")) == text
    assert re.fullmatch("", "".join(decode([], "a text", "a.txt")))


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder of texts, some in subfolders, one in gzip, one without a last line end."""
    folder = tmp_path / "library"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "2.txt").write_text("second\n" * 20, encoding="utf-8")
    (folder / "a.txt").write_text("first" * 20, encoding="utf-8")
    (folder / "c.txt.gz").write_bytes(gzip.compress(b"third\n" * 20))
    (folder / "notes.md").write_text("no text of the corpus", encoding="utf-8")
    return folder


def test_a_folder_is_a_corpus_of_its_texts_in_sorted_order(library: Path) -> None:
    text = "first" * 20 + "\n" + "second\n" * 20 + "third\n" * 20
    assert corpus_text(library) == text
    data = CharDataModule(str(library), context=4)
    data.open()
    assert data.hparams["corpus"] == str(library)
    (library / "a.txt").write_text("changed" * 20, encoding="utf-8")
    assert corpus_text(library) == text.replace("first", "changed")


def test_a_list_of_files_is_a_corpus_in_the_order_of_the_list(library: Path) -> None:
    names = [str(library / "b" / "2.txt"), str(library / "a.txt")]
    data = CharDataModule(names, context=4)
    data.open()
    assert data.tokenizer.decode(data.tokens) == "second\n" * 20 + "first" * 20 + "\n"
    assert data.hparams["corpus"] == names


@pytest.mark.parametrize(
    ("names", "message"),
    [(["none.txt"], "no such file"), ([], "has no file"), (["sample", "none.txt"], "no such file")],
)
def test_a_list_with_a_missing_file_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CharDataModule(names, context=4).open()


def test_a_folder_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.txt or \.txt\.gz"):
        corpus_text(tmp_path)
