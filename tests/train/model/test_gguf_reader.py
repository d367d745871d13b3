"""A GGUF file is parsed once while a model is loaded, and again afterwards."""

from pathlib import Path

import gguf

from kwise.train.model.gguf_reader import gguf_parsed_once


def written(path: Path) -> str:
    """Write a GGUF file without tensors and return its path."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def test_one_reader_for_each_file_while_a_model_is_loaded(tmp_path: Path) -> None:
    one, other = written(tmp_path / "one.gguf"), written(tmp_path / "other.gguf")
    before = gguf.GGUFReader
    with gguf_parsed_once():
        reader = gguf.GGUFReader(one)
        assert "llama.vocab_size" in reader.fields
        assert gguf.GGUFReader(one) is reader
        assert gguf.GGUFReader(other) is not reader
    assert gguf.GGUFReader is before
    assert gguf.GGUFReader(one) is not reader
