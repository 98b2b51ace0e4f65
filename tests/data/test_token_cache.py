"""Tests of `token_cache.py`."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lit_gpt_scratch.data import token_cache as cache
from lit_gpt_scratch.data.corpus import Corpus, cache_folder, open_corpus
from lit_gpt_scratch.data.token_cache import load_tokens
from lit_gpt_scratch.data.tokenizer import CharTokenizer
from lit_gpt_scratch.errors import InputError

BOM = b"\xef\xbb\xbf"
SCRIPTS = {
    "Latin": "Ça, Øyvind, naïve façade.\n",
    "Greek": "Μῆνιν ἄειδε θεά\n",
    "Cyrillic": "Съешь ещё этих булок\n",
    "Hebrew": "בְּרֵאשִׁית בָּרָא\n",
    "Arabic": "بِسْمِ ٱللَّهِ\n",
    "Devanagari": "सर्वे मानवाः\n",
    "Chinese": "道可道非常道。\n",
    "Japanese": "いろはにほへと\n",
    "Korean": "나랏말싸미\n",
    "emoji": "👩‍🚀🏳️‍🌈👍🏽\n",
    "oddities": "\0\x85\u2028\ufeff\ufffe\uffff\U0010ffff",
}


@pytest.fixture(autouse=True)
def separate_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test its own cache folder, since caches are shared by content."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def corpus_of(content: bytes, folder: Path) -> Corpus:
    path = folder / "corpus.txt"
    path.write_bytes(content)
    return open_corpus(str(path))


def caches() -> list[Path]:
    """Return everything in the folder of caches, unfinished ones included."""
    return sorted((cache_folder() / "tokens").glob("*"))


def check(content: bytes, text: str, folder: Path) -> None:
    """Check that the cache of a file's bytes holds the direct encoding of the text."""
    tok = CharTokenizer.of(text)
    alphabet, tokens = load_tokens(corpus_of(content, folder))
    assert alphabet == tok.alphabet
    assert tokens.numpy().dtype == tok.dtype
    assert tok.decode(tokens) == text
    assert np.array_equal(tokens, tok.encode_array(text))


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 1 << 22])
@pytest.mark.parametrize("script", [*SCRIPTS, "all"])
def test_the_cache_holds_the_ids_of_every_script(
    script: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if chunk boundaries fall within the bytes of a character."""
    monkeypatch.setattr(cache, "CHUNK_BYTES", chunk)
    text = SCRIPTS.get(script) or "".join(SCRIPTS.values())
    check(text.encode(), text, tmp_path)


@given(st.text(min_size=1), st.integers(1, 9), st.booleans())
def test_the_cache_holds_the_ids_of_any_text(text: str, chunk: int, marked: bool) -> None:
    """A byte-order mark at the start is dropped; a second one is a character of the text."""
    text = text if marked else "." + text
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", folder)
        patch.setattr(cache, "CHUNK_BYTES", chunk)
        check(BOM * marked + text.encode(), text, Path(folder))


def test_larger_alphabets_have_a_wider_type(tmp_path: Path) -> None:
    text = "".join(map(chr, range(32, 1000)))
    check(text.encode(), text, tmp_path)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r", "\n\r"])
def test_line_ends_are_kept(ends: str, tmp_path: Path) -> None:
    text = f"one{ends}two{ends}{ends}"
    check(text.encode(), text, tmp_path)


@pytest.mark.parametrize("chunk", [1, 1 << 22])
@pytest.mark.parametrize(
    ("content", "byte"),
    [
        ("Le café".encode("latin-1"), "0xe9"),
        (b"good \x80 bad", "0x80"),
        ("\U0001f600".encode()[:-1], "0xf0"),  # ends within a character
        (b"\xed\xa0\x80", "0xed"),  # half of a surrogate pair
        (b"\xc0\xaf", "0xc0"),  # an overlong slash
        (BOM + b"\xff", "0xff"),
    ],
)
def test_a_text_that_is_not_utf_8_is_refused_and_leaves_no_files(
    content: bytes, byte: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "CHUNK_BYTES", chunk)
    with pytest.raises(InputError, match=rf"not UTF-8 text \(byte {byte}\)"):
        load_tokens(corpus_of(content, tmp_path))
    assert caches() == []


@pytest.mark.parametrize("content", [b"", BOM])
def test_an_empty_text_is_refused_and_leaves_no_files(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty"):
        load_tokens(corpus_of(content, tmp_path))
    assert caches() == []


def test_a_cache_is_built_once(tmp_path: Path) -> None:
    corpus = corpus_of(b"a text", tmp_path)
    alphabet, tokens = load_tokens(corpus)
    (folder,) = caches()
    built = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())]
    corpus.path.unlink()  # not to be read again
    again = load_tokens(corpus)
    assert again[0] == alphabet
    assert torch.equal(again[1], tokens)
    assert caches() == [folder]
    assert built == [
        (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())
    ]


def test_a_cache_is_readable_by_everyone(tmp_path: Path) -> None:
    load_tokens(corpus_of(b"a text", tmp_path))
    (folder,) = caches()
    assert folder.stat().st_mode & 0o555 == 0o555


def test_a_different_text_has_a_different_cache(tmp_path: Path) -> None:
    """Even under the same file name."""
    assert load_tokens(corpus_of(b"stone", tmp_path))[0] == "enost"
    assert load_tokens(corpus_of(b"last", tmp_path))[0] == "alst"


def test_changing_loaded_ids_does_not_change_the_cache(tmp_path: Path) -> None:
    corpus = corpus_of(b"abc", tmp_path)
    load_tokens(corpus)[1].fill_(0)
    assert load_tokens(corpus)[1].tolist() == [0, 1, 2]


def test_each_alphabet_has_its_own_cache(tmp_path: Path) -> None:
    corpus = corpus_of(b"cab", tmp_path)
    for _ in range(2):
        for given_alphabet, ids in (("abc", [2, 0, 1]), (" abcé", [3, 1, 2]), (None, [2, 0, 1])):
            alphabet, tokens = load_tokens(corpus, given_alphabet)
            assert alphabet == (given_alphabet or "abc")
            assert tokens.tolist() == ids


def test_a_character_outside_the_alphabet_is_named_and_no_files_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its position counts from the beginning of the text, not of the chunk."""
    monkeypatch.setattr(cache, "CHUNK_BYTES", 4)
    with pytest.raises(InputError, match=r"'é' at position 10 .* 2 characters"):
        load_tokens(corpus_of("ababababab\u00e9".encode(), tmp_path), "ab")
    assert caches() == []


def test_a_cache_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = tmp_path / "a file, not a folder"
    blocker.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocker))
    with pytest.raises(InputError, match="a file, not a folder"):
        load_tokens(corpus_of(b"a text", tmp_path))


BUILD_TOGETHER = """
import hashlib, sys
from lit_gpt_scratch.data import corpus, token_cache as cache

build = cache._build
def build_and_wait(*args):
    build(*args)
    print("built", flush=True)
    sys.stdin.readline()
cache._build = build_and_wait

alphabet, tokens = cache.load_tokens(corpus.open_corpus(sys.argv[1]))
print(alphabet.encode().hex(), hashlib.sha256(tokens.numpy().tobytes()).hexdigest())
"""


def test_two_processes_can_build_the_same_cache(tmp_path: Path) -> None:
    """Both wait until the other has built its files, so that both try to rename them."""
    corpus = corpus_of("".join(SCRIPTS.values()).encode() * 1000, tmp_path)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD_TOGETHER, str(corpus.path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert [process.stdout and process.stdout.readline() for process in processes] == [
        "built\n"
    ] * 2
    first, second = (process.communicate("go\n")[0] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert first == second
    (folder,) = caches()
    alphabet, tokens = load_tokens(corpus)
    text = corpus.path.read_bytes().decode()
    assert first.split()[0] == alphabet.encode().hex()
    assert CharTokenizer(alphabet).decode(tokens) == text
    assert not folder.name.startswith(".")


MEASURE_MEMORY = """
import sys, threading, time
from lit_gpt_scratch.data import corpus, token_cache as cache

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))

def growth(work):
    before = peak = anonymous()
    worker = threading.Thread(target=work)
    worker.start()
    while worker.is_alive():
        peak = max(peak, anonymous())
        time.sleep(0.001)
    return max(peak, anonymous()) - before

cache.MAX_IN_MEMORY_BYTES = 0
kept = []
print(growth(lambda: kept.append(cache.load_tokens(corpus.open_corpus(sys.argv[1])))))
print(growth(lambda: corpus.open_corpus("sample", sample_size=64 << 20)))
print(len(kept[0][1]))
"""


@pytest.mark.needs("linux", "RssAnon in /proc")
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """Encoding allocates less than the text's size: it keeps no copy of the text or ids."""
    path = tmp_path / "long.txt"
    path.write_bytes(open_corpus("sample", sample_size=1 << 20).path.read_bytes() * 64)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE_MEMORY, str(path)],
        check=True, capture_output=True, text=True, env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip
    encoding, writing, count = map(int, done.stdout.split())
    assert count == 64 << 20
    assert encoding < count
    assert writing < 1.5 * count


@pytest.fixture
def built(tmp_path: Path) -> tuple[Corpus, Path, Tensor]:
    """A corpus, the folder of its cache, and its ids."""
    corpus = corpus_of("a text of its own: äöü ".encode() * 40, tmp_path)
    tokens = load_tokens(corpus)[1]
    return corpus, cache_folder() / "tokens" / corpus.sha256, tokens


def truncate(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def flip(path: Path, at: int) -> None:
    """Flip one bit in place, as a failing disk would."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


DAMAGE = {
    **{f"flip {at} of the tokens": lambda f, at=at: flip(f / "tokens.npy", at)
       for at in (0, 8, 60, 127, 128, 500, 1047)},
    **{f"cut the tokens to {n}": lambda f, n=n: truncate(f / "tokens.npy", n)
       for n in (0, 50, 128, 1047)},
    **{f"lengthen {name}": lambda f, name=name: (f / name).open("ab").write(b"x")
       for name in ("tokens.npy", "alphabet.txt", "SHA256SUMS")},
    **{f"remove {name}": lambda f, name=name: (f / name).unlink()
       for name in ("tokens.npy", "alphabet.txt", "SHA256SUMS")},
    "flip in the alphabet": lambda f: flip(f / "alphabet.txt", 3),
    "flip in the sums": lambda f: flip(f / "SHA256SUMS", 3),
    "a file in its place": lambda f: (shutil.rmtree(f), f.write_bytes(b"x")),
    "an empty folder": lambda f: (shutil.rmtree(f), f.mkdir()),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_rebuilt_with_a_notice(
    built: tuple[Corpus, Path, Tensor], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, folder, expected = built
    files = {path: path.read_bytes() for path in folder.iterdir()}
    DAMAGE[damage](folder)
    alphabet, tokens = load_tokens(corpus)
    assert alphabet == CharTokenizer.of(corpus.path.read_text(encoding="utf-8")).alphabet
    assert torch.equal(tokens, expected)
    assert {path: path.read_bytes() for path in folder.iterdir()} == files
    assert caches() == [folder]
    notice = capsys.readouterr().err
    assert notice.startswith(f"Notice: the token cache {folder} is damaged")
    assert notice.count("\n") == 1
    load_tokens(corpus)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("tokens", "alphabet"),
    [
        (np.array([0, 1, 9], np.uint8), "abc"),  # an id outside the alphabet
        (np.array([0, -1, 1], np.int8), "abc"),
        (np.array([0, 1, 2], np.int64), "abc"),
        (np.array([0, 1, 2], np.float32), "abc"),
        (np.array([0, 1, 2], ">i2"), "abc"),
        (np.array([[0, 1, 2]], np.uint8), "abc"),
        (np.array([], np.uint8), "abc"),
        (np.array(0, np.uint8), "abc"),
        (np.array([0, 1, 2], np.uint8), "cba"),
        (np.array([0, 1, 2], np.uint8), "aab"),
        (np.array([0, 0, 0], np.uint8), ""),
        (np.array([0, {}, 2], object), "abc"),  # pickled
    ],
    ids=str,
)
def test_an_invalid_cache_is_rebuilt(
    built: tuple[Corpus, Path, Tensor], tokens: Any, alphabet: str
) -> None:
    """Even if its checksums are right, as of a deliberate change."""
    corpus, folder, expected = built
    np.save(folder / "tokens.npy", tokens)
    (folder / "alphabet.txt").write_text(alphabet, encoding="utf-8")
    (folder / "SHA256SUMS").write_text(cache._checksums(folder), encoding="utf-8")
    assert torch.equal(load_tokens(corpus)[1], expected)


def test_sha256sum_can_check_a_cache(built: tuple[Corpus, Path, Tensor]) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=built[1], check=True)


def test_loaded_ids_do_not_change_with_the_files(built: tuple[Corpus, Path, Tensor]) -> None:
    _, folder, tokens = built
    before = tokens.clone()
    flip(folder / "tokens.npy", 500)
    truncate(folder / "tokens.npy", 128)
    assert torch.equal(tokens, before)
    shutil.rmtree(folder)
    assert torch.equal(tokens, before)


def test_large_caches_are_memory_mapped(
    built: tuple[Corpus, Path, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They hold the same ids, but changes of the file show."""
    corpus, folder, tokens = built
    monkeypatch.setattr(cache, "MAX_IN_MEMORY_BYTES", 0)
    mapped = load_tokens(corpus)[1]
    assert torch.equal(mapped, tokens)
    flip(folder / "tokens.npy", 128)
    assert not torch.equal(mapped, tokens)


def test_a_text_that_changes_during_reading_is_refused(tmp_path: Path) -> None:
    corpus = corpus_of(b"abcabc", tmp_path)
    corpus.path.write_bytes(b"abcacb")
    with pytest.raises(InputError, match="was changed"):
        load_tokens(corpus)
    assert caches() == []


def test_files_of_a_killed_process_are_removed(built: tuple[Corpus, Path, Tensor]) -> None:
    corpus, folder, _ = built
    shutil.rmtree(folder)
    (folder.parent / f".{folder.name}-12345678.partial" / "built").mkdir(parents=True)
    load_tokens(corpus)
    assert caches() == [folder]


@pytest.mark.needs("unix", "a limit on the size of files")
def test_a_full_disk_is_a_one_line_error_and_leaves_no_files(tmp_path: Path) -> None:
    """Writing through a memory map would kill the process instead."""
    path = tmp_path / "long.txt"
    path.write_bytes(b"abcdefgh" * 100_000)
    build = f"""
import resource, signal
from lit_gpt_scratch import errors
from lit_gpt_scratch.data import corpus, token_cache as cache
opened = corpus.open_corpus({str(path)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    cache.load_tokens(opened)
except errors.InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", build], capture_output=True, text=True, check=True)
    assert "cannot be encoded into" in done.stdout
    assert done.stdout.count("\n") == 1
    assert caches() == []
