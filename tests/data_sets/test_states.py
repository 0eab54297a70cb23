"""Data of states: text by character and token, tables of categories, binarised images; and what is refused."""

from __future__ import annotations

import csv

import pytest
import torch

import scorefield as sf
from scorefield.data.states import Characters, binarised, categories, folded, open_states, text
from scorefield.errors import InputError
from scorefield.training.describe import from_json, to_json


def test_text_is_cut_into_pieces_that_can_be_written_again(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("to be or not to be, that is the question" * 3, "utf-8")
    data = text(path, 8)
    assert data.shape == (8,)
    assert data.levels == len(set("to be or not to be, that is the question"))
    assert len(data) == 15
    assert "".join(data.codec.write(data.read(range(15)))) == path.read_text("utf-8")
    assert len(text(path, 8, stride=1)) == 113
    assert torch.equal(text(path, 8, stride=1).read([8]), data.read([1]))
    again = from_json(to_json(data.codec))
    assert again == data.codec
    other = tmp_path / "b.txt"
    other.write_text("that is the boot", "utf-8")
    assert text(other, 8, codec=again).codec.write(text(other, 8, codec=again).read([0])) == ["that is "]
    assert text(other, 8, fold=True).codec.fold
    assert folded("It's 3 o'Clock!\n\nNow") == "it s o clock now"


def test_tokens_of_a_tokenizer(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "a.txt"
    path.write_text("a b b a a b", "utf-8")
    data = text(path, 3, tokenizer=tmp_path / "tokenizer.json")
    assert data.read([0, 1]).tolist() == [[0, 1, 1], [0, 0, 1]]
    assert data.codec.write(data.read([0])) == ["a b b"]


def test_a_table_of_words_and_numbers(tmp_path):
    path = tmp_path / "t.csv"
    rows = [[("red", "blue")[k % 2], str(k % 3), f"{k * 0.37:.3f}"] for k in range(90)]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["colour", "size", "weight"], *rows])
    data = categories(path)
    assert data.shape == (3,)
    assert data.columns == ("colour", "size", "weight")
    assert data.codec.values[:2] == (("blue", "red"), ("0", "1", "2"))
    assert data.codec.sizes == (2, 3, 16)
    x = data.read(range(90))
    assert torch.bincount(x[:, 2]).min() >= 5  # ranges of equally many rows
    assert (x[:, 2].diff() >= 0).all()
    assert data.codec.write(x[:1])[0].startswith("red,0,")
    again = categories(path, codec=from_json(to_json(data.codec)))
    assert torch.equal(again.read(range(90)), x)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_tables_of_words_and_of_numbers_are_read_alike(tmp_path, suffix):
    """As spreadsheets write them: a byte order mark, blanks, a line break within quotes, and an empty row."""
    apart = "," if suffix == ".csv" else "\t"
    lines = [["kind", "at, place"], ["red", "1"], ['"da\nrk"', " 2"], ["", ""], ["red", "3"]]
    path = tmp_path / f"t{suffix}"
    path.write_text("\n".join(apart.join(f'"{w}"' if "," in w else w for w in row) for row in lines), "utf-8-sig")
    data = categories(path)
    assert data.columns == ("kind", "at, place")
    assert data.codec.write(data.read([0, 1, 2]))[-1] == "red,3"
    labelled = sf.data.table(path, labels="kind")
    assert labelled.columns == ("at, place",)
    assert labelled.read([0, 1, 2]).flatten().tolist() == [1, 2, 3]
    assert labelled.classes == ("da\nrk", "red")


def test_binarised_digits_and_integer_arrays(tmp_path):
    import numpy as np

    data = open_states("digits", train=False, levels=2)
    assert open_states("digits", train=False).levels == 256
    assert data.levels == 2
    raw = sf.digits(train=False).read([0, 5])
    assert torch.equal(data.read([0, 5]), (raw >= 128).long())
    np.save(tmp_path / "x.npy", np.arange(12, dtype=np.uint8).reshape(3, 4))
    assert open_states(str(tmp_path / "x.npy")).read([2]).tolist() == [[8, 9, 10, 11]]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"  \n", "is empty"),
        ("a.txt", b"\xff\xfe\x00a", "not text in UTF-8"),
        ("a.txt", b"ab\0cd" * 50, "holds zero bytes"),
        ("a.txt", b"short", "has 5 states and an item has 64"),
        ("a.txt", b"a" * 100, "one character only"),
        ("t.csv", b"a,b\n", "is empty"),
        ("t.csv", b"a,b\n1,2\n3\n", "has 1 entries in line 3 and 2 columns"),
        ("t.csv", b"a\n" + b"\n".join(b"w%d" % k for k in range(70)), "70 different words"),
        ("t.csv", b"a,b\n1,2\n1,2\n", "the same row over and over"),
        ("t.csv", b"\xff\xff", "not text in UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used_gets_one_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as error:
        open_states(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_other_data_than_the_run_knows_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("abcé" * 40, "utf-8")
    with pytest.raises(InputError, match="the character 'é'"):
        text(tmp_path / "a.txt", 8, codec=Characters(("a", "b", "c")))
    (tmp_path / "t.csv").write_text("c,d\nx,1\ny,2\n", "utf-8")
    codec = categories(tmp_path / "t.csv").codec
    (tmp_path / "u.csv").write_text("c,d\nz,1\n", "utf-8")
    with pytest.raises(InputError, match="has 'z' in column c"):
        categories(tmp_path / "u.csv", codec=codec)
    (tmp_path / "u.csv").write_text("c,e\nx,1\n", "utf-8")
    with pytest.raises(InputError, match="the columns c, e and the run c, d"):
        categories(tmp_path / "u.csv", codec=codec)
    with pytest.raises(InputError, match="does not exist"):
        open_states(str(tmp_path / "none.txt"))
    torch.save(torch.zeros(2), tmp_path / "x.pt")
    import numpy as np

    np.save(tmp_path / "x.npy", np.zeros((3, 4), dtype=np.float32))
    with pytest.raises(InputError, match="floating-point numbers"):
        open_states(str(tmp_path / "x.npy"))
    with pytest.raises(InputError, match="floating-point numbers"):
        binarised(sf.data.open_data(str(tmp_path / "x.npy")))
